"""The controller: what it knows and decides with known times, and that the text is the same whatever it decides."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from ouroboros import Decoder, OuroborosOptions, SamplingParams
from ouroboros.control.controller import PROBE_SHARE, Control, Controller
from ouroboros.control.cost import CostProfile, Costs
from ouroboros.control.estimates import Calibration, Evidence, Share
from ouroboros.control.experience import Experience
from ouroboros.control.known import short_look
from ouroboros.control.memory import MemorySpeed, leasts, shifted
from ouroboros.control.tables import HANDLING
from ouroboros.control.timed import TimedModel, VirtualClock
from ouroboros.decoder import decode
from ouroboros.drafting.base import Drafter
from ouroboros.drafting.factory import build_drafter
from ouroboros.models.base import CausalModel, ScoreRequest, Slot
from ouroboros.models.context import Context
from ouroboros.phrases.pool import PhrasePool
from ouroboros.sampling import Sampler
from ouroboros.stats import Decision, StatsRecorder
from ouroboros.tree import TokenTree
from ouroboros.verify import verify
from tests.pairs import Pair
from tests.reference import generate
from tests.test_oracle import WARPS, code_prompts


def profile(*times: tuple[int, float]) -> CostProfile:
    """T(n) from (n, milliseconds)."""
    rows, seconds = tuple(n for n, _ in times), tuple(ms / 1000 for _, ms in times)
    return CostProfile("", "", rows, (64,), (seconds,), ((0.0,) * len(rows),))


CLOCK = True
STEEP = Costs(profile((1, 20), (8, 22), (16, 36), (64, 140)), profile((1, 3), (8, 3.5), (64, 18)))  # a CPU
FLAT = Costs(profile((1, 20), (256, 21)), profile((1, 2), (256, 2.1)))  # a GPU
RUINOUS = Costs(profile((1, 20), (2, 60)), profile((1, 30), (8, 200)))  # nothing can pay


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Timed:
    """A model whose forwards take what a profile says, by a clock of its own; ``junk``: its logits are noise."""

    inner: CausalModel
    costs: CostProfile
    clock: Clock
    junk: bool = False

    @property
    def info(self) -> Any:
        return self.inner.info

    def open(self) -> Slot:
        return self.inner.open()

    def prefill(self, slot: Slot, token_ids: Sequence[int]) -> None:
        self.inner.prefill(slot, token_ids)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        rows = sum(len(r.tree) - r.slot.pending + len(r.catch_up) for r in requests)
        self.clock.now += self.costs.cost(rows, 64)
        found = self.inner.score(requests)
        return (
            [torch.randn(x.shape, generator=torch.Generator().manual_seed(rows)) for x in found] if self.junk else found
        )


@dataclass
class Ran:
    tokens: tuple[int, ...]
    seconds: float
    decisions: list[Decision]
    recorder: StatsRecorder


def run(
    pair: Pair,
    draft: str,
    costs: Costs,
    prompt: Sequence[int],
    params: SamplingParams,
    seed: int = 0,
    experience: Experience | None = None,
    options: OuroborosOptions | None = None,
    trees: bool = True,
    junk: bool = False,
    stop_ids: frozenset[int] = frozenset(),
) -> Ran:
    clock = Clock()
    decisions: list[Decision] = []
    target, drafter = Timed(pair.target, costs.target, clock), Timed(pair.drafts[draft], costs.draft, clock, junk)
    sampler = Sampler(params, seed, target.info.vocab_size, len(prompt))
    recorder = StatsRecorder("test", "native", "", "", seed, len(prompt))

    def start() -> Drafter:
        known = Experience() if experience is None else experience
        controller = Controller(costs, known, len(prompt), params.max_new_tokens, clock, decisions.append)
        chosen = OuroborosOptions() if options is None else options
        pool, limit = PhrasePool(), target.info.max_positions
        return build_drafter(chosen, Context(drafter), sampler, pool, prompt, stop_ids, limit, trees, controller)

    steps = decode(Context(target), start, sampler, prompt, params.max_new_tokens, stop_ids, recorder)
    tokens = tuple(token for step in steps for token in step.tokens)
    return Ran(tokens, clock.now, decisions, recorder)


# --- what it knows ---


def test_t_of_n_in_another_state_of_the_memory() -> None:
    """Measured on a machine with two states of its memory, and predicted from the other one."""
    slow = [0.0, 22.5, 22.6, 23.0, 23.5, 23.8, 24.1, 24.2, 24.5, 25.4, 26.3, 27.3, 28.2]
    fast = {1: 14.5, 4: 17.0, 6: 18.6, 8: 20.7, 12: 27.9}
    found = shifted(slow, fast[1] / slow[1])
    assert [found[n] for n in fast] == pytest.approx(list(fast.values()), rel=0.13)
    assert found == sorted(found)
    assert shifted(found, slow[1] / fast[1]) == pytest.approx(slow, rel=0.001)
    assert shifted(slow, 1.0) == slow


def test_memory_is_read_again_when_the_last_read_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    speed, now = MemorySpeed(), [100.0]
    assert speed.read() > 0
    reads = iter([5.0, 9.0, 8.0, 4.4, 9.0])
    monkeypatch.setattr(speed, "read", lambda: next(reads))
    monkeypatch.setattr("ouroboros.control.memory.time.perf_counter", lambda: now[0])
    assert [speed.now(), speed.now()] == [5.0, 5.0]
    found = []
    for _ in range(4):
        now[0] += 1.0
        found.append(speed.now())
    assert found == [5.0, 5.0, 4.4, 4.4]  # the least of the last three: a single slow read is a disturbance
    assert leasts([5.0, 9.0, 8.0, 4.4, 9.0]) == [5.0, 4.4, 4.4], "a profile says the same of the same reads"
    assert leasts([5.0]) == [5.0]


def test_the_controller_follows_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory is fast rows are no longer free, and fewer are taken."""
    rows, seconds = (1, 4, 8, 12, 16), (0.0225, 0.0235, 0.0245, 0.0282, 0.036)
    target = CostProfile("", "", rows, (64,), (seconds,), ((0.0,) * 5,), memory=0.0006)
    costs = Costs(target, replace(STEEP.draft, memory=0.0006))
    chances = [0.75**n for n in range(1, 16)]
    taken = {}
    for read in (0.0006, 0.0004):
        speed = MemorySpeed()
        monkeypatch.setattr(speed, "now", functools.partial(float, read))
        controller = Controller(costs, Experience(), 64, 100, lambda: 0.0, memory=speed)
        controller.begin(64)
        taken[read] = controller.best_size(chances)
    assert taken[0.0004] < taken[0.0006]


