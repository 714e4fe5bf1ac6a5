"""Predictions: what the target model predicted behind a token, and behind two, when it last read them.

Every row of a target forward is kept, of rejected tokens too: its likeliest tokens and their log-probabilities, under
the last token and under the last two before the row. Drawn from with the request's own noise they are guesses at what
follows the same tokens elsewhere, for next to nothing. Token Recycling (Luo et al. 2024) keeps the ids under one token;
two tokens, probabilities and noise are our own. Bounded: what was not renewed for longest is forgotten. Not
thread-safe.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["KEPT", "Prediction", "Predictions"]

KEPT = 16  # tokens of a row
K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Prediction:
    """Of one row, likeliest first: ``ids`` int32 [K], ``logs`` float32 [K], log-probabilities at temperature 1.
    ``near``: found behind two tokens, not one."""

    ids: array[int]
    logs: array[float]
    near: bool


class Predictions:
    """See the header.

    Args:
        max_keys: pairs of tokens that are kept, and single tokens as well. below: what is read where this knows
            nothing, and never changed.
    """

    def __init__(self, max_keys: int = 100_000, below: Predictions | None = None) -> None:
        self.max_keys = max_keys
        self.below = below
        self._far: dict[int, Prediction] = {}
        self._near: dict[tuple[int, int], Prediction] = {}

    def __len__(self) -> int:
        return len(self._far) + len(self._near)

    def items(self) -> Iterator[tuple[int | None, int, Prediction]]:
        """Every (token before or None, last token, prediction), what was renewed longest ago first."""
        for last, prediction in self._far.items():
            yield None, last, prediction
        for (before, last), prediction in self._near.items():
            yield before, last, prediction

    def learn(self, before: int | None, last: int, ids: Sequence[int], logs: Sequence[float]) -> None:
        """``ids`` were the likeliest behind ``before`` (None where the text begins) and ``last``."""
        row = array("i", ids), array("f", logs)
        self.restore(None, last, *row)
        if before is not None:
            self.restore(before, last, *row)

    def restore(self, before: int | None, last: int, ids: array[int], logs: array[float]) -> None:
        """Keeps a row under this key alone."""
        if before is None:
            self._put(self._far, last, Prediction(ids, logs, near=False))
        else:
            self._put(self._near, (before, last), Prediction(ids, logs, near=True))

    def _put(self, table: dict[K, Prediction], key: K, prediction: Prediction) -> None:
        table.pop(key, None)  # what is renewed is forgotten last
        table[key] = prediction
        if len(table) > self.max_keys:
            del table[next(iter(table))]

    def look_up(self, before: int | None, last: int) -> Prediction | None:
        """The row behind both tokens, else behind the last one, else None."""
        near = None if before is None else self._near.get((before, last))
        if near is not None or self.below is None:
            return near or self._far.get(last)
        shared = self.below.look_up(before, last)
        return shared if shared is not None and shared.near else self._far.get(last) or shared
