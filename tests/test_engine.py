"""The engine from outside: threads, event loops, cancellation, errors, and its end."""

from __future__ import annotations

import asyncio
import gc
import random
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ouroboros import Decoder, Engine, InputError, OuroborosError, SamplingParams, Ticket
from ouroboros.config import options_for
from ouroboros.phrases.memory import Memory
from tests.pairs import Pair
from tests.reference import generate

PROMPT = [5, 9, 2, 7, 1, 3]


def decoder_of(pair: Pair, method: str = "ouroboros") -> Decoder:
    draft = pair.drafts["similar"] if method in ("speculative", "ouroboros") else None
    return Decoder(pair.target, draft, None, method, options_for(method), Memory())


@pytest.fixture
def engine(tiny: Pair) -> Iterator[Engine]:
    with Engine(decoder_of(tiny), max_requests=4) as engine:
        yield engine


def truth(pair: Pair, prompt: list[int], new: int, seed: int = 0, temperature: float = 0.0) -> tuple[int, ...]:
    return generate(pair.oracle, prompt, SamplingParams(max_new_tokens=new, temperature=temperature), seed)


def tokens_of(ticket: Ticket) -> tuple[int, ...]:
    return tuple(token for chunk in ticket for token in chunk.token_ids)


def test_many_at_once_are_each_the_oracle_s(tiny: Pair, engine: Engine) -> None:
    prompts = [[*PROMPT, i] for i in range(10)]
    tickets = [
        engine.submit(p, max_new_tokens=15, temperature=0.9 * (i % 2), seed=i, memory="ab"[i % 2])
        for i, p in enumerate(prompts)
    ]
    for i, (ticket, prompt) in enumerate(zip(tickets, prompts, strict=True)):
        expected = truth(tiny, prompt, 15, i, 0.9 * (i % 2))
        assert tokens_of(ticket) == expected
        result = ticket.result(timeout=10)
        assert result.token_ids == expected
        assert ticket.done
        assert result.finish_reason == "length"
    assert engine.load.running == engine.load.waiting == 0


def test_from_many_threads(tiny: Pair, engine: Engine) -> None:
    expected = truth(tiny, PROMPT, 20)
    found: list[tuple[int, ...]] = []

    def ask() -> None:
        found.append(engine.submit(PROMPT, max_new_tokens=20).result(timeout=30).token_ids)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 8


def test_from_an_event_loop(tiny: Pair, engine: Engine) -> None:
    async def one(seed: int) -> tuple[int, ...]:
        ticket = engine.submit(PROMPT, max_new_tokens=20, temperature=1.0, seed=seed)
        tokens = [token async for chunk in ticket for token in chunk.token_ids]
        assert (await ticket.finished()).token_ids == tuple(tokens)
        return tuple(tokens)

    async def all_of_them() -> list[tuple[int, ...]]:
        return await asyncio.gather(*(one(seed) for seed in range(6)))

    assert asyncio.run(all_of_them()) == [truth(tiny, PROMPT, 20, seed, 1.0) for seed in range(6)]


def test_a_cancelled_request_keeps_what_it_wrote_and_others_go_on(tiny: Pair, engine: Engine) -> None:
    long, other = (engine.submit(PROMPT, max_new_tokens=n, ignore_eos=True) for n in (480, 40))
    first = next(long)
    long.cancel()
    result = long.result(timeout=10)
    assert result.finish_reason == "cancelled"
    assert result.token_ids[: len(first.token_ids)] == first.token_ids
    assert result.token_ids == truth(tiny, PROMPT, len(result.token_ids))
    assert other.result(timeout=30).token_ids == truth(tiny, PROMPT, 40)
    long.cancel()  # does nothing


def test_closing_ends_all_with_what_they_have(tiny: Pair) -> None:
    engine = Engine(decoder_of(tiny), max_requests=1)
    running = engine.submit(PROMPT, max_new_tokens=480, ignore_eos=True)
    waiting = engine.submit(PROMPT, max_new_tokens=5)
    next(running)
    engine.close()
    engine.close()
    assert running.result(timeout=0).finish_reason == waiting.result(timeout=0).finish_reason == "cancelled"
    assert len(running.result().token_ids) > 0
    assert waiting.result().token_ids == ()
    assert list(waiting) == []
    with pytest.raises(OuroborosError, match="the engine is closed"):
        engine.submit(PROMPT)


def test_an_error_in_one_request_ends_that_one(tiny: Pair, engine: Engine) -> None:
    def fail(ids: Any, scores: Any) -> Any:
        if ids.shape[1] > len(PROMPT) + 3:
            raise ValueError("a processor\nthat fails")
        return scores

    bad = engine.submit(PROMPT, max_new_tokens=20, processors=[fail])
    good = engine.submit(PROMPT, max_new_tokens=20)
    with pytest.raises(OuroborosError, match="the request failed: ValueError: a processor that fails"):
        bad.result(timeout=30)
    with pytest.raises(OuroborosError, match="a processor"):
        list(bad)
    assert good.result(timeout=30).token_ids == truth(tiny, PROMPT, 20)


