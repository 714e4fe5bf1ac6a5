"""What a request needs of models, as values: decoding and drafting are generators that yield needs and get answers.

A flow does no work of its own: it does not call a model, read a clock or know who else is being served. Whoever drives
it (decoding/run.py for one request) makes the forwards and answers. This file knows nothing of drafting.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ouroboros.models.base import CausalModel, ScoreRequest, Slot
from ouroboros.models.context import Context

__all__ = ["Answer", "Flow", "Meter", "Need", "Prefill", "Score", "metered", "read"]

T = TypeVar("T")
NO_ROWS = torch.empty((0, 0))


@dataclass(frozen=True, slots=True)
class Prefill:
    """``tokens`` are to be appended to the committed rows of ``slot``; no logits are wanted."""

    model: CausalModel
    slot: Slot
    tokens: Sequence[int]

    @property
    def rows(self) -> int:
        """New rows of the forward."""
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class Score:
    """A tree is to be scored."""

    model: CausalModel
    request: ScoreRequest

    @property
    def slot(self) -> Slot:
        return self.request.slot

    @property
    def rows(self) -> int:
        """New rows of the forward. Asked before it is made: afterwards there are none."""
        request = self.request
        return len(request.tree) - request.slot.pending + len(request.catch_up)


Need = Prefill | Score


@dataclass(frozen=True, slots=True)
class Answer:
    """What a forward gave.

    Attributes:
        logits_RV: the target's or draft's logits behind the wanted rows; empty for a prefill. seconds: of the whole
            forward. rows: that it had in all, those of other requests too. around: seconds that the flow itself took
            since its last answer, until it asked.
    """

    logits_RV: Tensor = NO_ROWS
    seconds: float = 0.0
    rows: int = 0
    around: float = 0.0


Flow = Generator[Any, Any, T]  # yields Need, and receives an Answer to each; the decoding loop yields its steps too


@dataclass(slots=True)
class Meter:
    """Counts what passes by. ``forwards``: scored, prefills not counted. ``seconds``: of all, and around them."""

    forwards: int = 0
    seconds: float = 0.0

    def add(self, answer: Answer) -> None:
        self.seconds += answer.around + answer.seconds


def metered(flow: Flow[T], meter: Meter) -> Flow[T]:
    """The same flow; ``meter`` counts its needs and answers."""
    answer: Answer | None = None
    try:
        while True:
            need = flow.send(answer)
            answer = yield need
            meter.forwards += isinstance(need, Score)
            meter.add(answer)
    except StopIteration as stop:
        result: T = stop.value
        return result


def read(context: Context, sequence: Sequence[int]) -> Flow[None]:
    """Brings a context to ``sequence`` without its last token, computing what is missing."""
    missing = context.follow(sequence)
    if missing:
        yield Prefill(context.model, context.slot, missing)
