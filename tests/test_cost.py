"""The learning T(n): on simulated machines, with disturbances, and what it is held to whatever it is told."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ouroboros import SamplingParams
from ouroboros.config import AutoregressiveOptions, OuroborosOptions
from ouroboros.control.cost import Costs, Prior
from ouroboros.control.experience import CHECKED, Control
from ouroboros.control.machine import Speeds, forget_speeds, prior_of, speeds_of, work_of
from ouroboros.models.base import ModelInfo, Work
from tests.pairs import Pair
from tests.simulated import MACHINES, Clock, Simulated, control_of
from tests.test_oracle import code_prompts, run

CLOCK = True


def near(found: float, true: float, whole: float) -> bool:
    """Within a quarter of the truth, or a hundredth of a whole forward where rows cost next to nothing."""
    return abs(found - true) <= 0.25 * true + 0.01 * whole


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("seed", range(3))
def test_prices_after_sixteen_steps(name: str, seed: int) -> None:
    """Of a row of the target and of a draft forward, beginning from what the machine seemed to be at load."""
    machine, rng, now = MACHINES[name], random.Random(seed), 0.0
    clock = Clock()
    models = [Simulated(None, shape, clock, machine) for shape in (machine.target, machine.draft)]  # type: ignore[arg-type]
    found = []
    for model, sizes in zip(models, ((1, 3, 5, 8, 10, 12), (1, 1, 2, 3)), strict=True):
        clock.now = 0.0
        load = machine.load
        prior = Costs.fitted(Work(), [(n, 1, load * model.shape(n)) for n in (1, 2, 4, 8, 16)]).prior
        costs = Costs(Work(), Prior(0.7 * prior.memory, 1.4 * prior.row, prior.exponent))
        for _ in range(16):
            n = rng.choice(sizes)
            seconds = model.seconds(n) * math.exp(rng.gauss(0, 0.04))
            clock.now += seconds
            costs.observe(n, 100, seconds)
        found.append(costs)
        now = clock.now
    target, draft = models
    clock.now = now
    price, true = (found[0].seconds(9, 100) - found[0].seconds(2, 100)) / 7, (target.seconds(9) - target.seconds(2)) / 7
    assert near(price, true, target.seconds(1))
    assert near(found[1].seconds(1, 100), draft.seconds(1), 0.0)


@pytest.mark.parametrize("junk", [False, True], ids=["draft", "junk"])
@pytest.mark.parametrize("name", MACHINES)
def test_never_below_plain_decoding(embedded: Pair, name: str, junk: bool) -> None:
    """A request of 128 tokens, the first one on this machine; the draft model knows the text, or only guesses."""
    machine, clock = MACHINES[name], Clock()
    target = Simulated(embedded.target, machine.target, clock, machine)
    draft = Simulated(embedded.drafts["trained"], machine.draft, clock, machine, junk)
    control = control_of(target, draft)
    params = SamplingParams(128, temperature=0.8, ignore_eos=True)
    prompt = code_prompts()[0]

    def plain() -> float:
        """What plain decoding takes: the same prefill, 128 forwards of one row, from the same moment."""
        alone = Simulated(embedded.target, machine.target, Clock(), machine)
        alone._take(len(prompt) - 1)
        for _ in range(128):
            alone._take(1)
        return alone.clock.now

    pair = Pair(target, embedded.oracle, {"draft": draft})  # type: ignore[arg-type]
    run(pair, "draft", OuroborosOptions(), prompt, params, 1, control=control, clock=clock)
    assert plain() / clock.now > 0.97
    if not junk:
        assert plain() / clock.now > 1.2


def test_a_disturbance_is_forgotten_within_some_forwards() -> None:
    costs = Costs(Work(), Prior(0.04, 0.0036))
    for _ in range(20):
        costs.observe(6, 100, 0.046)
    calm = costs.seconds(6, 100)
    for _ in range(10):
        costs.observe(6, 100, 0.15)
    assert costs.seconds(6, 100) > 2 * calm
    for _ in range(12):
        costs.observe(6, 100, 0.046)
    assert costs.seconds(6, 100) == pytest.approx(calm, rel=0.2)


def test_a_single_slow_forward_counts_for_little() -> None:
    costs = Costs(Work(), Prior(0.04, 0.0036))
    for _ in range(20):
        costs.observe(4, 100, 0.044)
    before = costs.seconds(4, 100)
    costs.observe(4, 100, 4.4)
    assert costs.seconds(4, 100) < 1.15 * before


def test_the_context_adds_what_the_shapes_say() -> None:
    work = Work(bytes=1000, products=1000, cache_bytes=1, cache_products=2)
    costs = Costs(work, Prior(0.01, 0.001, 1.0))
    alone, filled = costs.seconds(1, 0), costs.seconds(1, 1000)
    assert alone == pytest.approx(math.hypot(0.01, 0.001))
    assert filled == pytest.approx(math.hypot(0.02, 0.003))


def test_long_forwards_have_a_price_of_their_own() -> None:
    """Reading text is cheaper or dearer a row than checking trees; what is learned there does not move small sizes."""
    costs = Costs(Work(), Prior(0.02, 0.001, 1.0))
    small = costs.seconds(8, 0)
    for _ in range(20):
        costs.observe(512, 0, costs.seconds(64, 0) + 448 * 0.0002)
    assert costs.seconds(512, 0) == pytest.approx(costs.seconds(64, 0) + 448 * 0.0002, rel=0.05)
    assert costs.seconds(8, 0) == small


observations = st.lists(
    st.tuples(st.integers(0, 4000), st.integers(0, 100_000), st.floats(allow_nan=True, allow_infinity=True)),
    max_size=60,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(observations, st.floats(1e-6, 10), st.floats(1e-8, 1))
def test_never_falling_and_never_free_whatever_it_is_told(told: list[Any], memory: float, row: float) -> None:
    costs = Costs(Work(bytes=10, products=10, cache_bytes=1, cache_products=1), Prior(memory, row))
    for rows, context, seconds in told:
        costs.observe(rows, context, seconds)
    for context in (0, 1000):
        times = [costs.seconds(n, context) for n in (*range(80), 200, 1000)]
        assert times[0] == 0 < times[1] < math.inf
        assert times == sorted(times)
        assert times[-1] > times[1], "rows that nobody has measured cost something"


def test_what_the_machine_can_do_is_measured_once(tiny: Pair, tmp_path: Path) -> None:
    info = tiny.target.info
    found = speeds_of(info, tmp_path)
    assert 1e7 < found.bytes < 1e13
    assert 1e7 < found.products < 1e15
    (file,) = tmp_path.iterdir()
    values = json.loads(file.read_text())
    values["bytes"] = 123.0
    file.write_text(json.dumps(values))
    assert speeds_of(info, tmp_path).bytes == 123.0, "it is kept"
    file.write_text("{")
    assert speeds_of(info, tmp_path).bytes > 1e6, "what is damaged is measured anew"
    forget_speeds(info, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_prior_from_shapes(tiny: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ouroboros.control.machine.speeds_of", lambda info: Speeds(1e6, 1e7, 0.9, 1e-3))
    info = tiny.target.info
    weights = 2 * (16 * 16 * 2 + 2 * 8 * 16 + 3 * 16 * 24) + 40 * 16
    assert info.work == Work(8 * weights, weights, 2 * 2 * 2 * 4 * 8, 2 * 2 * 16, 2)
    prior = prior_of(info)
    assert prior.memory == pytest.approx(8 * weights / 1e6 + 2e-3)
    assert prior.row == pytest.approx(weights / 1e7)
    unknown = ModelInfo("other", 40, 512, frozenset(), 1000, "bfloat16", "cpu")
    assert work_of(unknown) == Work(2000, 1000)


def test_what_was_kept_of_the_machine_is_held_against_real_forwards(
    tiny: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured beside another program, it is measured anew the next time."""
    forgotten: list[ModelInfo] = []
    monkeypatch.setattr("ouroboros.control.experience.forget_speeds", forgotten.append)
    for wrong in (1.2, 4.0):
        model = Simulated(tiny.target, MACHINES["slow"].target, Clock(), MACHINES["slow"])
        control = Control()
        prior = Prior(wrong * 0.041, wrong * 0.0036)
        control._costs[type(model), model.info] = Costs(Work(), prior)
        pair = Pair(model, tiny.oracle, {})  # type: ignore[arg-type]
        params = SamplingParams(CHECKED, ignore_eos=True)
        run(pair, None, AutoregressiveOptions(), [1, 2], params, 0, control=control, clock=model.clock)
        assert bool(forgotten) is (wrong > 2)
