"""Warping and keyed draws: against the oracle's lists, against transformers, and in distribution."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ouroboros.config import SamplingParams
from ouroboros.sampling import Sampler, choices, gumbel_noise
from ouroboros.tree import Origin, TokenTree
from ouroboros.verify import verify
from tests import reference

PARAMS = [
    SamplingParams(temperature=0.7),
    SamplingParams(temperature=1.0, top_k=5),
    SamplingParams(temperature=1.5, top_p=0.8),
    SamplingParams(temperature=1.0, min_p=0.1),
    SamplingParams(temperature=0.9, top_k=30, top_p=0.95, min_p=0.02, repetition_penalty=1.3),
    SamplingParams(repetition_penalty=1.3),
]


@given(st.integers(0, 2**63 - 1), st.integers(0, 10**6), st.integers(0, 200_000))
def test_noise_is_the_hash_of_its_key(seed: int, position: int, token: int) -> None:
    ours = gumbel_noise(seed, torch.tensor([position]), torch.tensor([token])).item()
    assert ours == pytest.approx(reference.noise(seed, position, token), rel=1e-12)


def test_noise_is_gumbel_and_independent() -> None:
    rows = gumbel_noise(5, torch.arange(200)[:, None], torch.arange(200)[None])
    assert kstest(rows.flatten().numpy(), "gumbel_r").pvalue > 0.01
    assert kstest(gumbel_noise(6, torch.arange(40_000), torch.tensor(3)).numpy(), "gumbel_r").pvalue > 0.01
    for other in (
        rows.roll(1, 0),
        rows.roll(1, 1),
        gumbel_noise(6, torch.arange(200)[:, None], torch.arange(200)[None]),
    ):
        together = torch.stack([rows.flatten(), other.flatten()])
        assert abs(torch.corrcoef(together)[0, 1].item()) < 0.02


@pytest.mark.parametrize("params", PARAMS, ids=str)
def test_warping_is_transformers_own(params: SamplingParams) -> None:
    torch.manual_seed(0)
    logits_RV = torch.randn(20, 100) * 4
    histories = [random.Random(row).choices(range(100), k=30) for row in range(20)]
    config = GenerationConfig()
    steps = LogitsProcessorList()
    if params.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.temperature:
        steps.append(TemperatureLogitsWarper(params.temperature))
        steps += [TopKLogitsWarper(params.top_k)] if params.top_k else []
        steps += [TopPLogitsWarper(params.top_p)] if params.top_p < 1 else []
        steps += [MinPLogitsWarper(params.min_p)] if params.min_p else []
    assert config is not None
    theirs = steps(torch.LongTensor(histories), torch.FloatTensor(logits_RV.clone()))
    ours = Sampler(params, 0, 100).warp(logits_RV, histories)
    torch.testing.assert_close(ours, theirs)


@given(st.integers(0, 10**6), st.sampled_from(PARAMS), st.booleans())
def test_draws_are_the_oracles(seed: int, params: SamplingParams, ties: bool) -> None:
    torch.manual_seed(seed)
    logits_RV = torch.randn(4, 50, dtype=torch.float64) * 3
    if ties:  # as bf16 makes them
        logits_RV = logits_RV.round()
    histories = [random.Random(seed + row).choices(range(50), k=10 + row) for row in range(4)]
    drawn = Sampler(params, seed, 50).draw(logits_RV, [len(history) for history in histories], histories)
    rows = zip(logits_RV.tolist(), histories, strict=True)
    assert drawn == [reference.draw(row, params, seed, history) for row, history in rows]


def test_ties_go_to_the_lowest_id() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0]])
    two = Sampler(SamplingParams(temperature=1, top_k=2), 0, 5).warp(scores, [()])
    assert two.isfinite().tolist() == [[False, True, True, False, False]]
    assert Sampler(SamplingParams(), 0, 5).argmax(scores) == [1]
    assert Sampler(SamplingParams(temperature=1, top_k=1), 9, 5).draw(scores, [4], [()]) == [1]


@pytest.mark.parametrize("top_p", [1e-9, 0.3])
def test_top_p_keeps_at_least_one(top_p: float) -> None:
    warped = Sampler(SamplingParams(temperature=1, top_p=top_p), 0, 4).warp(torch.tensor([[0.0, 4.0, 1.0, 2.0]]), [()])
    assert torch.isfinite(warped).tolist() == [[False, True, False, False]]


def test_padding_columns_are_no_tokens() -> None:
    logits = torch.zeros(1, 8)
    logits[0, 7] = 100
    sampler = Sampler(SamplingParams(temperature=1), 0, 6)
    assert sampler.argmax(logits)[0] < 6
    assert sampler.draw(logits, [3], [()])[0] < 6
    shorter = Sampler(SamplingParams(temperature=1), 0, 20)  # a draft matrix of fewer rows than the target's
    assert shorter.draw(logits, [3], [()])[0] < 8


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.8, top_p=0.9),
        SamplingParams(temperature=1, top_k=3),
    ],
)
def test_tree_verification_samples_the_right_distribution(params: SamplingParams) -> None:
    """Two tokens by tree verification, over many seeds, against the exact probabilities (chi-square)."""
    vocab, seeds = 6, 6000
    torch.manual_seed(1)
    first_V = torch.randn(vocab, dtype=torch.float64)
    second_VV = torch.randn(vocab, vocab, dtype=torch.float64)
    tree = TokenTree(0)
    for token in (1, 4, 5):
        node = tree.add(0, token, Origin.DRAFT)
        tree.add(node, 2, Origin.VERIFIED)
    logits_NV = torch.stack([first_V if n == 0 else second_VV[tree.tokens[n]] for n in range(len(tree))])
    counts = torch.zeros(vocab, vocab)
    for seed in range(seeds):
        verdict = verify(tree, logits_NV, Sampler(params, seed, vocab), [0, 0, 0])
        tokens = list(verdict.tokens)
        if len(tokens) < 2:  # no child bore the draw: the next step starts at this token
            sampler = Sampler(params, seed, vocab)
            tokens += verify(TokenTree(tokens[0]), second_VV[tokens[0]][None], sampler, [0, 0, 0, tokens[0]]).tokens
        counts[tokens[0], tokens[1]] += 1

    def exact(logits: torch.Tensor) -> torch.Tensor:
        scores = torch.tensor(reference.warp(logits.tolist(), params, []), dtype=torch.float64)
        return scores.softmax(-1)

    probs = exact(first_V)[:, None] * torch.stack([exact(row) for row in second_VV])
    possible = probs > 0
    assert counts[~possible].sum() == 0
    assert chisquare(counts[possible].numpy(), (probs * seeds)[possible].numpy()).pvalue > 0.01


def test_shared_noise_couples_two_models() -> None:
    """A draft that draws with the target's noise agrees more often than independent draws could."""
    torch.manual_seed(2)
    target = torch.randn(50, dtype=torch.float64) * 2
    draft = target + 0.3 * torch.randn(50, dtype=torch.float64)
    params = SamplingParams(temperature=1.0)
    agreed = sum(
        Sampler(params, seed, 50).draw(target[None], [3], [()])
        == Sampler(params, seed, 50).draw(draft[None], [3], [()])
        for seed in range(1000)
    )
    independent = float((target.softmax(-1) * draft.softmax(-1)).sum())
    assert agreed / 1000 > 2 * independent
    assert math.isclose(agreed / 1000, float(torch.minimum(target.softmax(-1), draft.softmax(-1)).sum()), abs_tol=0.15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_choices_are_the_softmaxs_likeliest(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    scores = 3 * torch.randn(5, 60, dtype=dtype)
    scores[1, 10:] = -math.inf
    found = choices(scores, 4, [(1, 3), (1, 30), (4, 59)])
    probs = scores.softmax(-1)
    top = probs.topk(4, -1)
    assert found.tokens == top.indices.tolist()
    torch.testing.assert_close(torch.tensor(found.probs, dtype=dtype), top.values)
    assert found.asked == pytest.approx([float(probs[1, 3]), 0.0, float(probs[4, 59])], rel=1e-5)
    assert choices(torch.zeros(1, 3), 9).tokens == [[0, 1, 2]]  # ties to the lowest id; no more than there are


def test_few_logits_wake_no_threads() -> None:
    before = torch.get_num_threads()
    seen: list[int] = []

    def processor(ids_BL: torch.Tensor, scores_BV: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return scores_BV

    sampler = Sampler(SamplingParams(temperature=0.5), 1, 600, processors=[processor])
    torch.set_num_threads(2)
    try:
        sampler.perturbed(torch.zeros(2, 600), [3, 4], [[1], [1]])
        sampler.perturbed(torch.zeros(2000, 600), list(range(2000)), [[1]] * 2000)
        assert seen == [1, 2]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_one_call_yields_what_the_operators_yield(
    dtype: torch.dtype, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draws, choices and noise of the C++ kernel, where there is one, against PyTorch's and NumPy's operators; rows
    that are padded beyond the vocabulary, or shorter than it, and many that tie."""
    torch.manual_seed(5)
    positions, pairs = [1, 2, 3, 1, 9, 70000], [(0, 5), (5, 996)]
    params = SamplingParams(temperature=temperature)
    for width in (997, 1003, 1100):
        logits = (4 * torch.randn(6, 2 * width)).to(dtype)[:, :width]
        logits[0] = logits[0].round()

        def found(logits: torch.Tensor = logits) -> tuple[object, ...]:
            sampler = Sampler(params, 2**62 + 3, 1003)
            best = sampler.choices(logits, positions, [()] * 6, 3, pairs)
            draws = sampler.draw(logits, positions, [()] * 6)
            numbers = torch.tensor([*best.asked, *(prob for row in best.probs for prob in row)])
            return sampler.argmax(logits), draws, best.tokens, numbers

        *fast, fast_numbers = found()
        with monkeypatch.context() as patch:
            patch.setattr("ouroboros.sampling.rows.library", lambda: "no C++ compiler")
            *plain, plain_numbers = found()
        assert fast == plain
        torch.testing.assert_close(fast_numbers, plain_numbers, rtol=1e-5, atol=1e-7)
