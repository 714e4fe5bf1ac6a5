"""Every method writes what the naive generator writes, token for token, and is made to work for it.

Each test also counts what happened: an oracle test in which nothing was rejected, no branch was accepted or no window
n-gram was of use would prove nothing.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence, Set
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import NoRepeatNGramLogitsProcessor

from ouroboros.bench.demo import demo_prompts
from ouroboros.config import (
    METHODS,
    LookaheadOptions,
    MethodOptions,
    OuroborosOptions,
    SamplingParams,
    SuffixDecodingOptions,
    TokenRecyclingOptions,
)
from ouroboros.config import PromptLookupOptions as Lookup
from ouroboros.config import SpeculativeOptions as Speculative
from ouroboros.control.cost import Costs, Prior
from ouroboros.control.experience import Control, Experience
from ouroboros.decoding.loop import Step, decode
from ouroboros.decoding.run import Observe
from ouroboros.decoding.run import run as run_flow
from ouroboros.drafting.base import Drafter
from ouroboros.drafting.factory import NEEDS_DRAFT, build_drafter
from ouroboros.flow import Flow
from ouroboros.models.context import Context
from ouroboros.phrases.memory import Memory
from ouroboros.phrases.pool import PhrasePool
from ouroboros.sampling import Sampler
from ouroboros.stats import Decision, Stats, StatsRecorder
from ouroboros.text import Tokenizer
from ouroboros.tree import Origin, TokenTree
from ouroboros.verify import Verdict
from tests.pairs import EMBEDDED, Pair
from tests.reference import generate

WARPS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy penalised": {"repetition_penalty": 1.1},
    "temperature": {"temperature": 1.0},
    "top-k top-p": {"temperature": 0.8, "top_k": 20, "top_p": 0.9},
    "min-p penalised": {"temperature": 0.8, "min_p": 0.1, "repetition_penalty": 1.05},
    "processed": {
        "temperature": 0.9,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.2,
        "logit_bias": {199: -1.0, 3: 2.0},
        "processors": [NoRepeatNGramLogitsProcessor(4)],
    },
}


def run(
    pair: Pair,
    draft: str | None,
    options: MethodOptions,
    prompt: Sequence[int],
    params: SamplingParams,
    seed: int,
    eos: Set[int] = frozenset(),
    memory: Memory | None = None,
    control: Control | None = None,
    clock: Callable[[], float] = time.perf_counter,
    decisions: list[Decision] | None = None,
) -> tuple[tuple[int, ...], Stats]:
    """``control``: None decodes by fixed sizes. ``decisions``: gets the policy's."""
    sampler = Sampler(params, seed, pair.target.info.vocab_size, len(prompt))
    context = None if draft is None else Context(pair.drafts[draft])
    kept = Memory() if memory is None else memory
    drafter = build_drafter(options, prompt, sampler, kept, eos, pair.target, context, control)
    observe = (lambda *told: None) if control is None else control.observe
    return drain(pair, drafter, sampler, prompt, params, eos, clock, observe, decisions)


def drain(
    pair: Pair,
    drafter: Drafter,
    sampler: Sampler,
    prompt: Sequence[int],
    params: SamplingParams,
    eos: Set[int],
    clock: Callable[[], float] = time.perf_counter,
    observe: Observe = lambda *told: None,
    decisions: list[Decision] | None = None,
) -> tuple[tuple[int, ...], Stats]:
    recorder = StatsRecorder("test", "native", "", "", sampler.seed, len(prompt))
    tokens: list[int] = []
    flow = decode(Context(pair.target), drafter, sampler, prompt, params.max_new_tokens, eos)
    for event in run_flow(flow, clock, observe):
        if isinstance(event, Step):
            tokens += event.tokens
            drafted = event.draft_forwards, event.draft_seconds
            recorder.step(event.tree, event.origins, event.seconds, *drafted, event.decision)
    if decisions is not None:
        decisions += recorder.decisions
    return tuple(tokens), recorder.freeze()


