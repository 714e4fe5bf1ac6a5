"""T(n) of a pair as lists by number of rows: at the context at hand, at the speed that memory has now."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from ouroboros.control.cost import CostProfile, Costs
from ouroboros.control.memory import MemorySpeed, ratio, shifted

__all__ = ["ROWS", "Tables", "at"]

ROWS = 256  # forwards over more rows are priced on the last slope
HANDLING = 1e-4  # seconds that a row of the target costs around its forward: look-ups, draws, what is learned


class Tables:
    """Of one request; ``follow`` is called once a step.

    Args:
        costs: of both models. memory: how fast it is now; None where T(n) stays as it was measured.

    Attributes:
        target, draft: seconds of a forward over n rows, for n = 0 … ``ROWS``, never falling; the target's with what is
            done for each row around it.
    """

    def __init__(self, costs: Costs, memory: MemorySpeed | None) -> None:
        self.target: list[float] = []
        self.draft: list[float] = []
        self._costs = costs
        self._memory = memory
        self._context, self._ratios = 0, (1.0, 1.0)

    def follow(self, context: int) -> None:
        """``context``: tokens in the cache."""
        both = self._costs.target, self._costs.draft
        now = None if self._memory is None else self._memory.now()
        ratios = ratio(now, both[0].memory), ratio(now, both[1].memory)
        if context > 1.25 * self._context or ratios != self._ratios:
            self._context, self._ratios = max(context, self._context), ratios
            near = round(self._context, 1 - len(str(self._context)))  # its first digit, so that few tables are made
            self.target = _table(both[0], near, ratios[0], HANDLING)
            self.draft = _table(both[1], near, ratios[1], 0.0)


def at(table: Sequence[float], rows: int) -> float:
    """Seconds of a forward over ``rows`` rows, beyond the table on its last slope."""
    last = len(table) - 1
    if rows <= last:
        return table[rows]
    return table[last] + (rows - last) * (table[last] - table[last // 2]) / (last - last // 2)


@functools.lru_cache(maxsize=256)
def _table(profile: CostProfile, context: int, memory: float, handling: float) -> list[float]:
    """Seconds by number of rows, never falling: where noise made more rows cheaper they are not. ``memory``: what it
    takes now over what it took when they were measured. ``handling``: of each row, beside its forward."""
    found = [0.0]
    for rows in range(1, ROWS + 1):
        found.append(max(found[-1], profile.cost(rows, context)))
    return [seconds + rows * handling for rows, seconds in enumerate(shifted(found, memory))]