def test_a_share_follows_changes() -> None:
    share = Share(0.5, weight=2, memory=20)
    assert share.value == 0.5
    share.learn(True)
    assert share.value == pytest.approx(2 / 3)
    for _ in range(60):
        share.learn(False)
    assert share.value < 0.02


def test_calibration_learns_each_kind_and_range_of_its_own() -> None:
    calibration = Calibration()
    assert calibration.chance(Evidence.FIRST, 0.65) == pytest.approx(0.65)
    for _ in range(300):
        calibration.learn(Evidence.FIRST, 0.65, True)
        calibration.learn(Evidence.OTHER, 0.65, False)
    assert calibration.chance(Evidence.FIRST, 0.65) > 0.97
    assert calibration.chance(Evidence.OTHER, 0.65) < 0.03
    assert calibration.chance(Evidence.FIRST, 0.25) == pytest.approx(0.25)


def test_a_request_begins_with_what_others_learned_and_learns_faster() -> None:
    shared = Calibration()
    for _ in range(200):
        shared.learn(Evidence.PHRASE, 0.55, True)
    own = Calibration(shared)
    assert own.chance(Evidence.PHRASE, 0.55) == pytest.approx(shared.chance(Evidence.PHRASE, 0.55))
    for _ in range(30):
        own.learn(Evidence.PHRASE, 0.55, False)
    assert own.chance(Evidence.PHRASE, 0.55) < 0.3 < shared.chance(Evidence.PHRASE, 0.55)


# --- what it decides ---


def controller(costs: Costs, experience: Experience | None = None, context: int = 64, room: int = 200) -> Controller:
    return Controller(costs, Experience() if experience is None else experience, context, room, Clock())


@pytest.mark.parametrize("costs", [STEEP, FLAT, RUINOUS])
def test_the_size_of_the_tree_is_the_best_of_all(costs: Costs) -> None:
    mine = controller(costs)
    chances = sorted((0.9 * 0.8**i for i in range(40)), reverse=True)

    def value(size: int) -> float:
        seconds = costs.target.cost(size + 1, 64) - costs.target.cost(1, 64) + HANDLING * size
        return sum(chances[:size]) - mine.rate * seconds

    assert value(mine.best_size(chances)) == pytest.approx(max(map(value, range(41))))


