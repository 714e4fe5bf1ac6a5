"""Throughput: requests that arrive together, at a concurrency or a rate, and what each of them waits.

A *service* is asked for a request and tells of tokens as they come: an engine here, llama.cpp's server there. Times are
its clients': from asking to the first token, and from token to token. It knows nothing of models.
"""

from __future__ import annotations

import contextlib
import queue
import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from ouroboros.bench.markdown import table
from ouroboros.errors import InputError
from ouroboros.stats import quantile, times_per_token

__all__ = ["Arrivals", "Measured", "Service", "Task", "as_rows", "measure", "report"]

SHARES = (0.5, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Task:
    """One request. ``prompt``: token ids; exactly ``new_tokens`` are written."""

    prompt: Sequence[int]
    new_tokens: int
    temperature: float
    seed: int


class Service(Protocol):
    @property
    def name(self) -> str: ...

    def ask(self, task: Task) -> Iterator[int]:
        """How many tokens came, whenever some do. Called from many threads."""
        ...


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When requests come: always so many at once, or so many a second at random (Poisson).

    Raises:
        InputError: neither or both.
    """

    concurrency: int | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        if (self.concurrency is None) == (self.rate is None):
            raise InputError("arrivals have a concurrency or a rate, and not both")
        if self.concurrency is not None and self.concurrency < 1:
            raise InputError(f"a concurrency must be a whole number of at least 1, not {self.concurrency}")
        if self.rate is not None and not 0 < self.rate < 1e6:
            raise InputError(f"a rate must be a number above 0, requests a second, not {self.rate:g}")

    @property
    def label(self) -> str:
        return f"{self.concurrency} at once" if self.rate is None else f"{self.rate:g} a second"


@dataclass(frozen=True, slots=True)
class Measured:
    """What a service did with a list of requests. Times in seconds; quantiles at 50, 95 and 99 %.

    Attributes:
        tokens_per_second: of all requests, from the first asked to the last token. first: from asking to the first
            token. token: of each later token; tokens that come together share the time.
    """

    service: str
    arrivals: str
    temperature: float
    requests: int
    tokens: int
    tokens_per_second: float
    first: tuple[float, ...]
    token: tuple[float, ...]


def measure(service: Service, tasks: Sequence[Task], arrivals: Arrivals, seed: int = 0) -> Measured:
    """Asks for all tasks, each in a thread of its own, and waits for the last.

    Raises:
        OuroborosError: as the service.
    """
    waiting: queue.Queue[tuple[Task, float]] = queue.Queue()
    firsts: list[float] = []
    each: list[float] = []
    ends: list[float] = []
    counts: list[int] = []
    errors: list[BaseException] = []
    lock = threading.Lock()

    def client() -> None:
        with contextlib.suppress(queue.Empty):
            while not errors:
                task, at = waiting.get_nowait()
                time.sleep(max(0.0, at - time.perf_counter()))
                try:
                    steps = list(_timed(service, task))
                except BaseException as error:  # told to who measures
                    errors.append(error)
                    return
                with lock:
                    firsts.append(steps[0][1])
                    each.extend(times_per_token(steps[1:]))
                    counts.append(sum(tokens for tokens, _ in steps))
                    ends.append(time.perf_counter())

    source, at = random.Random(seed), time.perf_counter()
    began = at
    for task in tasks:
        waiting.put((task, at))
        at += 0.0 if arrivals.rate is None else source.expovariate(arrivals.rate)
    threads = [threading.Thread(target=client) for _ in range(arrivals.concurrency or len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    rate = sum(counts) / (max(ends) - began)
    first, token = (tuple(quantile(values, share) for share in SHARES) for values in (firsts, each))
    label, temperature = arrivals.label, tasks[0].temperature
    return Measured(service.name, label, temperature, len(tasks), sum(counts), rate, first, token)


def _timed(service: Service, task: Task) -> Iterator[tuple[int, float]]:
    """Tokens, and seconds since the last ones."""
    last = time.perf_counter()
    for tokens in service.ask(task):
        now = time.perf_counter()
        if tokens:
            yield tokens, now - last
            last = now


def report(found: Sequence[Measured]) -> str:
    """Markdown: one table for each temperature."""
    parts = []
    for temperature in sorted({one.temperature for one in found}):
        rows = [
            [one.service, one.arrivals, f"{one.tokens_per_second:.1f}", _times(one.first), _times(one.token)]
            for one in found
            if one.temperature == temperature
        ]
        head = ["", "requests", "tokens/s", "first token, s: p50 / p95 / p99", "per token, s: p50 / p95 / p99"]
        parts.append(f"Temperature {temperature:g}\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def _times(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.3f}" for value in values)


def as_rows(found: Sequence[Measured]) -> list[dict[str, object]]:
    """For JSON."""
    return [asdict(one) for one in found]
