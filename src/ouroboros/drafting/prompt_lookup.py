"""Prompt lookup (Saxena 2023): what followed the latest earlier occurrence of the last n tokens, longest n first.

Where the occurrence overlaps the end of the text, its continuation is read on into the draft itself, so that a loop of
any period is drafted to full length. No model, no pool: the index is the request's own text.
"""

from __future__ import annotations

from collections.abc import Sequence

from ouroboros.config import PromptLookupOptions
from ouroboros.drafting.base import Modelless
from ouroboros.flow import Flow
from ouroboros.tree import Origin, TokenTree

__all__ = ["PromptLookupDrafter"]


class PromptLookupDrafter(Modelless):
    """See base.Drafter."""

    def __init__(self, options: PromptLookupOptions, prompt_length: int) -> None:
        self._options = options
        self._prompt_length = prompt_length
        self._ends: dict[tuple[int, ...], int] = {}  # n-gram → index behind its latest occurrence
        self._indexed = 0  # n-grams that end here or before are in the index

    def propose(self, sequence: Sequence[int], room: int) -> Flow[TokenTree]:
        yield from ()
        tree = TokenTree(sequence[-1])
        self._index(sequence, len(sequence) - 1)  # all but the n-grams that end the text: those are looked up
        sizes = range(min(self._options.max_ngram, len(sequence)), self._options.min_ngram - 1, -1)
        found = (self._ends.get(tuple(sequence[-size:])) for size in sizes)
        start = next((end for end in found if end is not None), None)
        if start is not None:
            text = list(sequence)
            origin = Origin.PROMPT if start < self._prompt_length else Origin.VERIFIED
            for index in range(start, start + min(self._options.draft_tokens, room)):
                text.append(text[index])
            tree.extend(0, text[len(sequence) :], origin)
        return tree

    def _index(self, sequence: Sequence[int], last: int) -> None:
        for end in range(self._indexed + 1, last + 1):
            for size in range(self._options.min_ngram, min(self._options.max_ngram, end) + 1):
                self._ends[tuple(sequence[end - size : end])] = end
        self._indexed = last
