"""One GPU that is not here, served by the real scheduler: simulated, and called so wherever its figures stand.

Tokens, trees and verdicts are the embedded pair's, computed as always; what a forward takes comes from the roofline of
a published pair's shapes and moves a clock that scheduler, controller and statistics read in place of the real one.
What happens around the forwards takes no time here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from torch import Tensor

import ouroboros
from ouroboros.bench.timed import VirtualClock
from ouroboros.config import SamplingParams, options_for
from ouroboros.control.experience import Control
from ouroboros.control.profile import CostProfile, PairProfile, describe
from ouroboros.decoding.loop import Event, Step
from ouroboros.models.base import CausalModel, ScoreRequest, Slot, Work
from ouroboros.phrases.memory import Memory
from ouroboros.serving.caches import CacheStore
from ouroboros.serving.scheduler import Scheduler

__all__ = ["CARDS", "YI_6B", "YI_34B", "Ask", "Card", "Run", "Shape", "Virtual", "asks", "decoder_of", "serve"]

LAYER = 20e-6  # seconds around a layer's work, launches in a graph: an assumption
MOST = 256  # requests at once, where they come as they come
ROWS = (1, 8, 64, 128, 256, 512)  # of the T(n) that the controller begins with
PROMPTS = Path(__file__).parent / "data" / "humaneval.jsonl"


@dataclass(frozen=True, slots=True)
class Card:
    """By its data sheet: ``bandwidth`` bytes a second, ``arithmetic`` bf16 operations a second."""

    name: str
    bandwidth: float
    arithmetic: float


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's, in bf16. ``cache``: bytes of a position's keys and values."""

    parameters: float
    layers: int
    cache: int

    def seconds(self, card: Card, rows: int, cached: int) -> float:
        """Of a forward over ``rows`` rows that reads ``cached`` positions: what takes longer, bytes or arithmetic."""
        reading = (2 * self.parameters + cached * self.cache) / card.bandwidth
        return self.layers * LAYER + max(reading, rows * 2 * self.parameters / card.arithmetic)


CARDS = {"a100": Card("A100 80 GB", 2.039e12, 312e12), "h200": Card("H200", 4.8e12, 989e12)}
YI_34B = Shape(34.4e9, 60, 60 * 2 * 8 * 128 * 2)
YI_6B = Shape(6.06e9, 32, 32 * 2 * 4 * 128 * 2)


class Virtual:
    """A model whose forwards take what ``shape`` takes on ``card`` (see base.CausalModel). ``before``: positions that
    each sequence has in its cache beside those that are really there: a system prompt that all share."""

    def __init__(self, model: CausalModel, shape: Shape, card: Card, clock: VirtualClock, before: int) -> None:
        work = Work(int(2 * shape.parameters), int(shape.parameters), shape.cache, 0, shape.layers)
        self.info = replace(model.info, work=work)
        self.rows: list[int] = []  # of each forward that scored
        self._model, self._shape, self._card, self._clock, self._before = model, shape, card, clock, before

    def open(self) -> Slot:
        return self._model.open()

    def prefill(self, slot: Slot, token_ids: Sequence[int]) -> None:
        if token_ids:
            self._take(len(token_ids), self._before + slot.length)
        self._model.prefill(slot, token_ids)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        rows = sum(len(r.tree) - r.slot.pending + len(r.catch_up) for r in requests)
        self.rows.append(rows)
        self._take(rows, sum(self._before + r.slot.length for r in requests))
        return self._model.score(requests)

    def _take(self, rows: int, cached: int) -> None:
        self._clock.seconds += self._shape.seconds(self._card, rows, cached)

    @property
    def profile(self) -> CostProfile:
        """T(n) to begin with."""
        times = tuple(self._shape.seconds(self._card, n, n * self._before) for n in ROWS)
        return CostProfile(describe(self.info), self._card.name, ROWS, (1,), (times,), ((0.0,) * len(ROWS),))


def decoder_of(
    pair: ouroboros.Decoder, card: Card, label: str, memory: Memory | None = None, before: int = 1000
) -> tuple[ouroboros.Decoder, VirtualClock]:
    """A pair of Yi's shapes on this card, decoding by ``label``: a method, or ``speculative-γ``."""
    clock = VirtualClock()
    method, _, sizes = label.partition("-")
    options = options_for(method, {"draft_tokens": int(sizes)} if sizes else {})
    assert pair.draft is not None
    target = Virtual(pair.target, YI_34B, card, clock, before)
    draft = Virtual(pair.draft, YI_6B, card, clock, before)
    control = Control(PairProfile(target.profile, draft.profile))
    uses = draft if method in ("speculative", "ouroboros") else None
    shared = Memory() if memory is None else memory
    return ouroboros.Decoder(target, uses, pair.tokenizer, method, options, shared, control=control, clock=clock), clock


@dataclass(frozen=True, slots=True)
class Ask:
    """A request: it comes ``at`` that second."""

    prompt: str
    tokens: int
    temperature: float
    seed: int
    at: float = 0.0


def asks(count: int, kinds: int = 16, seed: int = 0) -> Iterator[Ask]:
    """HumanEval's first prompts in turn, 24 to 72 tokens, greedy and at 0.8 by turns."""
    source = Random(seed)
    prompts = [json.loads(line)["prompt"] for line in PROMPTS.read_text().splitlines()]
    for i in range(count):
        yield Ask(prompts[i % kinds].strip() + "\n", source.randint(24, 72), 0.8 * (i % 2), i)


@dataclass(slots=True)
class Run:
    """What a request wrote, and when (see job.Sink). ``steps``: (second, tokens) of each."""

    ask: Ask
    steps: list[tuple[float, int]]
    clock: Callable[[], float]
    ended: bool = False

    def take(self, event: Event) -> bool:
        if isinstance(event, Step):
            self.steps.append((self.clock(), len(event.tokens)))
        return True

    def end(self, error: Exception | None, cancelled: bool) -> None:
        if error is not None:
            raise error
        self.ended = True


def serve(
    decoder: ouroboros.Decoder,
    clock: VirtualClock,
    asked: Sequence[Ask],
    at_once: int | None = None,
    caches: CacheStore | None = None,
    cold: bool = False,
) -> list[Run]:
    """Every request served by one scheduler: ``at_once`` of them all the time, or each when it comes. ``cold``: each
    has a memory of its own, so that none profits from another's text."""
    scheduler = Scheduler(decoder.options, decoder.control, clock, at_once or MOST, caches)
    waiting, runs = list(asked), []
    assert decoder.memory is not None
    while waiting or not scheduler.idle:
        while waiting and (
            len(scheduler.running) + len(scheduler.waiting) < at_once if at_once else waiting[0].at <= clock.seconds
        ):
            ask = waiting.pop(0)
            params = SamplingParams(
                max_new_tokens=ask.tokens, temperature=ask.temperature, seed=ask.seed, ignore_eos=True
            )
            prepared = decoder.prepare(ask.prompt, params, Memory() if cold else decoder.memory)
            runs.append(Run(ask, [], clock))
            scheduler.add(prepared.request, decoder.target, decoder.draft, runs[-1])
        if scheduler.idle:
            clock.seconds = max(clock.seconds, waiting[0].at)
            continue
        scheduler.step()
    return runs
