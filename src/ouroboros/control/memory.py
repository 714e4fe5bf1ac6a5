"""How fast memory is now, and what T(n) is then.

On a shared machine the memory's speed changes by half from one second to the next, with what other guests read and with
the cores that ours is moved to. A forward over few rows waits for memory, one over many for arithmetic; so T(n) changes
its shape, and with it the best number of rows. A short read beside the forwards tells how fast memory is; what it took
while T(n) was measured is part of the profile.
"""

from __future__ import annotations

import functools
import math
import time
from collections import deque
from collections.abc import Sequence

import torch

from ouroboros.kernels.library import library

__all__ = ["MemorySpeed", "leasts", "memory_speed", "ratio", "shifted"]

SIZE = 16 << 20  # bytes, more than what a forward of a large model leaves of them in the caches
EVERY = 0.25  # seconds between reads: a thousandth of the time goes into them
KEPT = 3  # reads of which the fastest counts: another program in the way makes one slower, nothing makes it faster
STEP, FASTEST = 1.1, 4.0  # of one time over another: in steps, so that few tables are made, and at most
BEND = 6  # how sharply T(n) turns from waiting for memory to arithmetic


class MemorySpeed:
    """Reads a piece of memory of its own now and then. Times are seconds a read, with as many threads as forwards."""

    def __init__(self) -> None:
        self._words = torch.ones(SIZE // 4)  # zeros might be one page of memory
        self._seen: deque[float] = deque(maxlen=KEPT)
        self._last = -1e9
        self._least = 0.0

    def read(self) -> float:
        """Reads it once."""
        kernels = library()
        began = time.perf_counter()
        if isinstance(kernels, str):
            self._words.sum().item()
        else:
            kernels.ouroboros_read(self._words.data_ptr(), SIZE, torch.get_num_threads())
        return time.perf_counter() - began

    def now(self) -> float:
        """The least of the last few reads, of which one is made if the newest is old."""
        if time.perf_counter() - self._last > EVERY:
            self._seen.append(self.read())
            self._last = time.perf_counter()
            self._least = min(self._seen)
        return self._least


def leasts(reads: Sequence[float]) -> list[float]:
    """What ``MemorySpeed.now`` would have said behind each of these reads that has enough before it."""
    return [min(reads[i : i + KEPT]) for i in range(max(1, len(reads) - KEPT + 1))]


@functools.cache
def memory_speed() -> MemorySpeed:
    """That of this process's processor."""
    return MemorySpeed()


def ratio(now: float | None, before: float | None) -> float:
    """Of two times for reading memory, rounded to ``STEP``; 1 where one of them is not known."""
    if not now or not before:
        return 1.0
    return STEP ** round(math.log(min(max(now / before, 1 / FASTEST), FASTEST), STEP))


def shifted(seconds: Sequence[float], ratio: float) -> list[float]:
    """T(n) for n = 0, 1, 2, … where reading takes ``ratio`` times what it took when it was measured.

    A forward of one row is taken to wait for memory alone, M; one of n rows for M and for arithmetic A(n), of which the
    longer hides most of the shorter: T(n)^6 = M^6 + A(n)^6.
    """
    if ratio == 1 or len(seconds) < 2:
        return list(seconds)
    one = seconds[1] ** BEND
    return [seconds[0], *((max(t**BEND - one, 0.0) + one * ratio**BEND) ** (1 / BEND) for t in seconds[1:])]