OPTIONS: dict[str, list[MethodOptions]] = {
    "autoregressive": [METHODS["autoregressive"]()],
    "speculative": [Speculative(), Speculative(draft_tokens=1)],
    "prompt_lookup": [Lookup(), Lookup(draft_tokens=3, max_ngram=1)],
    "suffix_decoding": [SuffixDecodingOptions(), SuffixDecodingOptions(factor=4, min_chance=0.0, max_match=3)],
    "token_recycling": [TokenRecyclingOptions(), TokenRecyclingOptions(tree_tokens=12, successors=3)],
    "lookahead": [LookaheadOptions(), LookaheadOptions(window=4, ngram=3, branches=2, prompt_ngrams=False)],
    "ouroboros": [
        OuroborosOptions(),
        OuroborosOptions(draft_tokens=7, min_chance=0.0, siblings=0, side_branches=0, window=12, ngram=3),
    ],
}


# --- the embedded pair in fp32 ---------------------------------------------------------------------------------------


@cache
def code_prompts() -> list[list[int]]:
    tokenizer = Tokenizer.from_directory(EMBEDDED / "target")
    assert tokenizer is not None
    return [tokenizer.encode(prompt.text)[-80:] for prompt in demo_prompts()]


@pytest.fixture(scope="module")
def expected(embedded: Pair) -> Any:
    """The oracle's texts, made once for all methods."""

    @cache
    def text(warp: str, prompt: int) -> tuple[int, ...]:
        params = SamplingParams(max_new_tokens=32, ignore_eos=True, **WARPS[warp])
        return generate(embedded.oracle, code_prompts()[prompt], params, seed=prompt)

    return text


@pytest.mark.parametrize("warp", WARPS)
@pytest.mark.parametrize("method", METHODS)
def test_embedded_pair(embedded: Pair, expected: Any, method: str, warp: str) -> None:
    drafts = ["self", "trained", "unrelated"] if method in NEEDS_DRAFT else [None]
    for draft in drafts:
        totals: Counter[str] = Counter()
        for options in OPTIONS[method]:
            for number, prompt in enumerate(code_prompts()):
                params = SamplingParams(max_new_tokens=32, ignore_eos=True, **WARPS[warp])
                tokens, stats = run(embedded, draft, options, prompt, params, seed=number)
                assert tokens == expected(warp, number)
                totals += _counts(stats)
        _assert_exercised(totals, method, draft)


def _counts(stats: Stats) -> Counter[str]:
    counts = Counter({f"accepted {name}": n for name, n in stats.accepted_by_origin.items()})
    counts["rejected"] = stats.draft_tokens - stats.accepted_tokens
    counts["accepted phrase"] = stats.accepted_by_source.get("phrase", 0)
    counts["accepted draft"] = stats.accepted_by_source.get("draft", 0)
    return counts


def _assert_exercised(totals: Counter[str], method: str, draft: str | None) -> None:
    if method == "autoregressive":
        assert not totals.total()
        return
    if method == "speculative" and draft == "self":
        assert not totals["rejected"]  # a model always agrees with itself
        assert totals["accepted draft"]
        return
    assert totals["rejected"], totals
    if method == "speculative":
        assert totals["accepted draft"] or draft == "unrelated", totals
    else:
        assert totals["accepted phrase"], totals
    if method in ("lookahead", "ouroboros") and draft != "unrelated":
        assert totals["accepted window"], totals


