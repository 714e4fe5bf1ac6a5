"""The driver of one request: makes the forwards that its flow needs, one after the other, and times them.

The clock is read here and nowhere below. Many requests at once are driven by serving/scheduler.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor

from ouroboros.decoding.loop import Begun, Event, Step
from ouroboros.flow import NO_ROWS, Answer, Flow, Need, Prefill
from ouroboros.models.base import CausalModel

__all__ = ["Observe", "forward", "locked", "run", "wait_for"]

# A model, its forward's rows, the cached positions that they see, its seconds: what costs learn from.
Observe = Callable[[CausalModel, int, int, float], object]


def forward(need: Need) -> Tensor:
    """Makes the forward that one need asks for, and waits for the device. Returns the logits of the wanted rows."""
    logits_RV = NO_ROWS
    if isinstance(need, Prefill):
        need.model.prefill(need.slot, need.tokens)
    else:
        logits_RV = need.model.score([need.request])[0]
    wait_for(need.model)
    return logits_RV


def wait_for(model: CausalModel) -> None:
    """Until the device has computed what it was given."""
    if model.info.device.startswith("cuda"):
        torch.cuda.synchronize(model.info.device)


def locked(events: Generator[Event], lock: AbstractContextManager[object]) -> Generator[Event]:
    """The same events; ``lock`` is held while each comes about, so that threads take turns."""
    try:
        while True:
            with lock:
                event = next(events, None)
            if event is None:
                return
            yield event
    finally:
        with lock:
            events.close()


def run(
    flow: Flow[None], clock: Callable[[], float] = time.perf_counter, observe: Observe = lambda *told: None
) -> Generator[Event]:
    """The events of a decoding flow, as they happen; closing it closes the flow.

    Args:
        clock: seconds. observe: is told of each forward.
    """
    answer: Answer | None = None
    try:
        began = last = clock()
        while True:
            need = flow.send(answer)
            now = clock()
            if isinstance(need, Begun | Step):
                yield replace(need, seconds=now - began)
                began = last = clock()  # what the consumer did meanwhile is not the step's
                answer = None
                continue
            rows = need.rows
            logits_RV = forward(need)
            after = clock()
            observe(need.model, rows, need.slot.length, after - now)
            answer = Answer(logits_RV, after - now, rows, now - last)
            last = clock()
    except StopIteration:
        return
    finally:
        flow.close()
