"""The protocol of drafting, and DraftSession: a draft model that follows the committed sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ouroboros.flow import Answer, Flow, Score, read
from ouroboros.models.base import ScoreRequest
from ouroboros.models.context import Context
from ouroboros.stats import Decision
from ouroboros.tree import TokenTree
from ouroboros.verify import Verdict

__all__ = ["DraftSession", "Drafter", "Modelless"]

RESERVE = 64  # positions of a draft model's context that are kept for the draft itself
CATCH_UP = 32  # tokens that the draft model lacks: up to this many come with the next forward's rows


class Drafter(Protocol):
    """Drafts for one request. It never decides a token: whatever it proposes, the output is the target's."""

    def start(self, prompt: Sequence[int]) -> Flow[None]:
        """Reads the prompt, where a draft model should now. Called once, before the first ``propose``."""

    def propose(self, sequence: Sequence[int], room: int) -> Flow[TokenTree]:
        """A tree below the last token of ``sequence`` (all committed tokens), at most ``room`` levels deep."""

    def observe(self, verdict: Verdict) -> Decision | None:
        """Learns what the target model said of the last proposal. Returns what was decided, where a policy did."""

    def stop(self, sequence: Sequence[int]) -> None:
        """The request is over, or given up; ``sequence`` is all that was committed. Called once."""


class Modelless:
    """What drafters without a draft model do alike: nothing to read, nothing to learn, nothing to end."""

    def start(self, prompt: Sequence[int]) -> Flow[None]:
        yield from ()

    def observe(self, verdict: Verdict) -> Decision | None:
        return None

    def stop(self, sequence: Sequence[int]) -> None:
        pass


class DraftSession:
    """One request's sequence in the draft model.

    Invariant between steps: the context holds a prefix of the committed sequence without its last token; what it lacks
    is caught up in the next forward, not in one of its own, unless it is long.

    What the draft model's context does not hold it does not read: of a long text it reads the end, half of its context,
    and begins anew with so much when that is full: a sliding window, moved in jumps. What is far is left to phrases.

    Args:
        span: read so many tokens of a text's end, and begin anew when they have become twice as many; 0 for as many as
            the context holds. A model that must see the whole prompt sees it anyway, or does not draft.
    """

    def __init__(self, context: Context, prompt: Sequence[int], span: int = 0) -> None:
        self.tree = TokenTree(prompt[-1])
        self._context = context
        self._model, self._slot = context.model, context.slot
        positions = self._model.info.max_positions
        limit = positions - min(RESERVE, positions // 4)
        self._limit = min(2 * span, limit) if span else limit  # tokens that are read at most
        self._span = min(span or limit, max(1, self._limit // 2)) if self._model.info.part_of_text else 0
        self._end: list[int] = []  # of the text, from index ``context.start`` on, where that is not 0
        self._catch_up: Sequence[int] = ()
        if not self._goes_on(prompt):
            longest = span or self._limit
            context.start = len(prompt) - self._span if self._span and len(prompt) > longest else 0
        self._restart(prompt)

    def _restart(self, sequence: Sequence[int]) -> None:
        text = self._read(sequence)
        self._base = len(text)  # tokens up to the tree's root, included
        self._context.follow(text)

    def _goes_on(self, prompt: Sequence[int]) -> bool:
        """Whether the context has read most of what it would read of this prompt, as in the next turn of a chat."""
        text = prompt[self._context.start :]
        return self._span > 0 and len(text) <= self._limit and 2 * self._context.shared(text) > len(text)

    def _start(self, length: int) -> int:
        """Where a text of this length is read from."""
        start = self._context.start
        return length - self._span if self._span and length - start > self._limit else start

    def _read(self, sequence: Sequence[int]) -> Sequence[int]:
        """What the draft model sees of the text from now on."""
        start = self._start(len(sequence))
        if start != self._context.start:
            self._context.start, self._end = start, []
        if start == 0:
            return sequence
        self._end += sequence[start + len(self._end) :]
        return self._end

    @property
    def trees(self) -> bool:
        """Whether the draft model scores trees; else chains alone."""
        return self._model.info.trees

    @property
    def part_of_text(self) -> bool:
        """Whether the draft model may read a text's end alone."""
        return self._model.info.part_of_text

    @property
    def skipped(self) -> int:
        """Tokens at the text's beginning that the draft model does not see."""
        return self._context.start

    @property
    def scored(self) -> int:
        """Nodes of the tree that the draft model has scored: those with lower indices."""
        return self._slot.pending

    def fits(self, length: int, reach: int) -> bool:
        """Whether the draft model's context takes ``reach`` tokens after a text of this length."""
        return length - self._start(length) + reach <= self._model.info.max_positions

    def read_from(self, sequence: Sequence[int], start: int) -> None:
        """From here on the draft model sees the text from index ``start`` on; what it has read is forgotten."""
        self._context.start, self._end = start, []
        self._restart(sequence)

    def prefill(self, prompt: Sequence[int]) -> Flow[None]:
        """Reads the prompt now."""
        if self.fits(len(prompt), 0):
            yield from read(self._context, self._read(prompt))

    def missing(self, sequence: Sequence[int]) -> int:
        """About how many committed tokens before the last one the next forward would have to catch up with."""
        start = self._start(len(sequence))
        known = self._slot.length + self._slot.pending if start == self._context.start else 0
        return max(0, len(sequence) - 1 - start - known)

    def begin(self, sequence: Sequence[int]) -> Flow[TokenTree]:
        """Keeps the cached rows that agree with ``sequence`` and starts a new tree at its last token."""
        text = self._read(sequence)
        if self._context.shared(text) >= self._base:  # else the last proposal hung below tokens that were not taken
            path = self.tree.walk(text[self._base : -1])
            self._context.commit([node for node in path if node < self._slot.pending], text)
        self._catch_up = self._context.follow(text)
        if len(self._catch_up) > CATCH_UP:
            yield from read(self._context, text)
            self._catch_up = ()
        self._base = len(text)
        self.tree = TokenTree(text[-1])
        return self.tree

    def score(self, rows: Sequence[int]) -> Flow[Answer]:
        """Scores the tree's new nodes. The answer's logits are those behind ``rows`` of them, [rows, vocabulary]."""
        answer: Answer = yield Score(self._model, ScoreRequest(self._slot, self.tree, rows, self._catch_up))
        self._catch_up = ()
        return answer

    def drop(self, nodes: int) -> None:
        """Forgets the tree's nodes from index ``nodes`` on, and their rows."""
        self.tree.truncate(nodes)
        self._slot.truncate(min(nodes, self._slot.pending))
