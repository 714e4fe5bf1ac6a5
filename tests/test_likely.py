"""Draft models that compute the logits of likely tokens alone: which these are, and that nothing else changes."""

from __future__ import annotations

import random

import pytest
import torch

from ouroboros import Decoder, SamplingParams
from ouroboros.config import options_for
from ouroboros.models.base import ScoreRequest
from ouroboros.models.likely import MOST_READ, OUTSIDE, TILE, LikelyTokens
from ouroboros.models.llama import LlamaModel, WeightSource
from ouroboros.models.loading import parse_config
from ouroboros.models.quantised import Precision
from tests.blocks import StoredTensors
from tests.pairs import Weights, native, random_weights, tiny_config
from tests.reference import NaiveLlama, generate
from tests.test_kernels import BASE, CPU, chain, needed

VOCAB, FIRST = 40 * TILE + 7, 4 * TILE


def test_first_tokens_and_end_tokens() -> None:
    likely = LikelyTokens(VOCAB, [VOCAB - 1, 3], FIRST)
    assert list(likely.tiles() or ()) == [0, 1, 2, 3, 40]
    assert likely.share == 5 / 41


def test_what_is_read_comes_to_them() -> None:
    likely = LikelyTokens(VOCAB, (), FIRST)
    likely.read([1, 2, 700, 5, 6, 700, 701])
    assert list(likely.tiles() or ()) == [0, 1, 2, 3, 700 // TILE]


def test_many_outside_and_fewer_again() -> None:
    likely = LikelyTokens(VOCAB, (), FIRST)
    likely.read([FIRST + TILE * i for i in range(12)])  # 12 in a row: 1 - (63 / 64) ** 12 = 0.17
    assert likely.tiles() is None
    likely.read([1] * 64)
    assert len(likely.tiles() or ()) == 4 + 12


def test_what_was_read_long_ago_goes_first() -> None:
    likely = LikelyTokens(TILE * (MOST_READ + 10), (), TILE)
    for tile in range(1, MOST_READ + 3):
        likely.read([tile * TILE, TILE])
    likely.read([1] * 500)  # until few were outside
    assert list(likely.tiles() or ()) == [0, 1, *range(4, MOST_READ + 3)]


def drafts(weights: str) -> list[LlamaModel]:
    """The same model twice."""
    fields = {**BASE, "hidden_size": 96, "intermediate_size": 128, "head_dim": 32, "vocab_size": VOCAB}
    config = parse_config(fields)
    if weights == "stored":
        source: WeightSource = StoredTensors(config.shapes(), ["Q8_0", "F16", "Q4_0"])
        precision = Precision(torch.float32, weights)
    else:
        source, precision = Weights(random_weights(fields, 3, scale=0.25)), Precision.of(weights)
    return [LlamaModel(config, source, frozenset(), precision, CPU) for _ in range(2)]


@needed
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8", "int4", "w8a8", "stored"])
def test_logits_of_likely_tokens_are_the_whole_models(weights: str) -> None:
    whole, narrowed = drafts(weights)
    narrowed.narrow(FIRST)
    text = [3, 900, 5, 901, *[7] * 40]
    rows = []
    for model in (whole, narrowed):
        slot = model.open()
        model.prefill(slot, text)
        rows.append(model.score([ScoreRequest(slot, chain([3, 9, 1100]))])[0])
    computed = torch.tensor([*range(FIRST), *range(896, 928), *range(1088, 1120)])
    assert torch.equal(rows[1][:, computed], rows[0][:, computed])
    others = torch.ones(VOCAB, dtype=torch.bool)
    others[computed] = False
    assert (rows[1][:, others] == torch.tensor(OUTSIDE).to(rows[1].dtype)).all()
    assert narrowed.info.work.products < whole.info.work.products
    assert narrowed.info.work.bytes < whole.info.work.bytes


@needed
def test_a_language_that_the_first_tokens_lack() -> None:
    whole, narrowed = drafts("float32")
    narrowed.narrow(FIRST)
    other = random.Random(0).choices(range(FIRST, VOCAB), k=60)
    rows = []
    for model in (whole, narrowed):
        slot = model.open()
        model.prefill(slot, other)
        rows.append(model.score([ScoreRequest(slot, chain([3, 9]))])[0])
    assert torch.equal(rows[0], rows[1])


def test_small_vocabularies_stay_whole() -> None:
    model = native(tiny_config(), random_weights(tiny_config(), 3), torch.float32)
    before = model.info
    model.narrow()
    assert model.info == before


@needed
@pytest.mark.parametrize("method", ["ouroboros", "speculative"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_the_targets_text(method: str, temperature: float, guidance: float) -> None:
    config = tiny_config(vocab_size=300)
    weights = random_weights(config, 1)
    target = native(config, weights, torch.float32)
    draft = native(config, weights, torch.float32)
    draft.narrow(64)
    assert draft.info.work != target.info.work
    prompt = [1, 7, 70, 200, 3]
    params = SamplingParams(
        max_new_tokens=48,
        temperature=temperature,
        seed=5,
        guidance_scale=guidance,
        negative_prompt=(4, 5) if guidance != 1 else None,
    )
    plain = Decoder(target, None, None, "autoregressive", options_for("autoregressive", None), None)
    drafted = Decoder(
        target, draft, None, method, options_for(method, {"control": False} if method == "ouroboros" else None), None
    )
    expected = plain.generate(prompt, params)
    found = drafted.generate(prompt, params)
    assert found.token_ids == expected.token_ids
    assert found.stats.draft_forwards
    if guidance == 1:
        oracle = NaiveLlama(config, weights, torch.float32)
        assert found.token_ids == tuple(generate(oracle, prompt, params, 5))
