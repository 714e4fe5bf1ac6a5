"""Many GPUs that are not here: simulated, event by event, each as fast as one was with so many requests at once.

A request comes to one GPU, reads what that GPU does not hold of its prompt, and writes its tokens beside the others'.
While some requests write, reading takes half of the time (serving/pace.py). Requests are turns of chats: each begins
with all of the chat so far, which the GPU that wrote the last turn has in its caches, if it has not let go of it.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from random import Random

from ouroboros.stats import quantile

__all__ = ["POLICIES", "Curve", "Served", "Traffic", "simulate"]

MOST = 128  # requests that one GPU runs at once
KEPT = 160_000  # positions that fit into its caches
PLACES = 64  # of one GPU on the ring


@dataclass(frozen=True, slots=True)
class Curve:
    """How fast one GPU is. ``rates``: tokens per second of all requests together, by how many there are. ``reading``:
    seconds of a token of a prompt."""

    rates: Mapping[int, float]
    reading: float

    def table(self) -> list[float]:
        """Tokens per second of each request, by how many write; between measured numbers on a line."""
        known = sorted(self.rates)
        found = [0.0]
        for n in range(1, MOST + 1):
            place = min(max(bisect(known, n) - 1, 0), len(known) - 2)
            low, high = known[place], known[place + 1]
            share = min(1.0, (n - low) / (high - low))
            found.append((self.rates[low] + share * (self.rates[high] - self.rates[low])) / n)
        return found


@dataclass(frozen=True, slots=True)
class Traffic:
    """Chats that come at random, and their turns. Lengths are exponential around their means.

    Attributes:
        turns: of a chat. first: tokens of its first message, a document; question: of each later one. answer: new
            tokens. pause: seconds between an answer and the next question. bursty: whether chats come 3.4 times as
            often for 5 of 25 seconds, and 0.4 times as often in between.
    """

    turns: float = 5.0
    first: float = 1200.0
    question: float = 60.0
    answer: float = 200.0
    pause: float = 10.0
    bursty: bool = False

    def starts(self, rate: float, seconds: float, source: Random) -> Iterator[float]:
        """When chats begin; ``rate``: requests a second."""
        at, burst, until = 0.0, False, source.expovariate(1 / 20)
        chats = rate / self.turns
        while at < seconds:
            step = source.expovariate(chats * ((3.4 if burst else 0.4) if self.bursty else 1.0))
            if self.bursty and at + step > until:
                at, burst = until, not burst
                until += source.expovariate(1 / 5 if burst else 1 / 20)
                continue
            at += step
            yield at


@dataclass(slots=True)
class Turn:
    """A request: ``held`` tokens of chat before it, ``new`` tokens of prompt, ``tokens`` to write."""

    chat: int
    left: int
    held: int
    new: int
    tokens: int
    came: float
    begun: float = 0.0
    unread: int = 0


class GPU:
    """``read`` and ``writing`` advance with time; ``done``: tokens that each request that writes has written since the
    beginning, so that one ends where this reaches its mark."""

    __slots__ = ("cache", "done", "marks", "now", "number", "reading", "size", "version", "waiting")

    def __init__(self, number: int) -> None:
        self.number, self.now, self.done, self.version, self.size = number, 0.0, 0.0, 0, 0
        self.waiting: deque[Turn] = deque()
        self.reading: deque[list[float | Turn]] = deque()  # [seconds left, turn]
        self.marks: list[tuple[float, int, Turn]] = []
        self.cache: OrderedDict[int, int] = OrderedDict()  # chat → positions

    @property
    def load(self) -> int:
        return len(self.waiting) + len(self.reading) + len(self.marks)

    def take(self, turn: Turn, reading: float) -> None:
        """A request is let in."""
        held = min(self.cache.pop(turn.chat, 0), turn.held)
        self.size -= held
        turn.unread = turn.held + turn.new - held
        self.reading.append([turn.unread * reading, turn])

    def keep(self, turn: Turn) -> None:
        """A request has ended; what its chat has now stays, as long as there is room."""
        size = turn.held + turn.new + turn.tokens
        self.cache[turn.chat] = size
        self.size += size
        while self.size > KEPT and len(self.cache) > 1:
            self.size -= self.cache.popitem(last=False)[1]


Policy = Callable[[list[GPU], Turn, Random], GPU]


def round_robin() -> Policy:
    turns = count()
    return lambda gpus, turn, source: gpus[next(turns) % len(gpus)]


def least_of_two() -> Policy:
    def choose(gpus: list[GPU], turn: Turn, source: Random) -> GPU:
        one, other = source.choice(gpus), source.choice(gpus)
        return one if one.load <= other.load else other

    return choose


def by_prefix() -> Policy:
    """The chat's place on a ring; the next ones, if that GPU has no room."""
    ring: list[tuple[float, int]] = []

    def choose(gpus: list[GPU], turn: Turn, source: Random) -> GPU:
        if not ring:
            ring.extend(sorted((Random(f"{i}/{j}").random(), i) for i in range(len(gpus)) for j in range(PLACES)))
        place = bisect(ring, (Random(turn.chat).random(), 0))
        first = gpus[ring[place % len(ring)][1]]
        for step in range(len(ring)):
            gpu = gpus[ring[(place + step) % len(ring)][1]]
            if gpu.load < MOST:
                return gpu
        return first

    return choose