def test_rows_that_cost_little_are_taken_and_rows_that_cost_are_not() -> None:
    chances = [0.9 * 0.85**i for i in range(60)]
    assert controller(FLAT).best_size(chances) > 20
    assert 4 < controller(STEEP).best_size(chances) < 16
    assert controller(RUINOUS).best_size(chances) == 0


def test_rows_of_other_requests_make_one_s_own_dearer() -> None:
    chances = [0.9 * 0.85**i for i in range(60)]
    for costs in (STEEP, FLAT):
        mine = controller(costs)
        alone, price = mine.best_size(chances), mine.row_price(1)
        mine.beside(3, 3 * mine.own_rate)
        assert 0 < mine.best_size(chances) < alone
        assert mine.row_price(1) > price
    mine.beside(1000, 0.0)
    assert mine.best_size(chances) == 0, "beyond what was measured"
    mine = controller(STEEP, room=200)
    assert mine.drafts_at_once(500)
    mine.beside(0, 50 * mine.own_rate)
    assert not mine.drafts_at_once(500), "others would wait for it"


def test_a_draft_forward_is_made_where_it_pays() -> None:
    sure, unsure = [0.7, 0.2], [0.01, 0.001]
    for costs, gains, drafts in ((STEEP, sure, True), (STEEP, unsure, False), (RUINOUS, sure, False)):
        mine = controller(costs)
        mine.begin(64)
        assert bool(mine.draft_size(gains, 0, 100)) is drafts
    assert controller(STEEP).draft_size([], 0, 100) == 0


def test_a_long_prompt_is_read_by_the_draft_model_if_that_can_pay() -> None:
    costs = Costs(STEEP.target, profile((1, 3), (64, 20)))
    assert controller(costs, context=40, room=200).drafts_at_once(40)
    assert not controller(costs, context=3000, room=8).drafts_at_once(3000)
    assert not controller(RUINOUS).drafts_at_once(64)
    mine = controller(costs, context=3000, room=8)
    mine.begin(3000)
    assert mine.draft_size([0.7], 3000, 8) == 0 < mine.draft_size([0.7], 3000, 3000)


def test_a_draft_that_does_not_pay_is_asked_for_a_hundredth_of_the_time() -> None:
    known = Experience(seconds=10.0)
    mine = controller(RUINOUS, known)
    mine.begin(64)
    assert mine.draft_size([0.5, 0.3], 0, 100) == 1
    known.probing = PROBE_SHARE * 10.0
    mine.begin(64)
    assert mine.draft_size([0.5, 0.3], 0, 100) == 0


def test_a_forward_that_takes_longer_than_measured_counts_for_what_it_takes() -> None:
    clock, known = Clock(), Experience()
    mine = Controller(STEEP, known, 64, 100, clock)
    before = mine.row_price(8) / mine.rate
    for _ in range(50):
        mine.begin(64)
        mine.proposed(1.0)
        clock.now += 2 * STEEP.target.cost(1, 64)
        mine.settle(1, 1)
    assert mine.row_price(8) / mine.rate == pytest.approx(2 * before, rel=0.05)
    assert known.stretch[0] == pytest.approx(2, rel=0.05)


def test_promises_that_are_not_kept_are_believed_less() -> None:
    def size(promised: float) -> int:
        """Of the next tree, after steps of one token each."""
        clock = Clock()
        mine = Controller(STEEP, Experience(), 64, 200, clock)
        for _ in range(20):
            mine.begin(64)
            mine.proposed(promised)
            clock.now += STEEP.target.cost(4, 64)
            mine.settle(4, 1)
        return mine.best_size([0.9 * 0.85**i for i in range(40)])

    assert size(promised=4.0) < size(promised=1.0)


def test_reading_a_prompt_must_pay_beside_what_phrases_give() -> None:
    """Where phrases make text as cheap as drafts would, a long prompt is not read."""
    costs = Costs(STEEP.target, profile((1, 3), (64, 20)))
    for tokens, reads in ((3, False), (1, True)):
        clock = Clock()
        mine = Controller(costs, Experience(), 400, 200, clock)
        for _ in range(30):
            mine.begin(400)
            mine.proposed(tokens)
            clock.now += costs.target.cost(2, 64)
            mine.settle(2, tokens)
        mine.begin(400)
        assert bool(mine.draft_size([0.7], 400, 100)) is reads


