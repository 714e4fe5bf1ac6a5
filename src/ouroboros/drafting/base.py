"""The protocol of drafting, and DraftSession: a draft model that follows the committed sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from ouroboros.models.base import ScoreRequest
from ouroboros.models.context import Context
from ouroboros.tree import TokenTree
from ouroboros.verify import Verdict

__all__ = ["DraftSession", "Drafter"]


class Drafter(Protocol):
    """Drafts for one request. It never decides a token: whatever it proposes, the output is the target's."""

    @property
    def draft_forwards(self) -> int:
        """Forwards of the draft model so far, prefill not counted."""

    def propose(self, sequence: Sequence[int], room: int) -> TokenTree:
        """A tree below the last token of ``sequence`` (all committed tokens), at most ``room`` levels deep."""

    def observe(self, verdict: Verdict) -> None:
        """Learns what the target model said of the last proposal."""


class DraftSession:
    """One request's sequence in the draft model.

    Invariant between steps: the context holds a prefix of the committed sequence without its last token; what it lacks
    is caught up in the next forward, not in one of its own.
    """

    def __init__(self, context: Context, prompt: Sequence[int]) -> None:
        self.forwards = 0
        self.tree = TokenTree(prompt[-1])
        self._context = context
        self._model, self._slot = context.model, context.slot
        self._base = len(prompt)  # tokens up to the tree's root, included
        self._catch_up: Sequence[int] = ()
        if self.fits(len(prompt)):
            context.prefill(prompt)
        else:
            context.follow(prompt)

    @property
    def scored(self) -> int:
        """Nodes of the tree that the draft model has scored: those with lower indices."""
        return self._slot.pending

    def fits(self, length: int) -> bool:
        """Whether the draft model's context takes a sequence of this length."""
        return length <= self._model.info.max_positions

    def begin(self, sequence: Sequence[int]) -> TokenTree:
        """Keeps the cached rows that agree with ``sequence`` and starts a new tree at its last token."""
        if self._context.shared(sequence) >= self._base:  # else the last proposal hung below tokens that were not taken
            path = self.tree.walk(sequence[self._base : -1])
            self._context.commit([node for node in path if node < self._slot.pending], sequence)
        self._catch_up = self._context.follow(sequence)
        self._base = len(sequence)
        self.tree = TokenTree(sequence[-1])
        return self.tree

    def score(self, rows: Sequence[int]) -> Tensor:
        """Scores the tree's new nodes. Returns the logits behind ``rows`` of them, [rows, vocabulary]."""
        self.forwards += 1
        logits = self._model.score([ScoreRequest(self._slot, self.tree, rows, self._catch_up)])[0]
        self._catch_up = ()
        return logits

    def drop(self, nodes: int) -> None:
        """Forgets the tree's nodes from index ``nodes`` on, and their rows."""
        self.tree.truncate(nodes)
        self._slot.truncate(min(nodes, self._slot.pending))
