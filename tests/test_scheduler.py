"""The scheduler: what a request writes beside others is what it writes alone, whatever comes, goes, or is put back."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest

from ouroboros import METHODS, Decoder, SamplingParams
from ouroboros.config import options_for
from ouroboros.control.experience import Control
from ouroboros.decoding.loop import Begun, Event, Step
from ouroboros.phrases.memory import Memory
from ouroboros.serving.caches import CacheStore
from ouroboros.serving.job import Job
from ouroboros.serving.scheduler import Scheduler
from tests.pairs import Pair
from tests.reference import generate

WARPS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.9},
    {"temperature": 1.2, "top_p": 0.8, "repetition_penalty": 1.3},
    {"frequency_penalty": 0.7},
    {"temperature": 0.8, "guidance_scale": 1.5},
]


@dataclass
class Taken:
    """See job.Sink. ``most``: tokens after which it wants no more."""

    most: int = 10_000
    tokens: list[int] = field(default_factory=list)
    begun: list[Begun] = field(default_factory=list)
    ended: list[tuple[Exception | None, bool]] = field(default_factory=list)

    def take(self, event: Event) -> bool:
        assert not self.ended
        if isinstance(event, Step):
            self.tokens += event.tokens
        else:
            self.begun.append(event)
        return len(self.tokens) < self.most

    def end(self, error: Exception | None, cancelled: bool) -> None:
        self.ended.append((error, cancelled))


def decoder_of(pair: Pair, method: str, draft: str = "similar") -> Decoder:
    chosen = pair.drafts[draft] if method in ("speculative", "ouroboros") else None
    return Decoder(pair.target, chosen, None, method, options_for(method), Memory())


def add(
    scheduler: Scheduler, decoder: Decoder, prompt: list[int], params: SamplingParams, priority: int = 0
) -> tuple[Job, Taken]:
    assert decoder.memory is not None
    prepared, sink = decoder.prepare(prompt, params, decoder.memory), Taken()
    return scheduler.add(prepared.request, *decoder.models_for(prepared.guidance), sink, priority), sink


def scheduler_of(decoder: Decoder, limit: int | None = None, most: int = 4, keep: bool = True) -> Scheduler:
    return Scheduler(decoder.options, Control(), max_requests=most, caches=CacheStore(limit, keep))


@pytest.fixture(scope="module")
def alone(tiny: Pair) -> Any:
    """What a prompt's request writes alone: the oracle's text, or the decoder's where the oracle has no such mode."""
    plain = decoder_of(tiny, "autoregressive")

    @cache
    def text(prompt: tuple[int, ...], warp: int, seed: int, new: int) -> list[int]:
        params = SamplingParams(max_new_tokens=new, seed=seed, ignore_eos=True, **WARPS[warp])
        if params.guidance_scale != 1:
            return list(plain.generate(list(prompt), params).token_ids)
        return list(generate(tiny.oracle, prompt, params, seed))

    return text


def prompts(chance: random.Random) -> list[list[int]]:
    """Some share a long beginning, one a short one, some nothing."""
    system = [chance.randrange(40) for _ in range(24)]
    found = [[*system, *(chance.randrange(40) for _ in range(chance.randrange(1, 6)))] for _ in range(3)]
    found += [[*system[:5], chance.randrange(40)], [chance.randrange(40)]]
    return [*found, [chance.randrange(40) for _ in range(60)]]


@pytest.mark.parametrize("memory", ["ample", "short", "nothing kept"])
@pytest.mark.parametrize("method", METHODS)
def test_each_writes_beside_others_what_it_writes_alone(tiny: Pair, alone: Any, method: str, memory: str) -> None:
    """Random arrivals, cancellations, priorities, parameters and prompts; with short memory also put back and read
    again."""
    chance = random.Random(f"{method} {memory}")
    decoder = decoder_of(tiny, method, chance.choice(["similar", "unrelated"]))
    short = 256 * {"speculative": 320, "ouroboros": 260}.get(method, 160)  # bytes of so many rows
    scheduler = scheduler_of(decoder, short if memory == "short" else None, keep=memory != "nothing kept")
    texts, coming = prompts(chance), 12
    live: list[tuple[Job, Taken, tuple[Any, ...]]] = []
    while coming or not scheduler.idle:
        if coming and chance.random() < 0.3:
            coming -= 1
            prompt, warp, seed = chance.choice(texts), chance.randrange(len(WARPS)), chance.randrange(3)
            new = chance.choice([7, 90, 90] if memory == "short" else [1, 7, 30])
            params = SamplingParams(max_new_tokens=new, seed=seed, ignore_eos=True, **WARPS[warp])
            job, sink = add(scheduler, decoder, prompt, params, chance.randrange(2))
            sink.most = chance.choice([5, 10_000, 10_000])
            live.append((job, sink, (tuple(prompt), warp, seed, new)))
        if chance.random() < 0.01 and (going := [job for job, sink, _ in live if not sink.ended]):
            scheduler.cancel(chance.choice(going))
        scheduler.step()
        if memory == "short":
            assert scheduler.caches.bytes <= short or len(scheduler.running) == 1
    assert memory != "short" or decoder.draft or scheduler.put_back
    for job, sink, asked in live:
        expected = alone(*asked)
        assert sink.tokens == expected[: len(sink.tokens)]
        ((error, cancelled),) = sink.ended
        assert error is None
        assert len(sink.begun) <= 1
        assert cancelled == job.cancelled
        if not cancelled:
            assert len(sink.tokens) >= min(len(expected), sink.most)