def test_a_prefill_in_the_middle_of_decoding_takes_time(tiny: Pair) -> None:
    clock = VirtualClock()
    model = TimedModel(tiny.target, STEEP.target, clock)
    slot = model.open()
    model.prefill(slot, [1, 2, 3, 4])
    assert clock() == 0
    model.score([ScoreRequest(slot, TokenTree(5))])
    before = clock()
    assert before == pytest.approx(STEEP.target.cost(1, 64))
    model.prefill(model.open(), [1, 2, 3, 4])
    assert clock() - before == pytest.approx(STEEP.target.cost(4, 64))


def test_a_short_look_at_costs(tiny: Pair) -> None:
    found = short_look(tiny.target)
    assert found.rows[:3] == (1, 2, 4)
    assert len(found.seconds[0]) == len(found.rows)
    assert len(short_look(tiny.target, patience=0.0).rows) == 1


# --- what comes of it ---


def request(warp: str) -> SamplingParams:
    return SamplingParams(max_new_tokens=24, ignore_eos=True, **WARPS[warp])


@pytest.fixture(scope="module")
def expected(embedded: Pair) -> Any:
    """The oracle's texts, made once."""

    @cache
    def text(warp: str, prompt: int) -> tuple[int, ...]:
        return generate(embedded.oracle, code_prompts()[prompt], request(warp), seed=prompt)

    return text


@pytest.mark.parametrize("warp", WARPS)
@pytest.mark.parametrize("costs", [STEEP, FLAT, RUINOUS], ids=["steep", "flat", "ruinous"])
def test_the_text_is_the_oracle_s(embedded: Pair, expected: Any, costs: Costs, warp: str) -> None:
    params = request(warp)
    accepted = rejected = 0
    for draft, (number, prompt) in itertools.product(("trained", "unrelated"), enumerate(code_prompts()[:2])):
        experience = Experience()
        experience.window.learn(50, 10)  # the lookahead window is believed in, so that it is used
        ran = run(embedded, draft, costs, prompt, params, number, experience)
        assert ran.tokens == expected(warp, number)
        accepted += sum(decision.tokens - 1 for decision in ran.decisions)
        rejected += sum(decision.rows - decision.tokens for decision in ran.decisions)
    if costs is not RUINOUS:
        assert accepted > 20
        assert rejected > 0


@pytest.mark.parametrize(
    "chosen",
    [{"lengthening": False}, {"phrase_drafting": False}, {"harvest": False}, {"window": 0}, {"recycling": False}],
)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_switches(embedded: Pair, chosen: dict[str, Any], temperature: float) -> None:
    params = SamplingParams(max_new_tokens=32, temperature=temperature, ignore_eos=True)
    prompt = code_prompts()[0]
    ran = run(embedded, "trained", FLAT, prompt, params, 3, options=replace(OuroborosOptions(), **chosen))
    assert ran.tokens == generate(embedded.oracle, prompt, params, 3)
    assert len(ran.decisions) < 32


def test_a_target_that_takes_chains_gets_chains(embedded: Pair) -> None:
    params = SamplingParams(max_new_tokens=40, temperature=0.7, ignore_eos=True)
    prompt = code_prompts()[1]
    ran = run(embedded, "trained", FLAT, prompt, params, 5, trees=False)
    assert ran.tokens == generate(embedded.oracle, prompt, params, 5)
    assert ran.recorder.offered_by_depth == sorted(ran.recorder.offered_by_depth, reverse=True)
    assert ran.recorder.offered_by_depth[0] <= len(ran.decisions)  # one token of each depth in a step
    assert len(ran.decisions) < 30


def test_it_decides_the_same_with_the_same_times(embedded: Pair) -> None:
    params = SamplingParams(max_new_tokens=32, temperature=0.8, ignore_eos=True)
    first, second = (run(embedded, "trained", STEEP, code_prompts()[0], params, 1) for _ in range(2))
    assert first.decisions == second.decisions


