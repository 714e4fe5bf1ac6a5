"""The driver of one request: makes the forwards that its flow needs, one after the other, and times them.

The clock is read here and nowhere below. Whoever serves many requests at once drives many such flows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import replace

import torch
from torch import Tensor

from ouroboros.decoding.loop import Begun, Event, Step
from ouroboros.flow import NO_ROWS, Answer, Flow, Need, Prefill

__all__ = ["Observe", "forward", "run"]

Observe = Callable[[Need, int, float], object]  # a need, the forward's rows, its seconds: what costs learn from


def forward(need: Need) -> Tensor:
    """Makes the forward that one need asks for, and waits for the device. Returns the logits of the wanted rows."""
    logits_RV = NO_ROWS
    if isinstance(need, Prefill):
        need.model.prefill(need.slot, need.tokens)
    else:
        logits_RV = need.model.score([need.request])[0]
    if need.model.info.device.startswith("cuda"):
        torch.cuda.synchronize(need.model.info.device)
    return logits_RV


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
            observe(need, rows, after - now)
            answer = Answer(logits_RV, after - now, rows, now - last)
            last = clock()
    except StopIteration:
        return
    finally:
        flow.close()
