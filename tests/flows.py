"""A flow's answers, for tests: each need is answered at once."""

from __future__ import annotations

from typing import TypeVar

from ouroboros.decoding.run import forward
from ouroboros.flow import Answer, Flow

__all__ = ["drive"]

T = TypeVar("T")


def drive(flow: Flow[T]) -> T:
    """What the flow returns."""
    answer: Answer | None = None
    while True:
        try:
            need = flow.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result
        rows = need.rows
        answer = Answer(forward(need), 0.01, rows)
