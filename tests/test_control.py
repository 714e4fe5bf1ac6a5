"""The controller: what it decides with known times, and that the text is the same whatever it decides."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest

from ouroboros import Decoder, OuroborosOptions, SamplingParams
from ouroboros.bench.timed import TimedModel, VirtualClock
from ouroboros.config import LookaheadOptions, TokenRecyclingOptions
from ouroboros.control.controller import LASTING, Controller
from ouroboros.control.cost import Costs
from ouroboros.control.estimates import Calibration, Evidence, RunningMean
from ouroboros.control.experience import Experience
from ouroboros.control.load import Load
from ouroboros.control.prices import ADVANCE, PROBE_SHARE, Prices
from ouroboros.control.profile import CostProfile
from ouroboros.drafting.base import Drafter, DraftSession
from ouroboros.drafting.factory import build_drafter
from ouroboros.drafting.ouroboros import OuroborosDrafter
from ouroboros.drafting.sizes import chosen_sizes, pays
from ouroboros.models.base import ScoreRequest, Work
from ouroboros.models.context import Context
from ouroboros.phrases.memory import Memory
from ouroboros.sampling import Sampler
from ouroboros.stats import Decision, Stats
from ouroboros.tree import TokenTree
from ouroboros.verify import verify
from tests import test_oracle
from tests.flows import drive
from tests.pairs import Pair
from tests.reference import generate
from tests.simulated import Clock, Shape, Simulated, control_of
from tests.test_oracle import WARPS, code_prompts

CLOCK = True
Seconds = Callable[[int], float]


def line(*times: tuple[int, float]) -> Seconds:
    """T(n) from (n, milliseconds), on lines between."""
    rows, seconds = tuple(n for n, _ in times), tuple(ms / 1000 for _, ms in times)
    known = CostProfile("", "", rows, (64,), (seconds,), ((0.0,) * len(rows),))
    return lambda n: known.cost(n, 64)


@dataclass(frozen=True)
class Times:
    """T(n) of both models."""

    target: Seconds
    draft: Seconds

    def costs(self) -> tuple[Costs, Costs]:
        sizes = (1, 2, 4, 8, 16, 32, 64)
        target, draft = (Costs.fitted(Work(), [(n, 1, f(n)) for n in sizes]) for f in (self.target, self.draft))
        return target, draft


STEEP = Times(line((1, 20), (8, 22), (16, 36), (64, 140)), line((1, 3), (8, 3.5), (64, 18)))  # a CPU
SMOOTH = Times(Shape(0.02, 0.0019), Shape(0.003, 0.00025))
FLAT = Times(line((1, 20), (256, 21)), line((1, 2), (256, 2.1)))  # a GPU
RUINOUS = Times(line((1, 20), (2, 60), (64, 1900)), line((1, 30), (8, 200), (64, 1600)))  # nothing can pay


@dataclass
class Ran:
    tokens: tuple[int, ...]
    seconds: float
    decisions: list[Decision]
    stats: Stats


def run(
    pair: Pair,
    draft: str,
    times: Times,
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
    target = Simulated(pair.target, times.target, clock)
    model = Simulated(pair.drafts[draft], times.draft, clock, junk=junk)
    if not trees:
        target = _Chains(pair.target, times.target, clock)
    control = control_of(target, model, experience=experience, certain=True)
    simulated = Pair(target, pair.oracle, {"draft": model})  # type: ignore[arg-type]
    chosen = OuroborosOptions() if options is None else options
    decisions: list[Decision] = []
    tokens, stats = test_oracle.run(
        simulated, "draft", chosen, prompt, params, seed, stop_ids, control=control, clock=clock, decisions=decisions
    )
    return Ran(tokens, clock.now, decisions, stats)


class _Chains(Simulated):
    @property
    def info(self) -> Any:
        return replace(self.inner.info, trees=False)


# --- what it knows ---


def test_a_running_mean_follows_changes() -> None:
    share = RunningMean(0.5, weight=2, memory=20)
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


def test_guesses_begin_as_they_proved_elsewhere() -> None:
    first = Calibration(said={Evidence.PHRASE: 0.3})
    assert first.chance(Evidence.PHRASE, 0.5) == pytest.approx(0.15)
    assert first.chance(Evidence.FIRST, 0.5) == pytest.approx(0.5)
    assert Calibration(first).chance(Evidence.PHRASE, 0.5) == pytest.approx(0.15)
    for _ in range(200):
        first.learn(Evidence.PHRASE, 0.5, True)
    assert first.chance(Evidence.PHRASE, 0.5) > 0.95
    assert Experience().calibration.chance(Evidence.PHRASE, 0.5) < 0.3


def test_how_long_texts_still_are() -> None:
    known = Experience()
    before = known.remaining
    known.tokens, known.ends = 200, 10
    assert known.remaining == pytest.approx((before + 200) / 11)


# --- what it decides ---


def prices(
    times: Times, experience: Experience | None = None, context: int = 64, room: int = 200, load: Load | None = None
) -> Prices:
    return Prices(*times.costs(), Experience() if experience is None else experience, context, room, load)


@pytest.mark.parametrize("times", [STEEP, FLAT, RUINOUS])
def test_the_size_of_the_tree_is_the_best_of_all(times: Times) -> None:
    mine = prices(times)
    chances = sorted((0.9 * 0.8**i for i in range(40)), reverse=True)

    def value(size: int) -> float:
        return sum(chances[:size]) - mine.rate * (mine._checking(size + 1) - mine._checking(1))

    assert value(mine.best_size(chances)) == pytest.approx(max(map(value, range(41))))


def test_rows_that_cost_little_are_taken_and_rows_that_cost_are_not() -> None:
    chances = [0.9 * 0.85**i for i in range(60)]
    assert prices(FLAT).best_size(chances) > 20
    assert 4 < prices(STEEP).best_size(chances) < 16
    assert prices(RUINOUS).best_size(chances) == 0


def test_rows_of_other_requests_make_one_s_own_dearer() -> None:
    chances = [0.9 * 0.85**i for i in range(60)]
    for times in (STEEP, FLAT):
        load = Load()
        mine = prices(times, load=load)
        alone, price, rate = mine.best_size(chances), mine.row_price(1), mine.rate
        load.rows, load.rate = 3, 3 * rate
        mine.begin(64)
        assert 0 < mine.best_size(chances) < alone
        assert mine.row_price(1) > price
    load.rows, load.rate = 1000, 0.0
    mine.begin(64)
    assert mine.best_size(chances) == 0, "a forward has no room for more"
    load = Load()
    mine = prices(STEEP, room=200, load=load)
    assert mine.reading_pays(200)
    load.rate = 50 * mine.rate
    mine.begin(64)
    assert not mine.reading_pays(200), "others would wait for it"


def test_a_draft_forward_is_made_where_it_pays() -> None:
    sure, unsure = [0.7, 0.2], [0.01, 0.001]
    for times, gains, drafts in ((STEEP, sure, True), (STEEP, unsure, False), (RUINOUS, sure, False)):
        assert bool(prices(times).draft_size(gains, 0)[0]) is drafts
    assert prices(STEEP).draft_size([], 0)[0] == 0


def test_a_long_prompt_is_read_by_the_draft_model_if_that_can_pay() -> None:
    assert prices(STEEP, context=40, room=200).reading_pays(40)
    assert not prices(STEEP, context=40, room=4).reading_pays(200), "there is too little to come"
    assert not prices(RUINOUS).reading_pays(64)
    mine = prices(STEEP, context=3000, room=1000)
    assert mine.reading(3000) > ADVANCE * STEEP.target(1)
    mine.experience.tokens = 3000
    assert not mine.reading_pays(3000), "more than may be lost if the text ends"
    for _ in range(100):
        mine.begin(3000)
        mine.observe(4, 4, 0.0, False, False)
    mine.begin(3000)
    assert mine.reading(3000) < mine.budget, "phrases have saved as much"


def test_a_draft_that_does_not_pay_is_asked_for_a_hundredth_of_the_time() -> None:
    known = Experience(seconds=10.0)
    mine = prices(RUINOUS, known)
    assert mine.may_probe(0)
    known.probing = PROBE_SHARE * 10.0
    assert not mine.may_probe(0)


def test_promises_that_are_not_kept_are_believed_less() -> None:
    def size(promised: float) -> int:
        """Of the next tree, after steps of one token each."""
        mine = prices(STEEP)
        for _ in range(20):
            mine.begin(64)
            mine.promised(promised)
            mine.observe(4, 1, 0.0, False, False)
        mine.begin(64)
        return mine.best_size([0.9 * 0.85**i for i in range(40)])

    assert size(promised=3.0) < size(promised=0.0)


def test_reading_must_pay_beside_what_phrases_give_now() -> None:
    """Where phrases make text as cheap as drafts would, nothing is read; a step or two after they have ended it is."""
    mine = prices(STEEP)
    for _ in range(10):
        mine.begin(400)
        mine.consider([0.95**n for n in range(1, 13)])
        mine.observe(13, 12, 0.0, False, False)
    mine.begin(400)
    mine.consider([0.95**n for n in range(1, 13)])
    assert not mine.reading_pays(100)
    waited = 0
    while True:
        mine.begin(400)
        mine.consider([])
        if mine.reading_pays(100):
            break
        mine.observe(1, 1, 0.0, False, False)
        waited += 1
    assert waited <= 2


@pytest.mark.parametrize("taken", [0.0, 1e6])
def test_of_a_long_text_the_end_is_read_once_the_answer_has_lasted(tiny: Pair, taken: float) -> None:
    """Nothing before, and nothing where time was lost; what was read once is not read from another place."""
    text = [1 + n % 38 for n in range(400)]
    mine = prices(STEEP, context=len(text), room=1000)
    control = Controller(OuroborosOptions(), mine)
    draft = DraftSession(Context(tiny.drafts["similar"]), text)
    mine.reading = lambda tokens: 0.002 * tokens  # type: ignore[method-assign]
    control.begin(text, 50)
    assert not control.reads(draft, text)
    assert control._missing(draft) == 399
    mine.written, mine._taken = LASTING, LASTING * STEEP.target(1) + taken
    found = control._missing(draft)
    assert found == 399 if taken else 64 <= found < 110
    assert draft.skipped == 399 - found
    assert control._missing(draft) == found
    drive(draft.prefill(text))
    assert control._missing(draft) == 0


def test_a_streak_does_not_price_what_comes_after_it() -> None:
    """Copied text makes the running rate high; where there is nothing more to copy a draft pays as it did before."""
    mine = prices(STEEP)
    before = mine.draft_size([0.7], 0)[0]
    for _ in range(4):
        mine.begin(400)
        mine.consider([0.97**n for n in range(1, 40)])
        mine.observe(40, 30, 0.0, False, False)
    mine.begin(400)
    mine.consider([])
    assert mine.draft_size([0.7], 0)[0] == before == 1


def test_a_prefill_in_the_middle_of_decoding_takes_time(tiny: Pair) -> None:
    clock = VirtualClock()
    known = CostProfile("", "", (1, 8), (64,), ((0.02, 0.03),), ((0.0, 0.0),))
    model = TimedModel(tiny.target, known, clock)
    slot = model.open()
    model.prefill(slot, [1, 2, 3, 4])
    assert clock() == 0
    model.score([ScoreRequest(slot, TokenTree(5))])
    before = clock()
    assert before == pytest.approx(known.cost(1, 64))
    model.prefill(model.open(), [1, 2, 3, 4])
    assert clock() - before == pytest.approx(known.cost(4, 64))


def test_methods_without_a_draft_model_take_what_rows_cost() -> None:
    """Where rows cost nothing, sizes are the published ones; where they cost, few; and a size that was said stays."""
    steep, flat, ruinous = (times.costs()[0] for times in (STEEP, FLAT, RUINOUS))
    for costs, window, nodes in ((flat, 10, 60), (ruinous, 1, 0)):
        lookahead = chosen_sizes(LookaheadOptions(), costs, 64)
        recycling = chosen_sizes(TokenRecyclingOptions(), costs, 64)
        assert isinstance(lookahead, LookaheadOptions)
        assert isinstance(recycling, TokenRecyclingOptions)
        assert lookahead.window == window
        assert recycling.tree_tokens is not None
        assert recycling.tree_tokens >= nodes
    few = chosen_sizes(TokenRecyclingOptions(), steep, 64)
    assert isinstance(few, TokenRecyclingOptions)
    assert few.tree_tokens is not None
    assert 2 <= few.tree_tokens <= 16
    assert chosen_sizes(TokenRecyclingOptions(tree_tokens=33), steep, 64) == TokenRecyclingOptions(tree_tokens=33)
    said = chosen_sizes(LookaheadOptions(window=7), steep, 64)
    assert isinstance(said, LookaheadOptions)
    assert said.window == 7
    assert pays(TokenRecyclingOptions(), steep)
    assert not pays(TokenRecyclingOptions(), ruinous)
    assert not pays(LookaheadOptions(), ruinous)
    assert pays(LookaheadOptions(window=7), ruinous), "who says a size has chosen"


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
@pytest.mark.parametrize("times", [STEEP, FLAT, RUINOUS], ids=["steep", "flat", "ruinous"])
def test_the_text_is_the_oracle_s(embedded: Pair, expected: Any, times: Times, warp: str) -> None:
    params = request(warp)
    accepted = rejected = 0
    for draft, (number, prompt) in itertools.product(("trained", "unrelated"), enumerate(code_prompts()[:2])):
        experience = Experience()
        experience.window.learn(50, 10)  # the lookahead window is believed in, so that it is used
        ran = run(embedded, draft, times, prompt, params, number, experience)
        assert ran.tokens == expected(warp, number)
        accepted += sum(decision.tokens - 1 for decision in ran.decisions)
        rejected += sum(decision.rows - decision.tokens for decision in ran.decisions)
    if times is not RUINOUS:
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
    depths = list(ran.stats.draft_tokens_by_depth)
    assert depths == sorted(depths, reverse=True)
    assert ran.stats.draft_tokens_by_depth[0] <= len(ran.decisions)  # one token of each depth in a step
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
        seconds -= STEEP.target(len(prompt) - 1)  # which plain decoding reads too
    speed_up = tokens * STEEP.target(1) / seconds
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
    load: Load
    tree: TokenTree = field(default_factory=lambda: TokenTree(0))
    seconds: float = 0.0


def together(pair: Pair, times: Times, params: SamplingParams, number: int, aware: bool = True) -> list[Member]:
    """``number`` prompts in step: each has a controller, and all trees go through one forward of the target.
    aware: whether controllers are told of each other."""
    clock, new, batch = Clock(), params.max_new_tokens, []
    target, draft = (
        Simulated(pair.target, times.target, clock),
        Simulated(pair.drafts["trained"], times.draft, clock),
    )
    control = control_of(target, draft, certain=True)
    for seed, prompt in enumerate((code_prompts() * 2)[:number]):
        sampler, context = Sampler(params, seed, target.info.vocab_size, len(prompt)), Context(target)
        context.prefill(prompt)
        load = Load()
        drafter = build_drafter(
            OuroborosOptions(), prompt, sampler, Memory(), frozenset(), target, Context(draft), control, load
        )
        assert isinstance(drafter, OuroborosDrafter)
        assert isinstance(drafter._policy, Controller)
        drive(drafter.start(prompt))
        batch.append(Member(context, drafter, drafter._policy, sampler, list(prompt), len(prompt) + new, [], load))
    clock.now = 0.0
    while running := [one for one in batch if len(one.sequence) < one.end]:
        for one in running:
            others = [other for other in running if other is not one]
            if aware:
                rows, rate = sum(len(other.tree) for other in others), sum(o.controller.prices.own_rate for o in others)
                one.load.rows, one.load.rate = rows, rate
            one.tree = drive(one.drafter.propose(one.sequence, one.end - len(one.sequence) - 1))
        began, rows = clock.now, sum(len(one.tree) for one in running)
        logits = target.score([ScoreRequest(one.context.slot, one.tree) for one in running])
        control.costs(target).observe(rows, 64, clock.now - began)  # as whoever serves many would, once a forward
        for one, logits_NV in zip(running, logits, strict=True):
            verdict = verify(one.tree, logits_NV, one.sampler, one.sequence)
            one.context.commit(verdict.path, one.sequence)
            decision = one.drafter.observe(verdict)
            assert decision is not None
            one.decisions.append(decision)
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
        ran = together(embedded, SMOOTH, params, number)
        rows = [decision.rows for one in ran for decision in one.decisions]
        sizes[number] = sum(rows) / len(rows)
        plain = params.max_new_tokens * SMOOTH.target(number)
        seconds[number] = max(one.seconds for one in ran) / plain
        assert seconds[number] < 1.1
    assert seconds[3] < 1
    untold = max(one.seconds for one in together(embedded, SMOOTH, params, 6, aware=False)) / plain
    assert seconds[6] < 0.7 * untold
    assert sizes[1] > sizes[3] > sizes[6]


def test_on_a_device_of_flat_costs_trees_are_wide(embedded: Pair) -> None:
    params = SamplingParams(max_new_tokens=48, temperature=0.8, ignore_eos=True)
    wide, narrow = (run(embedded, "trained", costs, code_prompts()[0], params, 2).decisions for costs in (FLAT, STEEP))
    assert sum(d.rows for d in wide) / len(wide) > 1.5 * sum(d.rows for d in narrow) / len(narrow)
    assert len(wide) < len(narrow)


def test_a_decoder_s_requests_learn_from_each_other(tiny: Pair) -> None:
    clock = Clock()
    target = Simulated(tiny.target, STEEP.target, clock)
    draft = Simulated(tiny.drafts["unrelated"], STEEP.draft, clock)
    control = control_of(target, draft, certain=True)
    decoder = Decoder(target, draft, control=control, clock=clock)
    for seed in range(3):
        decoder.generate([1, 2, 3], max_new_tokens=32, temperature=1.0, seed=seed, ignore_eos=True)
    assert set(decoder.control.experience) == {1.0}
    assert decoder.control.experience[1.0].seconds > 0
    assert decoder.control.experience[1.0].first.value < Experience().first.value