def test_a_model_that_fails_ends_who_was_in_the_forward(tiny: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(decoder_of(tiny, "autoregressive")) as engine:
        score, fails = tiny.target.score, threading.Event()

        def once(requests: Any) -> Any:
            if fails.is_set():
                fails.clear()
                raise RuntimeError("out of memory")
            return score(requests)

        monkeypatch.setattr(tiny.target, "score", once)
        tickets = [engine.submit([*PROMPT, i], max_new_tokens=400, ignore_eos=True) for i in range(3)]
        for ticket in tickets:
            next(ticket)
        fails.set()
        for ticket in tickets:
            with pytest.raises(OuroborosError, match="the request failed: RuntimeError: out of memory"):
                ticket.result(timeout=30)
        assert engine.submit(PROMPT, max_new_tokens=9).result(timeout=30).token_ids == truth(tiny, PROMPT, 9)


def test_what_is_wrong_is_said_at_once(tiny: Pair, engine: Engine) -> None:
    for settings, words in (
        ({"n": 2}, "n must be 1 for a ticket"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"nonsense": 1}, "no such parameter: 'nonsense'"),
        ({"memory": 3}, "memory must be a name"),
        ({"priority": "high"}, "priority"),
    ):
        with pytest.raises(InputError, match=words):
            engine.submit(PROMPT, **settings)
    with pytest.raises(InputError, match="empty"):
        engine.submit([])
    with pytest.raises(InputError, match="max_requests must be"):
        Engine(engine.decoder, max_requests=0)
    with pytest.raises(OuroborosError, match="has not ended within 0 seconds"):
        engine.submit(PROMPT, max_new_tokens=400, ignore_eos=True).result(timeout=0)
    with Engine(decoder_of(tiny), kv_memory=30_000) as small, pytest.raises(InputError, match="kv_memory is 30000"):
        small.submit(PROMPT, max_new_tokens=500)


def test_threads_are_the_engine_s_own(tiny: Pair) -> None:
    before = torch.get_num_threads()
    seen: list[int] = []

    def look(ids: Any, scores: Any) -> Any:
        seen.append(torch.get_num_threads())
        return scores

    with Engine(decoder_of(tiny, "autoregressive"), threads=before + 1) as engine:
        engine.submit(PROMPT, max_new_tokens=2, processors=[look]).result(timeout=30)
    elsewhere: list[int] = []
    thread = threading.Thread(target=lambda: elsewhere.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert torch.get_num_threads() == before == elsewhere[0]
    assert set(seen) <= {before + 1, 1}  # a few rows of logits are one thread's


def test_two_threads_may_use_one_decoder(tiny: Pair) -> None:
    decoder = decoder_of(tiny)
    expected = truth(tiny, PROMPT, 40)
    found: list[tuple[int, ...]] = []
    threads = [
        threading.Thread(target=lambda: found.append(decoder.generate(PROMPT, max_new_tokens=40).token_ids))
        for _ in range(4)
    ]
    with Engine(decoder) as engine:
        for thread in threads:
            thread.start()
        found += [engine.submit(PROMPT, max_new_tokens=40).result(timeout=30).token_ids for _ in range(3)]
        for thread in threads:
            thread.join()
    assert found == [expected] * 7


@pytest.mark.slow
def test_nothing_is_left_of_two_thousand_requests(tiny: Pair) -> None:
    """Cancelled at random: caches, tickets and resident memory are where they were. Prompts come again, so that the
    phrases of them all are soon known: a pool grows up to its bound."""
    chance = random.Random(0)
    prompts = [[chance.randrange(40) for _ in range(chance.randrange(1, 40))] for _ in range(48)]

    def resident() -> int:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    with Engine(decoder_of(tiny), max_requests=8, kv_memory=200_000) as engine:

        def serve(count: int) -> None:
            live: list[Ticket] = []
            for _ in range(count):
                prompt, size = chance.choice(prompts), chance.randrange(1, 40)
                live.append(engine.submit(prompt, max_new_tokens=size, memory="one", ignore_eos=True))
                if len(live) >= 16:
                    ticket = live.pop(chance.randrange(len(live)))
                    if chance.random() < 0.4:
                        ticket.cancel()
                    assert len(ticket.result(timeout=60).token_ids) <= 40
            for ticket in live:
                ticket.cancel()
                ticket.result(timeout=60)

        serve(300)  # memories, tables and allocators have their size
        before, tickets = resident(), len([one for one in gc.get_objects() if type(one) is Ticket])
        serve(2000)
        load = engine.load
        assert (load.running, load.waiting) == (0, 0)
        assert load.kv_bytes <= 200_000
        assert not engine._jobs
        assert len([one for one in gc.get_objects() if type(one) is Ticket]) <= tickets + 1
        assert resident() - before < 24 << 20
