"""Rows are a common good: on simulated machines a batch that drafts is never slower than plain batched decoding, costs
are learned rightly from forwards of many, and nobody waits long for a prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from ouroboros import SamplingParams
from ouroboros.config import AutoregressiveOptions, MethodOptions, OuroborosOptions
from ouroboros.control.experience import Control
from ouroboros.decoding.request import Request
from ouroboros.phrases.memory import Memory
from ouroboros.sampling import Sampler
from ouroboros.serving.scheduler import Scheduler
from tests.pairs import Pair
from tests.simulated import MACHINES, Clock, Machine, Simulated, control_of
from tests.test_oracle import code_prompts
from tests.test_scheduler import Taken

CLOCK = True  # the simulated one: costs learn from it


@dataclass
class Ran:
    """Of a closed loop, as long as all places are taken: seconds, tokens. What was written, and learned."""

    seconds: float
    tokens: int
    texts: list[list[int]]
    control: Control
    target: Simulated


def closed_loop(
    pair: Pair,
    machine: Machine,
    options: MethodOptions,
    concurrency: int,
    params: SamplingParams,
    draft: str = "trained",
    junk: bool = False,
) -> Ran:
    """So many requests at a time, four for each place, of lengths that differ a little: else those that are not
    drafted for begin and end together, which saves them forwards."""
    clock = Clock()
    target = Simulated(pair.target, machine.target, clock, machine)
    small = Simulated(pair.drafts[draft], machine.draft, clock, machine, junk=junk)
    control = control_of(target, small)
    scheduler = Scheduler(options, control, clock, max_requests=concurrency)
    memory, prompts, sinks = Memory(), code_prompts(), []
    for number in range(4 * concurrency):
        prompt = prompts[number % len(prompts)][: 24 + number % 5]
        own = replace(params, max_new_tokens=params.max_new_tokens - 4 + number % 9)
        sampler = Sampler(own, number, target.info.vocab_size, len(prompt))
        sinks.append(Taken())
        scheduler.add(Request(prompt, sampler, frozenset(), memory), target, small, sinks[-1])
    seconds, tokens = 0.0, 0
    while not scheduler.idle:
        scheduler.step()
        if scheduler.waiting or concurrency == 1:  # the end, where ever fewer run, is no closed loop
            seconds, tokens = clock.now, sum(len(sink.tokens) for sink in sinks)
    assert all(sink.ended == [(None, False)] for sink in sinks)
    return Ran(seconds, tokens, [sink.tokens for sink in sinks], control, target)


@pytest.mark.parametrize(
    ("name", "concurrency"),
    [
        ("fast", 1), ("fast", 4), ("slow", 2), ("slow", 4), ("7 B", 4), ("a GPU", 2),
        *(pytest.param(name, n, marks=pytest.mark.slow) for name in ("fast", "slow", "a GPU", "7 B") for n in (8, 16)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_never_slower_than_plain_batched_decoding(
    embedded: Pair, name: str, concurrency: int, temperature: float
) -> None:
    machine = MACHINES[name]
    params = SamplingParams(max_new_tokens=40, temperature=temperature, ignore_eos=True)
    plain = closed_loop(embedded, machine, AutoregressiveOptions(), concurrency, params)
    own = closed_loop(embedded, machine, OuroborosOptions(), concurrency, params)
    assert own.texts == plain.texts
    assert own.tokens / own.seconds >= 0.98 * plain.tokens / plain.seconds


def test_a_draft_that_guesses_costs_a_batch_nothing(embedded: Pair) -> None:
    params = SamplingParams(max_new_tokens=40, temperature=1.0, ignore_eos=True)
    plain = closed_loop(embedded, MACHINES["slow"], AutoregressiveOptions(), 4, params)
    junk = closed_loop(embedded, MACHINES["slow"], OuroborosOptions(), 4, params, junk=True)
    assert junk.texts == plain.texts
    assert junk.tokens / junk.seconds >= 0.97 * plain.tokens / plain.seconds


def test_costs_are_learned_once_of_each_forward(embedded: Pair) -> None:
    """Six in one forward: whatever their order, what is learned is what forwards take, within a tenth."""
    machine = MACHINES["slow"]
    params = SamplingParams(max_new_tokens=32, temperature=0.8, ignore_eos=True)
    ran = closed_loop(embedded, machine, OuroborosOptions(), 6, params)
    costs = ran.control.costs(ran.target)
    for rows in (1, 2, 4, 8, 12, 16, 24, 32):
        assert costs.seconds(rows, 50) == pytest.approx(machine.target(rows), rel=0.1)
    assert costs.seen == len([rows for rows in ran.target.work if rows <= 128])


def test_nobody_waits_long_for_a_prompt(embedded: Pair) -> None:
    """A token comes within two and a half forwards while a long prompt is read, but for one in a hundred."""
    machine, clock = MACHINES["slow"], Clock()
    target = Simulated(embedded.target, machine.target, clock, machine)
    scheduler = Scheduler(AutoregressiveOptions(), control_of(target), clock)
    params = SamplingParams(max_new_tokens=120, ignore_eos=True)
    sinks = [Taken() for _ in range(3)]
    for number, sink in enumerate(sinks):
        sampler = Sampler(params, number, target.info.vocab_size, 3)
        scheduler.add(Request([number, 2, 3], sampler, frozenset(), Memory()), target, None, sink)
    long, last, waits = Taken(), 0.0, list[float]()
    while not all(sink.ended for sink in sinks):
        before = len(sinks[0].tokens)
        scheduler.step()
        if len(sinks[0].tokens) == 20 and not long.ended and len(scheduler.running) == 3:
            prompt = [n % 900 for n in range(1500)]
            sampler = Sampler(params, 7, target.info.vocab_size, len(prompt))
            scheduler.add(Request(prompt, sampler, frozenset(), Memory()), target, None, long)
        if len(sinks[0].tokens) > before:
            waits.append(clock.now - last)
            last = clock.now
    while not scheduler.idle:
        scheduler.step()
    assert len(long.tokens) == 120
    waits = sorted(waits[1:])
    assert waits[int(0.99 * len(waits))] <= 2.5 * machine.target(4)
    assert waits[-1] <= 4 * machine.target(4)
