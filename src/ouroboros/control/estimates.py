"""How often guesses prove right: what the controller knows of acceptance, learned from what the target wrote.

A guess comes with a number of its own, the draft model's probability or a phrase's rate, which is biased: the draft is
too sure or not sure enough, in another way for each kind of guess. ``Calibration`` keeps, for each kind and range of
that number, how often such guesses were right. A request learns for itself, beginning with what the requests before it
learned. It knows nothing of trees or models.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from enum import IntEnum

__all__ = ["SAID", "Calibration", "Evidence", "RunningMean"]

EDGES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
OWN_PRIOR = 12.0  # observations that earlier requests count for
RAW_PRIOR = 6.0  # observations that the guess's own number counts for
MEMORY = 400.0  # observations of a range, after which older ones fade


class RunningMean:
    """The mean result of trials, which follows changes: old trials fade beyond ``memory`` of them.

    Args:
        value: what it is taken for before any trial. weight: trials that this counts for.
    """

    __slots__ = ("_memory", "_seen", "_yield")

    def __init__(self, value: float, weight: float, memory: float) -> None:
        self._memory = memory
        self._seen = weight
        self._yield = weight * value

    @property
    def value(self) -> float:
        return self._yield / self._seen

    def learn(self, result: float, trials: float = 1) -> None:
        self._seen += trials
        self._yield += result
        if self._seen > self._memory:
            self._seen /= 2
            self._yield /= 2


class Evidence(IntEnum):
    """What speaks for a token."""

    FIRST = 0  # the draft model's first choice
    OTHER = 1  # another choice of the draft model's
    BOTH_FIRST = 2  # the pool, and it is the draft model's first choice
    BOTH_OTHER = 3  # the pool, and it is another choice of the draft model's
    PHRASE = 4  # the pool alone, the draft model has not looked: a phrase behind one matching token
    PHRASE_2 = 5  # behind two
    PHRASE_3 = 6
    PHRASE_4 = 7  # or five
    PHRASE_6 = 8  # to eight
    PHRASE_9 = 9  # and more
    AGAINST = 10  # a phrase, where the target's prediction behind the same two tokens guesses otherwise
    RECYCLED = 11  # what the target predicted behind the same two tokens: with this request's noise its first choice
    RECYCLED_OTHER = 12
    RECYCLED_FAR = 13  # behind the same one token
    RECYCLED_FAR_OTHER = 14
    PHRASE_16 = 15


# What such guesses' own number is multiplied by before any was counted: how often they were right over what they said,
# Qwen2.5-Coder 1.5 B and 0.5 B on chat prompts, greedy and at temperature 0.8 (docs/LOG.md). Others count as they are.
SAID = {
    Evidence.PHRASE: 0.3,
    Evidence.PHRASE_2: 0.5,
    Evidence.PHRASE_3: 0.5,
    Evidence.PHRASE_4: 0.7,
    Evidence.PHRASE_9: 1.08,
    Evidence.RECYCLED_FAR: 0.45,
    Evidence.RECYCLED_FAR_OTHER: 0.3,
}


class Calibration:
    """From (kind of evidence, its own number) to the chance of being right.

    Args:
        before: what earlier requests have learned; it learns along. None for the first.
        said: for the first, what guesses' own number is multiplied by before any was counted.
    """

    def __init__(self, before: Calibration | None = None, said: Mapping[Evidence, float] | None = None) -> None:
        size = len(Evidence) * (len(EDGES) + 1)
        self._before = before
        self._said = said or {}
        self._seen = [0.0] * size
        self._right = [0.0] * size
        self._lines: list[tuple[float, float] | None] = [None] * size  # chance = a + b × number; None: not computed yet

    def chance(self, evidence: Evidence, number: float) -> float:
        """The chance, 0 … 1, that a token with this evidence follows, if all tokens above it do."""
        place = evidence * (len(EDGES) + 1) + bisect.bisect_right(EDGES, number)
        line = self._lines[place]
        if line is None:
            line = self._lines[place] = self._line(place)
        return line[0] + line[1] * number

    def _line(self, place: int) -> tuple[float, float]:
        before = self._before or self
        right, seen = self._right[place], self._seen[place]
        others = max(before._seen[place] - seen, 0.0)  # what this one has seen is among what those before know
        known = min(max(before._right[place] - right, 0.0), others)
        share = min(1.0, OWN_PRIOR / (others + RAW_PRIOR))  # that counts for ``OWN_PRIOR`` observations at most
        count = seen + share * (others + RAW_PRIOR)
        said = before._said.get(Evidence(place // (len(EDGES) + 1)), 1.0)
        return (right + share * known) / count, share * said * RAW_PRIOR / count

    def learn(self, evidence: Evidence, number: float, right: bool) -> None:
        place = evidence * (len(EDGES) + 1) + bisect.bisect_right(EDGES, number)
        known: Calibration | None = self
        while known is not None:
            known._seen[place] += 1
            known._right[place] += right
            if known._seen[place] > MEMORY:
                known._seen[place] /= 2
                known._right[place] /= 2
            known._lines[place] = None
            known = known._before