def alternate(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """A control signal: after an even token an odd one is likelier."""
    odd = torch.arange(scores.shape[-1]) % 2
    return scores + 2.0 * torch.where(input_ids[:, -1:] % 2 == 0, odd, 1 - odd)


# --- properties in fp64 ----------------------------------------------------------------------------------------------

warps = st.one_of(
    st.just(SamplingParams()),
    st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 0.4, 1.0, 2.0]),
        top_k=st.sampled_from([0, 0, 1, 3, 1000]),
        top_p=st.sampled_from([1.0, 0.9, 0.5, 0.01]),
        min_p=st.sampled_from([0.0, 0.02, 0.5]),
        repetition_penalty=st.sampled_from([1.0, 1.0, 0.8, 1.5]),
        presence_penalty=st.sampled_from([0.0, 0.0, 0.7]),
        frequency_penalty=st.sampled_from([0.0, 0.0, -0.3, 0.5]),
        logit_bias=st.sampled_from([(), (), ((3, -100.0), (7, 1.5))]),
        processors=st.sampled_from([(), (), (NoRepeatNGramLogitsProcessor(2),), (alternate,)]),
    ),
)
methods = st.one_of(
    st.builds(Speculative, draft_tokens=st.integers(1, 12)),
    st.builds(Lookup, draft_tokens=st.integers(1, 12), max_ngram=st.integers(1, 4)),
    st.builds(
        LookaheadOptions,
        window=st.one_of(st.none(), st.integers(1, 8)),
        ngram=st.one_of(st.none(), st.integers(2, 5)),
        branches=st.one_of(st.none(), st.integers(0, 6)),
        prompt_ngrams=st.booleans(),
    ),
    st.builds(
        SuffixDecodingOptions,
        draft_tokens=st.integers(1, 40),
        factor=st.integers(1, 8),
        max_match=st.integers(1, 30),
        min_chance=st.sampled_from([0.0, 0.1, 0.9]),
        reuse=st.booleans(),
    ),
    st.builds(
        TokenRecyclingOptions,
        tree_tokens=st.one_of(st.none(), st.integers(1, 40)),
        successors=st.integers(1, 8),
    ),
    st.builds(
        OuroborosOptions,
        control=st.booleans(),
        recycling=st.booleans(),
        draft_context=st.sampled_from([0, 0, 5, 40]),
        draft_tokens=st.integers(1, 8),
        min_chance=st.sampled_from([0.0, 0.1, 0.9]),
        side_branches=st.integers(0, 4),
        siblings=st.integers(0, 4),
        tree_tokens=st.integers(1, 40),
        window=st.integers(0, 6),
        ngram=st.integers(2, 5),
        candidates=st.integers(0, 4),
        branches=st.integers(0, 4),
        branch_tokens=st.integers(1, 8),
        phrase_drafting=st.booleans(),
        lengthening=st.booleans(),
        harvest=st.booleans(),
        reuse=st.booleans(),
    ),
)


class Erratic:
    """A clock that runs as it likes: it stands still, jumps by hours, or ticks."""

    def __init__(self, rng: random.Random) -> None:
        self._rng, self._now = rng, 0.0

    def __call__(self) -> float:
        self._now += self._rng.choice([0.0, 1e-9, 0.001, 0.02, 0.02, 5000.0])
        return self._now


def random_control(rng: random.Random, pair: Pair) -> Control:
    """Costs between free and ruinous that learn from an erratic clock, and texts that are thought short or endless."""
    control = Control()
    for model in (pair.target, *pair.drafts.values()):
        prior = Prior(10 ** rng.uniform(-5, 1), 10 ** rng.uniform(-7, 0), rng.uniform(0.5, 1.3))
        control._costs[type(model), model.info] = Costs(model.info.work, prior)
    control.experience.default_factory = lambda: Experience(
        tokens=rng.choice([0.0, 1e5]), ends=rng.choice([0.0, 1e4]), seconds=rng.choice([0.0, 1e3])
    )
    return control


def random_pool(rng: random.Random, vocab: int) -> PhrasePool:
    pool = PhrasePool(max_keys=rng.choice([3, 50, 1000]), phrases_per_key=rng.randint(1, 4))
    for _ in range(rng.choice([0, 100])):
        context, phrase = rng.choices(range(vocab), k=3), rng.choices(range(vocab), k=rng.randint(1, 5))
        pool.insert(context, phrase, rng.choice([Origin.VERIFIED, Origin.CORRECTED, Origin.PROMPT, Origin.WINDOW]))
    return pool


