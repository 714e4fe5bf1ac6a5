"""Requests that begin together and are waited for together: a list of prompts, the samples of one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from ouroboros.decoding.loop import Event
from ouroboros.serving.scheduler import Scheduler
from ouroboros.stream import GenerationResult, Transcript

__all__ = ["Written", "run_all"]


class Written:
    """See job.Sink: what a request writes is kept in its transcript. ``error``: what ended it, if anything did."""

    def __init__(self, transcript: Transcript) -> None:
        self.transcript = transcript
        self.error: Exception | None = None

    def take(self, event: Event) -> bool:
        self.transcript.take(event)
        return not self.transcript.stopped

    def end(self, error: Exception | None, cancelled: bool) -> None:
        self.error = error
        self.transcript.end(cancelled)


def run_all(
    scheduler: Scheduler, written: Sequence[Written], lock: AbstractContextManager[object]
) -> list[GenerationResult]:
    """What each of these requests of the scheduler wrote; ``lock`` is held in each round. The first error ends all."""
    while not scheduler.idle:
        with lock:
            scheduler.step()
        for one in written:
            if one.error is not None:
                for job in (*scheduler.running, *scheduler.waiting):
                    scheduler.cancel(job)
                with lock:
                    scheduler.step()
                raise one.error
    results = [one.transcript.result for one in written]
    return [result for result in results if result is not None]
