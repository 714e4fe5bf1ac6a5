"""Logits and weights that are NaN, infinite or denormal: one error that says where, or the right text."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import Tensor

import ouroboros
from ouroboros import ModelError, SamplingParams
from ouroboros.config import METHODS
from ouroboros.drafting.factory import NEEDS_DRAFT
from ouroboros.integrations.generate import CustomGenerate
from ouroboros.models.base import CausalModel, ScoreRequest
from ouroboros.sampling import Sampler
from tests.pairs import Pair
from tests.reference import generate

PROMPT = [3, 1, 4, 1, 5]
NEW = 20
SIZES: dict[str, Any] = {  # of a small GPT-2
    "vocab_size": 40,
    "n_positions": 64,
    "n_embd": 16,
    "n_layer": 1,
    "n_head": 2,
    "eos_token_id": None,
}
NAN, INF = math.nan, math.inf
Spoil = Callable[[Tensor], Tensor]


def put(value: float, *places: int) -> Spoil:
    return lambda row_V: row_V.index_fill(-1, torch.tensor(places or range(len(row_V))), value)


BROKEN: dict[str, tuple[Spoil, str]] = {
    "one NaN": (put(NAN, 7), "NaN"),
    "the last is NaN": (put(NAN, 39), "NaN"),
    "all NaN": (put(NAN), "NaN"),
    "one +inf": (put(INF, 0), "infinite"),
    "+inf and NaN": (lambda row_V: put(INF, 3)(put(NAN, 5)(row_V)), "NaN"),
    "all +inf": (put(INF), "infinite"),
    "all -inf": (put(-INF), "all -inf"),
}
SOUND: dict[str, Spoil] = {
    "some -inf": put(-INF, 1, 2, 8),
    "denormal": lambda row_V: row_V * 1e-42,
    "all zero": put(0.0),
    "large": lambda row_V: row_V.sign() * 3e38,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.9},
    "cut": {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "min_p": 0.01},
    "penalties": {"temperature": 0.7, "repetition_penalty": 1.2, "presence_penalty": 0.3},
    "bias": {"logit_bias": {5: 1.5}},
    "processor": {"processors": [lambda ids, scores: scores - 1]},
}


class Spoiled:
    """A model of whose logits those for tokens at some positions are spoilt (see base.CausalModel)."""

    def __init__(self, model: CausalModel, spoil: Spoil, where: Callable[[int], bool]) -> None:
        self._model, self._spoil, self._where = model, spoil, where
        self.info, self.open, self.prefill = model.info, model.open, model.prefill

    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        found = []
        for request in requests:
            tree, root = request.tree, request.slot.length + len(request.catch_up)
            rows = range(request.slot.pending, len(tree)) if request.rows is None else request.rows
            [logits_RV] = self._model.score([request])
            logits_RV = logits_RV.clone()
            for place, row in enumerate(rows):
                if self._where(root + tree.depths[row] + 1):
                    logits_RV[place] = self._spoil(logits_RV[place])
            found.append(logits_RV)
        return found


class NaiveSpoiled:
    def __init__(self, model: Any, spoil: Spoil, where: Callable[[int], bool]) -> None:
        self._model, self._spoil, self._where = model, spoil, where

    def logits(self, tokens: Sequence[int]) -> Tensor:
        logits_V: Tensor = self._model.logits(tokens)
        return self._spoil(logits_V) if self._where(len(tokens)) else logits_V


def write(target: CausalModel, draft: CausalModel, method: str, name: str) -> Any:
    decoder = ouroboros.load(target, draft if method in NEEDS_DRAFT else None, method=method)
    return decoder.stream(PROMPT, max_new_tokens=NEW, ignore_eos=True, seed=5, **SETTINGS[name])


def right(model: Any, name: str) -> tuple[int, ...]:
    params = SamplingParams(max_new_tokens=NEW, ignore_eos=True, seed=5, **SETTINGS[name])
    return generate(model, PROMPT, params, 5)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("method", METHODS)
def test_a_target_without_numbers_is_one_error_that_says_where(tiny: Pair, method: str, name: str) -> None:
    text = right(tiny.oracle, name)
    for number, (spoil, what) in enumerate(BROKEN.values()):
        at = len(PROMPT) + (0, 1, 4, 9)[number % 4]
        target = Spoiled(tiny.target, spoil, lambda position, at=at: position >= at)  # type: ignore[misc]
        stream = write(target, tiny.drafts["similar"], method, name)
        words = (
            rf"^the target model \(native, float64 on cpu\) gives no numbers for the token at position {at}: {what}$"
        )
        with pytest.raises(ModelError, match=words):
            list(stream)
        stream.close()
        written = stream.result.token_ids
        assert written == text[: len(written)]
        assert len(written) <= at - len(PROMPT)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_unusual_and_sound_is_written_right(tiny: Pair, method: str, name: str) -> None:
    for spoil in SOUND.values():
        where = lambda position: position % 3 == 0  # noqa: E731
        wanted = right(NaiveSpoiled(tiny.oracle, spoil, where), name)
        stream = write(Spoiled(tiny.target, spoil, where), tiny.drafts["similar"], method, name)
        list(stream)
        assert stream.result.token_ids == wanted


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("method", sorted(NEEDS_DRAFT))
def test_a_draft_without_numbers_costs_speed_alone(tiny: Pair, method: str, name: str) -> None:
    text = right(tiny.oracle, name)
    settings = {"max_new_tokens": NEW, "ignore_eos": True, "seed": 5, **SETTINGS[name]}
    for number, spoil in enumerate((*(spoil for spoil, _ in BROKEN.values()), *SOUND.values())):
        where = (lambda _: True, lambda position: position % 4 == 0)[number % 2]
        draft = Spoiled(tiny.drafts["self"], spoil, where)
        options = {"control": number % 4 > 2} if method == "ouroboros" else {}
        decoder = ouroboros.load(tiny.target, draft, method=method, options=options)
        for _ in range(2):  # with what the first has learned, too
            assert decoder.generate(PROMPT, **settings).token_ids == text


@pytest.mark.parametrize("method", ["lookahead", "ouroboros", "autoregressive"])
def test_guidance_grammar_and_logprobs(tiny: Pair, method: str) -> None:
    target = Spoiled(tiny.target, put(NAN, 7), lambda position: position >= 9)
    decoder = ouroboros.load(target, tiny.drafts["self"] if method in NEEDS_DRAFT else None, method=method)
    with pytest.raises(ModelError, match="position 9: NaN"):
        decoder.generate(PROMPT, max_new_tokens=NEW, guidance_scale=1.5)
    with pytest.raises(ModelError, match="position 9: NaN"):
        decoder.generate(PROMPT, max_new_tokens=NEW, logprobs=3)
    pytest.importorskip("llguidance")
    words = ouroboros.load(method=method)
    broken = Spoiled(words.target, put(NAN, 7), lambda position: position >= 9)
    decoder = ouroboros.load(broken, words.draft, tokenizer=words.tokenizer, method=method)
    for grammar in ({"regex": "[0-9]{30}"}, {"json_schema": {"type": "string"}}):
        with pytest.raises(ModelError, match="position 9: NaN"):
            decoder.generate(PROMPT, max_new_tokens=NEW, grammar=grammar)


@pytest.mark.parametrize("method", METHODS)
def test_weights_that_lose_their_numbers_after_loading(method: str) -> None:
    """In a module that is kept, anything may happen to them."""
    torch.manual_seed(0)
    sound, helper = (hf.GPT2LMHeadModel(hf.GPT2Config(**SIZES)).eval() for _ in range(2))
    plain = ouroboros.load(sound, method="autoregressive").generate(PROMPT, max_new_tokens=NEW).token_ids
    source = random.Random(1)
    for value in (NAN, INF, -INF, 1e-42, 3e38):
        for role in ("draft", "target") if method in NEEDS_DRAFT else ("target",):
            target, draft = copy.deepcopy(sound), copy.deepcopy(helper)
            decoder = ouroboros.load(target, draft if method in NEEDS_DRAFT else None, method=method)
            module = draft if role == "draft" else target
            parameter = source.choice([one for one in module.parameters() if one.dim() > 1])
            with torch.no_grad():
                parameter[source.sample(range(len(parameter)), len(parameter) // 2)] = value
            if role == "draft":
                assert decoder.generate(PROMPT, max_new_tokens=NEW).token_ids == plain
                continue
            try:
                written = decoder.generate(PROMPT, max_new_tokens=NEW).token_ids
            except ModelError as error:
                assert "the target model (transformers, float32 on cpu) gives no numbers" in str(error)  # noqa: PT017
            else:
                again = ouroboros.load(target, method="autoregressive") if math.isfinite(value) else None
                assert again is None or written == again.generate(PROMPT, max_new_tokens=NEW).token_ids


def test_in_transformers_own_call() -> None:
    torch.manual_seed(0)
    model = hf.GPT2LMHeadModel(hf.GPT2Config(**SIZES)).eval()
    settings: dict[str, Any] = {"max_new_tokens": 4, "pad_token_id": 0, "custom_generate": CustomGenerate()}
    ids = torch.tensor([PROMPT])
    with pytest.raises(ouroboros.InputError, match="guidance_scale must be"):
        model.generate(ids, guidance_scale=1e39, **settings)
    with pytest.raises(ouroboros.InputError, match="TemperatureLogitsWarper makes scores that are no numbers"):
        model.generate(ids, temperature=1e-41, do_sample=True, **settings)
    settings["custom_generate"] = CustomGenerate()
    plain = model.generate(ids, **settings)
    with torch.no_grad():
        model.transformer.wpe.weight[6:] = NAN
    # Operators add nothing times a masked value, which is NaN too: a guess at the next position spoils this one.
    with pytest.raises(ModelError, match=r"no numbers for the token at position [67]: NaN"):
        model.generate(ids, **settings)
    assert plain.shape == (1, 9)


def test_processors_without_numbers() -> None:
    def spoil(ids: Tensor, scores: Tensor) -> Tensor:
        return scores * NAN

    sampler = Sampler(SamplingParams(processors=(spoil,)), 0, 6)
    with pytest.raises(ouroboros.InputError, match="processor spoil makes scores that are no numbers"):
        sampler.draw(torch.zeros(1, 6), [1], [[0]])
    assert sampler.draw(torch.full((1, 6), NAN), [1], [[0]])  # a draft's: whatever comes


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64])
def test_rows_of_any_floats_never_crash_a_sampler(kind: torch.dtype) -> None:
    """Draws are ids, chances are within 0 and 1, in every way to compute them."""
    source = np.random.default_rng(0)
    values = [NAN, INF, -INF, 0.0, -0.0, 1e-42, -1e-42, 3e38, -3e38, 1.0, -2.5]
    for trial in range(150):
        logits_RV = torch.from_numpy(source.standard_normal((3, 23)))
        mask = torch.from_numpy(source.random((3, 23)) < source.choice([0.05, 0.5, 1.0]))
        logits_RV[mask] = torch.from_numpy(source.choice(values, int(mask.sum())))
        settings: dict[str, Any] = source.choice(list(SETTINGS.values()))  # type: ignore[arg-type]
        if "processors" in settings:
            continue
        sampler = Sampler(SamplingParams(**settings), trial, 23)
        rows_RV = logits_RV.to(kind)
        history = [[1, 2, 3]] * 3
        assert all(0 <= token < 23 for token in sampler.draw(rows_RV, [3, 4, 5], history))
        found = sampler.choices(rows_RV, [3, 4, 5], history, 4, [(0, 1), (2, 22)])
        chances = [*(one for row in found.probs for one in row), *found.asked]
        assert all(0 <= token < 23 for row in found.tokens for token in row)
        assert all(0 <= one <= 1 + 1e-6 for one in chances)
        sampler.likeliest(rows_RV, 4)