def test_any_method_any_parameters(tiny: Pair) -> None:
    totals: Counter[str] = Counter()

    @settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(
        options=methods,
        warp=warps,
        draft=st.sampled_from(["self", "similar", "unrelated"]),
        length=st.one_of(st.integers(1, 12), st.integers(1, 300)),
        new=st.one_of(st.just(1), st.integers(2, 30)),
        eos=st.sets(st.integers(0, 39), max_size=2),
        seed=st.integers(0, 2**63 - 1),
    )
    def check(
        options: MethodOptions, warp: SamplingParams, draft: str, length: int, new: int, eos: set[int], seed: int
    ) -> None:
        rng = random.Random(seed)
        # A few different tokens alone: n-grams repeat, so that phrases and look-ups have something to find.
        prompt = rng.choices(rng.sample(range(40), 4), k=length)
        params = SamplingParams(**{**_fields(warp), "max_new_tokens": new})
        memory = Memory(random_pool(rng, 40))
        control, clock = random_control(rng, tiny), Erratic(rng)
        tokens, stats = run(tiny, draft, options, prompt, params, seed, frozenset(eos), memory, control, clock)
        assert tokens == generate(tiny.oracle, prompt, params, seed, frozenset(eos))
        assert stats.new_tokens == len(tokens) <= new
        totals.update(_counts(stats))
        totals["eos"] += tokens[-1] in eos

    check()
    for kind in ("rejected", "accepted draft", "accepted phrase", "accepted window", "eos"):
        assert totals[kind], (kind, totals)


def _fields(params: SamplingParams) -> dict[str, Any]:
    return {name: getattr(params, name) for name in SamplingParams.__dataclass_fields__}


class RandomTrees:
    """A drafter that hangs the true continuation, in part, among random branches."""

    def __init__(self, rng: random.Random, truth: Sequence[int], prompt: Sequence[int]) -> None:
        self.rng, self.text = rng, [*prompt, *truth]

    def start(self, prompt: Sequence[int]) -> Flow[None]:
        yield from ()

    def propose(self, sequence: Sequence[int], room: int) -> Flow[TokenTree]:
        yield from ()
        tree = TokenTree(sequence[-1])
        ahead = self.text[len(sequence) : len(sequence) + self.rng.randint(0, 5)][:room]
        spine = [0]
        for _ in range(self.rng.randint(0, 20)):
            if ahead and self.rng.random() < 0.4:
                spine.append(tree.add(spine[-1], ahead.pop(0), Origin.DRAFT))
            else:
                node = self.rng.randrange(len(tree))
                if tree.depths[node] < room:
                    tree.add(node, self.rng.randrange(40), Origin.VERIFIED)
        return tree

    def observe(self, verdict: Verdict) -> None:
        assert len(verdict.predictions) == len(verdict.tree)

    def stop(self, sequence: Sequence[int]) -> None:
        assert list(sequence) == self.text


def test_any_tree(tiny: Pair) -> None:
    totals: Counter[str] = Counter()

    @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(warp=warps, length=st.integers(1, 60), seed=st.integers(0, 2**63 - 1))
    def check(warp: SamplingParams, length: int, seed: int) -> None:
        rng = random.Random(seed)
        prompt = rng.choices(range(40), k=length)
        params = SamplingParams(**{**_fields(warp), "max_new_tokens": 24})
        truth = generate(tiny.oracle, prompt, params, seed)
        sampler = Sampler(params, seed, 40, length)
        tokens, stats = drain(tiny, RandomTrees(rng, truth, prompt), sampler, prompt, params, frozenset())
        assert tokens == truth
        totals.update(_counts(stats))

    check()
    assert totals["rejected"] > 1000
    assert totals["accepted draft"] > 300
    assert totals["accepted phrase"] > 10  # random branches that happened to be right


@pytest.mark.parametrize("place", ["draft", "branch"])
def test_eos_inside_a_block(tiny: Pair, place: str) -> None:
    """An accepted end-of-sequence token ends the output, whatever was drafted behind it."""
    prompt, params = [3, 1, 4, 1, 5], SamplingParams(max_new_tokens=20)
    plain = generate(tiny.oracle, prompt, params, 0)
    eos = next(token for i, token in enumerate(plain) if i >= 2 and token not in plain[:i])
    end = plain.index(eos) + 1
    memory = Memory()
    memory.phrases.insert(prompt, plain, Origin.VERIFIED)
    if place == "draft":
        tokens, stats = run(tiny, "self", Speculative(draft_tokens=10), prompt, params, 0, {eos})
        assert stats.accepted_by_source == {"draft": end}
    else:
        options = LookaheadOptions(branches=4, ngram=12, window=1)
        tokens, stats = run(tiny, None, options, prompt, params, 0, {eos}, memory)
        assert stats.accepted_by_source["phrase"] >= 2
    assert tokens == plain[:end]
