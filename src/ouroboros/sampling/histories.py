"""What stands before each draw. The rows of a tree share all committed tokens, which are read and counted once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Histories", "Text"]


@dataclass(frozen=True, slots=True)
class Histories:
    """The text before each row's draw: ``base``, which all rows share, and behind it each row's own ``tails`` entry."""

    base: Sequence[int]
    tails: Sequence[Sequence[int]]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Histories:
        """Whole texts; what they share is found."""
        base = list(rows[0]) if rows else []
        for row in rows:
            base = base[: _shared(base, list(row))]
        return cls(base, [row[len(base) :] for row in rows])


class Text:
    """A text that is followed from call to call: what has changed since the last one costs time, the rest is known.

    Attributes:
        output_V: int64, how often each token occurs behind the prompt. seen: the tokens that occur at all, each once.
    """

    def __init__(self, vocab_size: int, prompt_length: int) -> None:
        self.seen = np.zeros(0, dtype=np.int64)
        self.output_V = np.zeros(vocab_size, dtype=np.int64)
        self.prompt_length = prompt_length
        self._tokens: list[int] = []
        self._buffer = np.empty(256, dtype=np.int64)
        self._seen_V = np.zeros(vocab_size, dtype=np.int64)

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """The text's tokens; a view that the next ``follow`` may change."""
        return self._buffer[: len(self._tokens)]

    def follow(self, tokens: Sequence[int]) -> None:
        """Makes ``tokens`` the text."""
        tokens = tokens if isinstance(tokens, list) else list(tokens)
        if tokens == self._tokens:
            return
        kept = _shared(self._tokens, tokens)
        self._count(kept, -1)
        self._tokens[kept:] = tokens[kept:]
        if len(tokens) > len(self._buffer):
            self._buffer = np.resize(self._buffer, 2 * len(tokens))
        self._buffer[kept : len(tokens)] = tokens[kept:]
        self._count(kept, 1)
        self.seen = np.flatnonzero(self._seen_V)

    def _count(self, start: int, by: int) -> None:
        np.add.at(self._seen_V, self.ids[start:], by)
        np.add.at(self.output_V, self.ids[max(start, self.prompt_length) :], by)


def _shared(a: list[int], b: list[int]) -> int:
    """How many leading tokens are the same."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while high - low > 1:  # equal up to low, and not up to high
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low