@pytest.mark.parametrize("method", ["autoregressive", "speculative"])
def test_the_youngest_is_put_back_and_goes_on(tiny: Pair, alone: Any, method: str) -> None:
    decoder = decoder_of(tiny, method)
    scheduler = scheduler_of(decoder, 300 * 256 * (2 if decoder.draft else 1))
    asked = [([i, 2, 3], 0, 0, 200) for i in range(2)]
    jobs = [
        add(scheduler, decoder, prompt, SamplingParams(max_new_tokens=new, seed=seed, ignore_eos=True))
        for prompt, _, seed, new in asked
    ]
    order = list[int]()
    while not scheduler.idle:
        scheduler.step()
        order += [i for i, (_, sink) in enumerate(jobs) if sink.ended and i not in order]
    assert 1 <= scheduler.put_back <= 3, "it is let in again when there is room, not before"
    assert order == [0, 1]
    for (prompt, warp, seed, new), (_, sink) in zip(asked, jobs, strict=True):
        assert sink.tokens == alone(tuple(prompt), warp, seed, new)


def test_a_request_may_fill_its_context_to_the_last_position(tiny: Pair) -> None:
    decoder = decoder_of(tiny, "ouroboros")
    scheduler = scheduler_of(decoder, 512 * 512)  # bytes of the rows of one whole context
    prompt = [7, 3, 1, 4] * 126  # 504 of 512
    (_, first), (_, second) = (
        add(scheduler, decoder, prompt, SamplingParams(max_new_tokens=100, seed=s, temperature=1.0)) for s in range(2)
    )
    while not scheduler.idle:
        scheduler.step()
    for seed, sink in enumerate((first, second)):
        params = SamplingParams(max_new_tokens=8, temperature=1.0)
        assert tuple(sink.tokens) == generate(tiny.oracle, prompt, params, seed)


def test_a_prefix_is_read_once(tiny: Pair) -> None:
    decoder = decoder_of(tiny, "ouroboros")
    scheduler = scheduler_of(decoder, most=8)
    system = [chance % 40 for chance in range(0, 300, 7)]
    params = SamplingParams(max_new_tokens=6, ignore_eos=True)

    def ask(*prompts: list[int]) -> list[int]:
        sinks = [add(scheduler, decoder, prompt, params)[1] for prompt in prompts]
        while not scheduler.idle:
            scheduler.step()
        for prompt, sink in zip(prompts, sinks, strict=True):
            assert tuple(sink.tokens) == generate(tiny.oracle, prompt, params, 0)
        return [sink.begun[0].cached_tokens for sink in sinks]

    size = len(system)
    assert ask([*system, 1], [*system, 2], [*system, 3]) == [0, size, size]  # at once: one reads, others copy
    assert ask([*system, 1, 5, 5]) == [size + 1]  # later: what is kept goes on
    assert ask([*system, 9], [*system, 2]) == [size, size]
    assert ask([11, 12]) == [0]


def test_kept_caches_go_before_requests_wait(tiny: Pair) -> None:
    decoder = decoder_of(tiny, "autoregressive")
    scheduler = scheduler_of(decoder, 400 * 256)
    params = SamplingParams(max_new_tokens=20, ignore_eos=True)
    for number in range(8):
        add(scheduler, decoder, [number] * 80, params)
        while not scheduler.idle:
            scheduler.step()
            assert scheduler.caches.bytes <= 400 * 256
    assert 1 < len(scheduler.caches) < 5
    _, last = add(scheduler, decoder, [7] * 80, params)
    _, first = add(scheduler, decoder, [0] * 80, params)
    while not scheduler.idle:
        scheduler.step()
    assert (last.begun[0].cached_tokens, first.begun[0].cached_tokens) == (79, 0)


def test_who_comes_first_is_let_in_first_but_for_priorities(tiny: Pair) -> None:
    decoder = decoder_of(tiny, "autoregressive")
    now = [0.0]
    scheduler = Scheduler(decoder.options, Control(), lambda: now[0], max_requests=1)
    params, order = SamplingParams(max_new_tokens=2, ignore_eos=True), list[str]()
    sinks = {}
    for name, priority, at in (("a", 0, 0.0), ("b", 0, 1.0), ("urgent", 1, 2.0), ("later", 1, 30.0)):
        now[0] = at
        sinks[name] = add(scheduler, decoder, [1, 2], params, priority)[1]
    while not scheduler.idle:
        scheduler.step()
        order += [name for name, sink in sinks.items() if sink.ended and name not in order]
    assert order == ["urgent", "a", "b", "later"]


def test_a_processor_that_fails_takes_nobody_along(tiny: Pair, alone: Any) -> None:
    decoder = decoder_of(tiny, "ouroboros")
    scheduler = scheduler_of(decoder)

    def fail(ids: Any, scores: Any) -> Any:
        if ids.shape[1] > 8:
            raise ValueError("of the processor")
        return scores

    params = SamplingParams(max_new_tokens=20, seed=0, ignore_eos=True)
    _, bad = add(scheduler, decoder, [1, 2, 3], replace(params, processors=(fail,)))
    _, good = add(scheduler, decoder, [1, 2, 4], params)
    while not scheduler.idle:
        scheduler.step()
    assert isinstance(bad.ended[0][0], ValueError)
    assert good.tokens == alone((1, 2, 4), 0, 0, 20)
    assert len(scheduler.caches) == 1, "what the failed one left is not kept"
