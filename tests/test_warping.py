"""The sampler's shortcuts (no full sort, histories that are known already, NumPy's hash) against their slow twins."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ouroboros.config import SamplingParams
from ouroboros.sampling import Histories, Sampler
from ouroboros.sampling.noise import _on_device, gumbel_noise
from tests import slow_sampling

KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "a language model's": lambda x: 3 * x - x**2 / 2,
    "flat": lambda x: x / 100,
    "certain": lambda x: 60 * x,
    "with ties": lambda x: (2 * x).round(),
    "equal": lambda x: 0 * x,
    "mostly forbidden": lambda x: x.masked_fill(x < 1, -math.inf),
    "forbidden but for one": lambda x: x.masked_fill(torch.arange(x.shape[-1]) > 0, -math.inf),
    "of several kinds": lambda x: x * torch.tensor([0.0, 0.01, 1, 5, 60])[: len(x), None],
}


def counting(ids_BL: Tensor, scores_BV: Tensor) -> Any:
    """A processor that sees whole histories, and their order."""
    places = torch.arange(1, ids_BL.shape[-1] + 1, device=ids_BL.device)
    slope_B1 = 0.01 * ((ids_BL * places).sum(-1, keepdim=True) % 13)
    return scores_BV - slope_B1 * torch.arange(scores_BV.shape[-1], device=ids_BL.device)


@st.composite
def requests(draw: st.DrawFn) -> tuple[Tensor, SamplingParams, list[int], list[list[int]]]:
    """Logits [R, V], parameters, a base and tails."""
    size = draw(st.sampled_from([1, 2, 7, 64, 1500]))
    rows = draw(st.integers(1, 5))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    raw_RV = torch.randn((rows, size), generator=generator, dtype=torch.float64)
    logits_RV = KINDS[draw(st.sampled_from(sorted(KINDS)))](raw_RV).to(dtype)
    params = SamplingParams(
        temperature=draw(st.sampled_from([0.0, 0.3, 0.8, 1.0, 2.5])),
        top_k=draw(st.sampled_from([0, 0, 1, 3, 50, size, size + 1])),
        top_p=draw(st.sampled_from([1.0, 1.0, 0.95, 0.5, 1e-9, 0.999, 1 - 1e-6, 1 - 1e-7, 1 - 1e-12])),
        min_p=draw(st.sampled_from([0.0, 0.0, 0.02, 0.5, 1.0])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.1, 0.7])),
        presence_penalty=draw(st.sampled_from([0.0, 0.3])),
        frequency_penalty=draw(st.sampled_from([0.0, -0.2])),
        processors=draw(st.sampled_from([(), (counting,)])),
    )
    tokens = st.integers(0, size - 1)
    base = draw(st.lists(tokens, min_size=1, max_size=30))
    tails = draw(st.lists(st.lists(tokens, max_size=4), min_size=rows, max_size=rows))
    return logits_RV, params, base, tails


@given(requests(), st.integers(0, 2**63 - 1), st.integers(0, 40), st.booleans())
@settings(deadline=None, max_examples=400)
def test_rows_are_the_slow_twins_bit_for_bit(
    request: tuple[Tensor, SamplingParams, list[int], list[list[int]]], seed: int, prompt_length: int, whole: bool
) -> None:
    logits_RV, params, base, tails = request
    full = [[*base, *tail] for tail in tails]
    positions = [len(history) for history in full]
    sampler = Sampler(params, seed, logits_RV.shape[-1], prompt_length)
    histories = full if whole else Histories(base, tails)
    raw_RV = logits_RV.clone()
    assert torch.equal(sampler.warp(logits_RV, histories), slow_sampling.warp(logits_RV, params, full, prompt_length))
    expected_RV = slow_sampling.perturbed(logits_RV, params, seed, positions, full, prompt_length)
    assert torch.equal(sampler.perturbed(logits_RV, positions, histories), expected_RV)
    assert sampler.draw(logits_RV, positions, histories) == expected_RV.argmax(-1).tolist()
    assert torch.equal(logits_RV, raw_RV), "the model's logits are left as they are"


@given(
    st.lists(st.tuples(st.integers(0, 40), st.lists(st.integers(0, 9), max_size=12)), min_size=1, max_size=8),
    st.integers(0, 12),
)
@settings(deadline=None)
def test_a_text_may_grow_and_be_taken_back(changes: Sequence[tuple[int, list[int]]], prompt_length: int) -> None:
    """One sampler over many calls against a new one for each: what it has counted is what is there."""
    params = SamplingParams(repetition_penalty=1.3, presence_penalty=0.2, frequency_penalty=0.1, processors=(counting,))
    kept = Sampler(params, 0, 10, prompt_length)
    logits_1V = torch.linspace(-3, 3, 10)[None]
    text: list[int] = []
    for cut, new in changes:
        text = text[:cut] + new
        found = kept.warp(logits_1V, Histories(tuple(text) if cut % 2 else text, [[1, 1]]))
        assert torch.equal(found, slow_sampling.warp(logits_1V, params, [[*text, 1, 1]], prompt_length))


def test_what_whole_histories_share_is_found() -> None:
    assert Histories.of([[1, 2, 3, 4], [1, 2, 5], [1, 2, 3]]) == Histories([1, 2], [[3, 4], [5], [3]])
    assert Histories.of([(7, 8)]) == Histories([7, 8], [()])
    assert Histories.of([[1], [2]]) == Histories([], [[1], [2]])
    assert Histories.of([(), ()]) == Histories([], [(), ()])


@given(st.integers(0, 2**63 - 1))
@settings(deadline=None)
def test_devices_hash_as_the_host_does(seed: int) -> None:
    positions, ids = torch.tensor([[0], [5], [10**6]]), torch.arange(0, 150_000, 71)
    torch.testing.assert_close(
        gumbel_noise(seed, positions, ids), _on_device(seed, positions, ids), rtol=1e-14, atol=1e-15
    )


@pytest.mark.parametrize("top_p", [0.3, 0.999])
def test_top_p_ranks_few_tokens(top_p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The floor does its work: of a language model's row only what might survive is ever sorted."""
    sorted_sizes: list[int] = []
    sort = np.sort

    def counted(values: Any, **kwargs: Any) -> Any:
        sorted_sizes.append(values.shape[-1])
        return sort(values, **kwargs)

    monkeypatch.setattr(np, "sort", counted)
    torch.manual_seed(0)
    logits_1V = 4 * torch.randn(1, 50_000)
    logits_1V[0, 123] = 30
    Sampler(SamplingParams(temperature=1, top_p=top_p), 0, 50_000).draw(logits_1V, [3], [()])
    assert sorted_sizes
    assert max(sorted_sizes) < 200


@pytest.mark.gpu
@pytest.mark.parametrize("whole", [False, True])
def test_a_gpu_draws_what_the_host_draws(whole: bool) -> None:
    torch.manual_seed(0)
    logits_RV = 4 * torch.randn(5, 3000, dtype=torch.float64)
    tails = [[7, 8], [], [9], [7, 7], [2999]]
    full = [[5, 6, 7, *tail] for tail in tails]
    positions = [len(history) for history in full]
    for settings_ in (
        {"temperature": 0.8},
        {"repetition_penalty": 1.3},
        {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.3, "presence_penalty": 0.2},
        {"temperature": 1.3, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "processors": [counting]},
        {"temperature": 1.0, "min_p": 0.02},
    ):
        sampler = Sampler(SamplingParams(**settings_), 3, 3000, 4)
        histories = full if whole else Histories([5, 6, 7], tails)
        host = sampler.draw(logits_RV, positions, histories)
        assert sampler.draw(logits_RV.cuda(), positions, histories) == host
        torch.testing.assert_close(
            sampler.perturbed(logits_RV.cuda(), positions, histories).cpu(),
            sampler.perturbed(logits_RV, positions, histories),
        )
