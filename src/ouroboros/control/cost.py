"""T(n, context): what a forward over n new rows costs, as a shape that learns from every forward.

A forward waits for memory, M seconds, while it reads the weights; its arithmetic takes a·n^q beside that, and they hide
each other in part: T(n)² = M² + (a·n^q)². Three numbers, log M, log a and q, are corrected by each forward that is made
(an extended Kalman filter over log T; Kalman 1960, Jazwinski 1970), old ones are forgotten, and what is far off the
expected counts for little: a disturbance makes a forward slower, never faster. So T never falls in n, and rows that
nobody has measured cost what the arithmetic says. What the context adds to M and a follows from the model's shapes.
Beyond ``READING`` rows, where text is read and not checked, each row has a price of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ouroboros.models.base import Work

__all__ = ["Costs", "Prior"]

READING = 64  # rows: the largest trees; longer forwards read text
# Standard deviations, of natural logarithms but for q. Forwards of one size differ by some 8 % on a quiet machine
# (docs/LOG.md, T(n) of the first real pair).
NOISE = 0.08
SLOWER, FASTER = 1.5, 4.0  # deviations at which an observation stops counting for more
# From one forward to the next: of both speeds together (other programs, clock rates), of memory's alone, of
# arithmetic's, and of the exponent. Chosen on simulated machines (tests/test_cost.py).
TOGETHER, MEMORY, ARITHMETIC, EXPONENT = 0.05, 0.03, 0.03, 0.02
LOWEST, HIGHEST = 0.5, 1.3  # of the exponent
TOWARDS = 0.3  # of the way to what a long forward took, for each


@dataclass(frozen=True, slots=True)
class Prior:
    """What T(n) is taken for before any forward: ``memory`` (M) and ``row`` (a) in seconds, the exponent q, and how
    unsure that is: standard deviations of log M, log a and q."""

    memory: float
    row: float
    exponent: float = 1.05
    unsure: tuple[float, float, float] = (0.3, 1.0, 0.08)


class Costs:
    """T(n, context) of one model.

    Args:
        work: how the context adds to a forward. prior: before any forward.
    """

    def __init__(self, work: Work, prior: Prior) -> None:
        self.seen = 0
        self._first = prior
        self._x = [math.log(prior.memory), math.log(prior.row), prior.exponent]
        self._most = [s * s for s in prior.unsure]
        self._p = [[self._most[i] if i == j else 0.0 for j in range(3)] for i in range(3)]
        self._context_bytes = work.cache_bytes / work.bytes if work.bytes else 0.0
        self._context_products = work.cache_products / work.products if work.products else 0.0
        self._reading = 1.0  # what a row beyond READING takes, over what the shape says

    @classmethod
    def fitted(cls, work: Work, points: Sequence[tuple[int, int, float]]) -> Costs:
        """From measured (rows, context, seconds), small forwards and large ones alike; the more certain for it."""
        few, many = min(points), max(points)
        found = cls(work, Prior(max(few[2], 1e-7), max(many[2] / many[0], 1e-9)))
        for _ in range(8):
            for point in points:
                found.observe(*point)
        return found

    @property
    def prior(self) -> Prior:
        """What is known now, to begin with in another process."""
        return Prior(math.exp(self._x[0]), math.exp(self._x[1]), self._x[2])

    @property
    def doubt(self) -> float:
        """How far, as a factor, memory or arithmetic are now from what they were taken for at first."""
        now = self.prior
        return math.exp(
            max(abs(math.log(now.memory / self._first.memory)), abs(math.log(now.row / self._first.row)) / 2)
        )

    def seconds(self, rows: int, context: int) -> float:
        """Of a forward over ``rows`` rows behind ``context`` cached positions; 0 for no rows."""
        if rows < 1:
            return 0.0
        waits, computes = self._parts(min(rows, READING), context)
        least = math.sqrt(waits + computes)
        return least if rows <= READING else least + (rows - READING) * self._reading * self._each(context)

    def _parts(self, rows: int, context: int) -> tuple[float, float]:
        """The squares of what memory and arithmetic take."""
        memory, row, exponent = self._x
        waits = math.exp(memory) * (1 + context * self._context_bytes)
        computes = math.exp(row + exponent * math.log(rows)) * (1 + context * self._context_products)
        return waits * waits, computes * computes

    def _each(self, context: int) -> float:
        """Seconds of one more row, at READING rows."""
        waits, computes = self._parts(READING, context)
        return self._x[2] * computes / (READING * math.sqrt(waits + computes))

    def observe(self, rows: int, context: int, seconds: float) -> None:
        """A forward took so long."""
        if rows < 1 or not 0 < seconds < math.inf:
            return
        if rows > 2 * READING:
            left = max(seconds - self.seconds(READING, context), 0.1 * seconds)
            ratio = left / ((rows - READING) * self._each(context))
            self._reading *= min(max(ratio / self._reading, 0.2), 5.0) ** TOWARDS
            return
        self.seen += 1
        waits, computes = self._parts(rows, context)
        share = computes / (waits + computes)
        h = (1 - share, share, share * math.log(rows))
        p = self._forget()
        ph = [p[i][0] * h[0] + p[i][1] * h[1] + p[i][2] * h[2] for i in range(3)]
        spread = h[0] * ph[0] + h[1] * ph[1] + h[2] * ph[2] + NOISE * NOISE
        off = math.log(seconds) - 0.5 * math.log(waits + computes)
        deviation = math.sqrt(spread)
        off = min(max(off, -FASTER * deviation), SLOWER * deviation)
        for i in range(3):
            self._x[i] += ph[i] / spread * off
            for j in range(3):
                p[i][j] -= ph[i] * ph[j] / spread
        self._x[2] = min(max(self._x[2], LOWEST), HIGHEST)

    def _forget(self) -> list[list[float]]:
        """The covariance as it is before the next forward: less certain than behind the last one, never less than it
        was at first."""
        p, both = self._p, TOGETHER * TOGETHER
        for i, own in enumerate((MEMORY, ARITHMETIC, EXPONENT)):
            p[i][i] += own * own + (both if i < 2 else 0.0)
        p[0][1] += both
        p[1][0] += both
        for i in range(3):
            if p[i][i] > self._most[i]:
                shrink = math.sqrt(self._most[i] / p[i][i])
                for j in range(3):
                    p[i][j] *= shrink
                    p[j][i] *= shrink
        return p
