"""What is sampled over many seeds has the distribution that transformers' own warpers give to texts of three tokens.

Exact: every text of three tokens is enumerated, over forwards without cache and transformers' processors. Compared with
it are the library's texts, one a seed, and those of transformers' ``generate``; the same comparison must find a
temperature that is off, noise that does not change with the position, and a draft that is believed too often.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import ouroboros
from ouroboros import sampling
from ouroboros.config import LookaheadOptions, OuroborosOptions
from tests.pairs import unsettled
from tests.zoo import build

VOCAB, NEW = 7, 3
PROMPT = [1, 5, 2, 1, 5]
WAYS: Mapping[str, dict[str, Any]] = {
    "warped": {"temperature": 1.2, "top_k": 6, "top_p": 0.95, "min_p": 0.03},
    "penalised": {"temperature": 1.4, "repetition_penalty": 1.3, "top_p": 0.9},
}
# Among so few tokens more branches would hold the right one nearly always: nothing would be rejected.
FEW: Mapping[str, Any] = {
    "ouroboros": OuroborosOptions(control=False, draft_tokens=4, siblings=0, side_branches=0, candidates=1, branches=1),
    "lookahead": LookaheadOptions(branches=1),
}
CERTAIN, UNLIKELY = 1e-6, 1e-3  # what a wrong distribution must stay below, and the right one above

Text = tuple[int, ...]


@cache
def module(name: str, seed: int = 0) -> Any:
    """A small model; ``seed`` makes others of the same kind, that disagree with it more often than not."""
    small = {"n_layer": 1} if name == "bloom" else {"num_hidden_layers": 1}
    found = unsettled(build(name, VOCAB, **small))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.5 * seed * parameter.std(correction=0) * torch.randn_like(parameter))
    return found


@cache
@torch.inference_mode()
def exact(name: str, way: str) -> Mapping[Text, float]:
    """The probability of each text that has any."""
    settings = WAYS[way]
    steps: Any = LogitsProcessorList()
    if "repetition_penalty" in settings:
        steps.append(RepetitionPenaltyLogitsProcessor(settings["repetition_penalty"]))
    steps.append(TemperatureLogitsWarper(settings["temperature"]))
    steps.append(TopKLogitsWarper(settings.get("top_k", VOCAB)))
    steps.append(TopPLogitsWarper(settings["top_p"]))
    steps.append(MinPLogitsWarper(settings.get("min_p", 0.0)))

    def next_probabilities(texts: Iterable[Text]) -> Tensor:
        ids = torch.tensor([[*PROMPT, *text] for text in texts])
        scores: Tensor = steps(ids, module(name)(ids, use_cache=False).logits[:, -1])
        return scores.double().softmax(-1)

    found: dict[Text, float] = {(): 1.0}
    for _ in range(NEW):
        rows = next_probabilities(found).tolist()
        found = {
            (*text, t): p * row[t] for (text, p), row in zip(found.items(), rows, strict=True) for t in range(VOCAB)
        }
    assert math.isclose(sum(found.values()), 1)
    return {text: p for text, p in found.items() if p > 0}


def sampled(name: str, way: str, method: str, count: int, **changes: Any) -> list[tuple[Text, ouroboros.Stats]]:
    """One text for each of the first ``count`` seeds."""
    draft = module(name, 1) if method == "ouroboros" else None
    decoder = ouroboros.load(module(name), draft, method=method, options=FEW[method])
    settings = {**WAYS[way], "max_new_tokens": NEW, "ignore_eos": True, **changes}
    results = [decoder.generate(PROMPT, seed=seed, **settings) for seed in range(count)]
    return [(result.token_ids, result.stats) for result in results]


def p_value(texts: Iterable[Text], expected: Mapping[Text, float]) -> float:
    """Of a chi-square test; texts that are expected fewer than five times share a cell. 0 for an impossible one."""
    counts = Counter(texts)
    total = counts.total()
    if set(counts) - set(expected):
        return 0.0
    likely = [text for text, p in expected.items() if p * total >= 5]
    seen = [counts[text] for text in likely]
    wanted = [expected[text] * total for text in likely]
    seen.append(total - sum(seen))
    wanted.append(total - sum(wanted))
    if wanted[-1] < 5:  # too few for a cell of their own
        rest = seen.pop(), wanted.pop()
        seen[-1], wanted[-1] = seen[-1] + rest[0], wanted[-1] + rest[1]
    return float(chisquare(seen, wanted).pvalue)


def variation(texts: Iterable[Text], expected: Mapping[Text, float]) -> tuple[float, float]:
    """Total variation from what is expected, and what it stays below in 999 of 1,000 samples of this size.

    Its mean is at most half of sqrt(cells / size); one sample moves it by 1 / size (McDiarmid's inequality).
    """
    counts = Counter(texts)
    total = counts.total()
    cells = {*counts, *expected}
    found = sum(abs(counts[text] / total - expected.get(text, 0.0)) for text in cells) / 2
    return found, 0.5 * math.sqrt(len(expected) / total) + math.sqrt(math.log(1000) / (2 * total))


@pytest.mark.parametrize(
    ("name", "way", "method", "count"),
    [
        ("llama", "warped", "ouroboros", 2000),
        ("llama", "penalised", "lookahead", 1500),
        pytest.param("gpt2", "penalised", "ouroboros", 400, marks=pytest.mark.slow),
        pytest.param("bloom", "warped", "ouroboros", 400, marks=pytest.mark.slow),
    ],
)
def test_ouroboros_samples_what_transformers_gives(name: str, way: str, method: str, count: int) -> None:
    found = sampled(name, way, method, count)
    texts = [text for text, _ in found]
    expected = exact(name, way)
    assert len(expected) > 50
    assert max(expected.values()) < 0.2
    assert p_value(texts, expected) > UNLIKELY
    distance, bound = variation(texts, expected)
    assert distance < bound
    steps = Counter(stats.target_forwards for _, stats in found)
    assert min(steps[forwards] for forwards in (1, 2, 3)) > 0.02 * count, steps  # all accepted, some, none


@pytest.mark.parametrize("way", WAYS)
def test_generate_samples_it_too(way: str) -> None:
    """The enumeration is that of transformers' own call."""
    torch.manual_seed(0)
    inputs = torch.tensor([PROMPT]).expand(20_000, -1)
    settings = {"top_k": 0, **WAYS[way], "do_sample": True, "max_new_tokens": NEW, "eos_token_id": None}
    drawn = module("llama").generate(inputs, attention_mask=torch.ones_like(inputs), pad_token_id=0, **settings)
    texts = [tuple(text) for text in drawn[:, len(PROMPT) :].tolist()]
    assert p_value(texts, exact("llama", way)) > UNLIKELY
    distance, bound = variation(texts, exact("llama", way))
    assert distance < bound


def test_the_comparison_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = exact("llama", "warped")
    count = 800
    right = [text for text, _ in sampled("llama", "warped", "lookahead", count)]
    assert p_value(right, expected) > UNLIKELY
    colder = [text for text, _ in sampled("llama", "warped", "lookahead", count, temperature=0.9)]
    assert p_value(colder, expected) < CERTAIN
    likeliest = max(expected, key=lambda text: expected[text])
    believed = [likeliest if seed % 6 == 0 else text for seed, text in enumerate(right)]
    assert p_value(believed, expected) < CERTAIN
    noise = sampling.gumbel_noise
    monkeypatch.setattr(
        "ouroboros.sampling.sampler.gumbel_noise", lambda seed, positions, ids: noise(seed, positions * 0, ids)
    )
    stuck = [text for text, _ in sampled("llama", "warped", "lookahead", count)]
    firsts = {(token,): sum(p for text, p in expected.items() if text[0] == token) for token in range(VOCAB)}
    assert p_value(((text[0],) for text in stuck), {t: p for t, p in firsts.items() if p}) > UNLIKELY
    assert p_value(stuck, expected) < CERTAIN
