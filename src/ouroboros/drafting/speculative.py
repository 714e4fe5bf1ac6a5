"""Speculative decoding (Leviathan et al. 2023, Chen et al. 2023): a chain of γ tokens of the draft model.

The draft draws with the target's keyed noise, so that it is accepted more often when sampling; tokens are accepted iff
they equal the target's own draw (see docs/exactness.md), which needs no draft probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

from ouroboros.config import SpeculativeOptions
from ouroboros.drafting.base import DraftSession
from ouroboros.flow import Flow
from ouroboros.sampling import Histories, Sampler
from ouroboros.tree import Origin, TokenTree
from ouroboros.verify import Verdict

__all__ = ["SpeculativeDrafter"]


class SpeculativeDrafter:
    """See base.Drafter."""

    def __init__(
        self, options: SpeculativeOptions, draft: DraftSession, sampler: Sampler, stop_ids: Set[int] = frozenset()
    ) -> None:
        self._options = options
        self._draft = draft
        self._sampler = sampler
        self._stop_ids = stop_ids

    def start(self, prompt: Sequence[int]) -> Flow[None]:
        yield from self._draft.prefill(prompt)

    def propose(self, sequence: Sequence[int], room: int) -> Flow[TokenTree]:
        gamma = min(self._options.draft_tokens, room)
        if not self._draft.fits(len(sequence), gamma):
            return TokenTree(sequence[-1])
        tree = yield from self._draft.begin(sequence)
        node, drafted = 0, list[int]()
        for _ in range(gamma):
            answer = yield from self._draft.score([node])
            position = len(sequence) + len(drafted)
            token = self._sampler.draw(answer.logits_RV, [position], Histories(sequence, [drafted]))[0]
            node = tree.add(node, token, Origin.DRAFT)
            drafted.append(token)
            if token in self._stop_ids:
                break
        return tree

    def stop(self, sequence: Sequence[int]) -> None:
        pass

    def observe(self, verdict: Verdict) -> None:
        return None
