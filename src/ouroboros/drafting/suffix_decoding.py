"""SuffixDecoding (Oliaro et al. 2024): drafts from the request's own text and from earlier outputs, by counted
continuations of the longest matches; the surer the match, the longer the draft. No draft model.

Of the tree behind the own text and the tree behind earlier outputs the one with the higher expected length is taken.
"""

from __future__ import annotations

from collections.abc import Sequence

from ouroboros.config import SuffixDecodingOptions
from ouroboros.drafting.base import Modelless
from ouroboros.flow import Flow
from ouroboros.phrases.suffixes import SuffixIndex
from ouroboros.tree import Origin, TokenTree

__all__ = ["SuffixDecodingDrafter"]


class SuffixDecodingDrafter(Modelless):
    """See base.Drafter. ``outputs`` are those of earlier requests; this one's is added to them as it grows."""

    def __init__(self, options: SuffixDecodingOptions, outputs: SuffixIndex, prompt: Sequence[int]) -> None:
        self._options = options
        self._own = SuffixIndex()
        self._outputs = outputs
        self._text, self._output = self._own.start(), outputs.start()
        self._learnt = 0  # tokens of the request that are in its own index
        self._prompt_length = len(prompt)

    def propose(self, sequence: Sequence[int], room: int) -> Flow[TokenTree]:
        yield from ()
        self._learn(sequence)
        options = self._options
        limits = options.max_match, options.factor, options.draft_tokens, options.min_chance, room
        context = sequence[-options.max_match :]
        found = [
            self._own.speculate(context, *limits, Origin.PROMPT),
            self._outputs.speculate(context, *limits, Origin.VERIFIED) if options.reuse else None,
        ]
        best = max((one for one in found if one is not None), key=lambda one: one.score, default=None)
        return TokenTree(sequence[-1]) if best is None else best.tree

    def stop(self, sequence: Sequence[int]) -> None:
        self._learn(sequence)
        self._output.stop()

    def _learn(self, sequence: Sequence[int]) -> None:
        new = sequence[self._learnt :]
        self._text.add(new)
        self._output.add(sequence[max(self._prompt_length, self._learnt) :])
        self._learnt = len(sequence)