@pytest.mark.parametrize("junk", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_never_slower(embedded: Pair, junk: bool, temperature: float) -> None:
    """In times that its costs predict: a draft model that pays makes it faster, one that guesses not slower."""
    params = SamplingParams(max_new_tokens=48, temperature=temperature, ignore_eos=True)
    experience = Experience()
    seconds = tokens = 0.0
    for number, prompt in enumerate(code_prompts() * 3):
        ran = run(embedded, "trained", STEEP, prompt, params, number, experience, junk=junk)
        seconds, tokens = seconds + ran.seconds, tokens + len(ran.tokens)
    speed_up = tokens * STEEP.target.cost(1, 64) / seconds
    assert speed_up > (0.98 if junk else 1.5)
    if junk:
        assert experience.probing < 0.02 * experience.seconds


@dataclass
class Member:
    """A request of a batch."""

    context: Context
    drafter: Drafter
    controller: Controller
    sampler: Sampler
    sequence: list[int]
    end: int
    decisions: list[Decision]
    tree: TokenTree = field(default_factory=lambda: TokenTree(0))
    seconds: float = 0.0


def together(pair: Pair, costs: Costs, params: SamplingParams, number: int, aware: bool = True) -> list[Member]:
    """``number`` prompts in step: each has a controller, and all trees go through one forward of the target.
    aware: whether controllers are told of each other."""
    clock, new, batch = Clock(), params.max_new_tokens, []
    target, draft = Timed(pair.target, costs.target, clock), Timed(pair.drafts["trained"], costs.draft, clock)
    limits = target.info.max_positions, True
    for seed, prompt in enumerate((code_prompts() * 2)[:number]):
        decisions: list[Decision] = []
        control = Controller(costs, Experience(), len(prompt), new, clock, decisions.append)
        sampler, context = Sampler(params, seed, target.info.vocab_size, len(prompt)), Context(target)
        context.prefill(prompt)
        drafter = build_drafter(
            OuroborosOptions(), Context(draft), sampler, PhrasePool(), prompt, frozenset(), *limits, control
        )
        batch.append(Member(context, drafter, control, sampler, list(prompt), len(prompt) + new, decisions))
    while running := [one for one in batch if len(one.sequence) < one.end]:
        for one in running:
            others = [other for other in running if other is not one]
            if aware:
                rows, rate = sum(len(other.tree) for other in others), sum(o.controller.own_rate for o in others)
                one.controller.beside(rows, rate)
            one.tree = one.drafter.propose(one.sequence, one.end - len(one.sequence) - 1)
        logits = target.score([ScoreRequest(one.context.slot, one.tree) for one in running])
        for one, logits_NV in zip(running, logits, strict=True):
            verdict = verify(one.tree, logits_NV, one.sampler, one.sequence)
            one.context.commit(verdict.path, one.sequence)
            one.drafter.observe(verdict)
            one.sequence += verdict.tokens[: one.end - len(one.sequence)]
            one.seconds = clock.now
    return batch


@pytest.mark.parametrize("warp", ["greedy", "temperature"])
def test_requests_of_a_batch_are_each_the_oracle_s(embedded: Pair, expected: Any, warp: str) -> None:
    params = request(warp)
    for seed, one in enumerate(together(embedded, STEEP, params, 3)):
        assert tuple(one.sequence[-params.max_new_tokens :]) == expected(warp, seed)


def test_the_more_requests_there_are_the_less_is_drafted(embedded: Pair) -> None:
    """A forward over all roots costs hardly more than over one: trees must beat plain decoding of many."""
    params = SamplingParams(max_new_tokens=40, temperature=0.8, ignore_eos=True)
    sizes, seconds = {}, {}
    for number in (1, 3, 6):
        ran = together(embedded, STEEP, params, number)
        rows = [decision.rows for one in ran for decision in one.decisions]
        sizes[number] = sum(rows) / len(rows)
        plain = params.max_new_tokens * STEEP.target.cost(number, 64)
        seconds[number] = max(one.seconds for one in ran) / plain
        assert seconds[number] < 1.03
    assert seconds[3] < 1
    untold = max(one.seconds for one in together(embedded, STEEP, params, 6, aware=False)) / plain
    assert seconds[6] < 0.7 * untold
    assert sizes[1] > sizes[3] > sizes[6]


def test_on_a_device_of_flat_costs_trees_are_wide(embedded: Pair) -> None:
    params = SamplingParams(max_new_tokens=48, temperature=0.8, ignore_eos=True)
    wide, narrow = (run(embedded, "trained", costs, code_prompts()[0], params, 2).decisions for costs in (FLAT, STEEP))
    assert sum(d.rows for d in wide) / len(wide) > 1.5 * sum(d.rows for d in narrow) / len(narrow)
    assert len(wide) < len(narrow)


def test_a_decoder_s_requests_learn_from_each_other(tiny: Pair) -> None:
    decoder = Decoder(tiny.target, tiny.drafts["unrelated"], None, "ouroboros", OuroborosOptions(), PhrasePool())
    decoder.control = Control(STEEP)
    for seed in range(3):
        decoder.generate([1, 2, 3], max_new_tokens=32, temperature=1.0, seed=seed, ignore_eos=True)
    assert set(decoder.control.experience) == {1.0}
    assert decoder.control.experience[1.0].seconds > 0
    assert decoder.control.experience[1.0].first.value < Experience().first.value
