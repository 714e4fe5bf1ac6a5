"""Machines that are not here: models whose forwards take what a machine would, by a clock that they move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ouroboros.control.cost import Costs, Prior
from ouroboros.control.experience import Control, Experience
from ouroboros.models.base import CausalModel, ScoreRequest, Slot, Work

__all__ = ["MACHINES", "Clock", "Machine", "Shape", "Simulated", "control_of"]


@dataclass
class Clock:
    """Tells ``now``, which whoever takes time adds to."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Shape:
    """T(n) = (M^p + (a·n)^p)^(1/p), in seconds."""

    memory: float
    row: float
    sharp: float = 2.5

    def __call__(self, rows: int) -> float:
        return float((self.memory**self.sharp + (self.row * rows) ** self.sharp) ** (1 / self.sharp))


@dataclass(frozen=True)
class Machine:
    """``factor``: what all forwards take more at a time. ``memory_factor``: the same of what waits for memory alone.
    ``load``: how many times too slow it seemed when it was measured."""

    target: Shape
    draft: Shape
    factor: Callable[[float], float] = lambda now: 1.0
    memory_factor: Callable[[float], float] = lambda now: 1.0
    load: float = 1.0


MACHINES = {
    "fast": Machine(Shape(0.014, 0.0019), Shape(0.002, 0.00025)),
    "slow": Machine(Shape(0.041, 0.0036), Shape(0.007, 0.0012)),
    "two states": Machine(
        Shape(0.0145, 0.0019), Shape(0.0015, 0.0003), memory_factor=lambda now: 1.0 if now % 2 < 1 else 1.55
    ),
    "disturbed at load": Machine(
        Shape(0.041, 0.0036), Shape(0.007, 0.0012), factor=lambda now: 2.5 if now < 0.4 else 1.0, load=2.5
    ),
    "a GPU": Machine(Shape(0.020, 0.00008, 6), Shape(0.004, 0.00002, 6)),
    "7 B": Machine(Shape(0.35, 0.05, 3), Shape(0.03, 0.004, 3)),
}


@dataclass
class Simulated:
    """A model whose forwards take what a shape says; ``junk``: its logits are noise."""

    inner: CausalModel
    shape: Callable[[int], float]
    clock: Clock
    machine: Machine | None = None
    junk: bool = False
    work: list[int] = field(default_factory=list)  # rows of each forward

    @property
    def info(self) -> Any:
        return self.inner.info

    def open(self) -> Slot:
        return self.inner.open()

    def prefill(self, slot: Slot, token_ids: Sequence[int]) -> None:
        self._take(len(token_ids))
        self.inner.prefill(slot, token_ids)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        rows = sum(len(r.tree) - r.slot.pending + len(r.catch_up) for r in requests)
        self._take(rows)
        found = self.inner.score(requests)
        if not self.junk:
            return found
        return [torch.randn(x.shape, generator=torch.Generator().manual_seed(rows)) for x in found]

    def _take(self, rows: int) -> None:
        self.work.append(rows)
        self.clock.now += self.seconds(rows)

    def seconds(self, rows: int) -> float:
        """Of a forward now."""
        machine = self.machine
        if machine is None or not isinstance(self.shape, Shape):
            return self.shape(rows)
        now = self.clock.now
        slower = Shape(self.shape.memory * machine.memory_factor(now), self.shape.row, self.shape.sharp)
        return machine.factor(now) * slower(rows)


def control_of(*models: Simulated, experience: Experience | None = None, certain: bool = False) -> Control:
    """What is known of these models at first: as if the machine had been measured, in part wrongly; or ``certain``."""
    control = Control()
    if experience is not None:
        control.experience.default_factory = lambda: experience
    for model in models:
        load = 1.0 if model.machine is None else model.machine.load
        times = [(n, 1, load * model.shape(n)) for n in (1, 2, 4, 8, 16)]
        known = Costs.fitted(Work(), times)
        if not certain:
            prior = known.prior
            known = Costs(Work(), Prior(0.7 * prior.memory, 1.4 * prior.row, prior.exponent))
        control._costs[type(model), model.info] = known
    return control