POLICIES: dict[str, Callable[[], Policy]] = {
    "round robin": round_robin,
    "less loaded of two": least_of_two,
    "by prefix": by_prefix,
}


@dataclass(frozen=True, slots=True)
class Served:
    """Seconds at 50 and 95 % of the requests: ``first``, from coming to having read its prompt; ``token``, for each
    token. ``cached``: share of prompt tokens that were found. ``tokens``: per second and GPU."""

    requests: int
    first: tuple[float, float]
    token: tuple[float, float]
    cached: float
    tokens: float


def simulate(
    curve: Curve, gpus: int, rate: float, seconds: float, traffic: Traffic, policy: Policy, seed: int = 0
) -> Served:
    """``rate``: requests a second and GPU. The first third of the time is not counted."""
    source = Random(seed)
    speeds, each = curve.table(), [GPU(i) for i in range(gpus)]
    order = count()
    events: list[tuple[float, int, int, object]] = []  # second, order, version, what: a turn comes, or a GPU has news

    def length(mean: float) -> int:
        return max(1, round(source.expovariate(1 / mean)))

    for chat, at in enumerate(traffic.starts(rate * gpus, seconds, source)):
        left = 1
        while source.random() > 1 / traffic.turns:
            left += 1
        turn = Turn(chat, left, 0, length(traffic.first), length(traffic.answer), at)
        heapq.heappush(events, (at, next(order), 0, turn))

    def advance(gpu: GPU, now: float) -> None:
        passed, writing = now - gpu.now, len(gpu.marks)
        gpu.now = now
        if gpu.reading:
            half = 0.5 if writing else 1.0
            gpu.reading[0][0] -= passed * half  # type: ignore[operator]
            gpu.done += passed * (1 - half) * speeds[writing]
        else:
            gpu.done += passed * speeds[writing]

    def plan(gpu: GPU) -> None:
        """Tells when something happens next, if nothing comes."""
        while gpu.waiting and len(gpu.reading) + len(gpu.marks) < MOST:
            gpu.take(gpu.waiting.popleft(), curve.reading)
        gpu.version += 1
        share = 0.5 if gpu.reading and gpu.marks else 1.0
        times = []
        if gpu.reading:
            times.append(max(0.0, gpu.reading[0][0]) / share)  # type: ignore[operator,type-var]
        if gpu.marks:
            times.append(max(0.0, gpu.marks[0][0] - gpu.done) / (share * speeds[len(gpu.marks)]))
        if times:
            heapq.heappush(events, (gpu.now + min(times), next(order), gpu.version, gpu))

    firsts: list[float] = []
    tokens: list[float] = []
    found = asked = written = 0
    while events:
        now, _, version, what = heapq.heappop(events)
        if now > seconds:
            break
        if isinstance(what, Turn):
            gpu = policy(each, what, source)
            advance(gpu, now)
            gpu.waiting.append(what)
            plan(gpu)
            continue
        assert isinstance(what, GPU)
        gpu = what
        if version != gpu.version:
            continue
        advance(gpu, now)
        while gpu.reading and gpu.reading[0][0] <= 1e-9:  # type: ignore[operator]
            _, reader = gpu.reading.popleft()
            assert isinstance(reader, Turn)
            turn = reader
            turn.begun = now
            heapq.heappush(gpu.marks, (gpu.done + turn.tokens, next(order), turn))
            if turn.came > seconds / 3:
                firsts.append(now - turn.came)
                found += turn.held + turn.new - turn.unread
                asked += turn.held + turn.new
        while gpu.marks and gpu.marks[0][0] <= gpu.done + 1e-6:
            _, _, turn = heapq.heappop(gpu.marks)
            gpu.keep(turn)
            if turn.came > seconds / 3:
                tokens.append((now - turn.begun) / turn.tokens)
            written += turn.tokens if now > seconds / 3 else 0
            if turn.left > 1:
                later = now + source.expovariate(1 / traffic.pause)
                held = turn.held + turn.new + turn.tokens
                following = Turn(
                    turn.chat, turn.left - 1, held, length(traffic.question), length(traffic.answer), later
                )
                heapq.heappush(events, (later, next(order), 0, following))
        plan(gpu)
    if not firsts or not tokens:
        return Served(0, (math.inf, math.inf), (math.inf, math.inf), 0.0, 0.0)
    first, token = ((quantile(values, 0.5), quantile(values, 0.95)) for values in (firsts, tokens))
    return Served(len(firsts), first, token, found / max(1, asked), written / (seconds * 2 / 3 * gpus))
