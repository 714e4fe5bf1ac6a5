"""Classifier-free guidance: equal to the oracle with every method, and to transformers' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import ouroboros
from ouroboros import METHODS, Decoder, InputError, SamplingParams
from ouroboros.config import options_for
from ouroboros.drafting.factory import NEEDS_DRAFT
from ouroboros.models.base import ScoreRequest
from ouroboros.models.context import Context
from ouroboros.models.guided import GuidedModel
from ouroboros.phrases.memory import Memory
from ouroboros.tree import Origin, TokenTree
from tests.pairs import Pair
from tests.reference import NaiveGuided, generate

PROMPT, LONG, SHORT = [5, 9, 2, 7, 1], [3, 3, 8, 1, 4, 6, 2, 9], [11]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.9},
    {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.2, "presence_penalty": 0.3},
]


def decoder(pair: Pair, method: str, draft: str = "similar") -> Decoder:
    model = pair.drafts[draft] if method in NEEDS_DRAFT else None
    return Decoder(pair.target, model, None, method, options_for(method), Memory())


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_writes_what_the_oracle_writes(tiny: Pair, method: str, settings: dict[str, Any]) -> None:
    for negative, scale in ((LONG, 2.5), (SHORT, 0.4), (None, 1.5)):
        params = SamplingParams(max_new_tokens=30, **settings)
        oracle = NaiveGuided(tiny.oracle, scale, PROMPT, negative or PROMPT[-1:])
        truth = generate(oracle, PROMPT, params, 4)
        result = decoder(tiny, method).generate(
            PROMPT, max_new_tokens=30, seed=4, guidance_scale=scale, negative_prompt=negative, **settings
        )
        assert result.token_ids == truth
        plain = decoder(tiny, method).generate(PROMPT, max_new_tokens=30, seed=4, **settings)
        assert plain.token_ids != truth, "guidance changes nothing here: the test would not see it fail"
        if method == "ouroboros":
            assert 0 < result.stats.accepted_tokens < result.stats.draft_tokens


def test_the_draft_model_is_guided_too(tiny: Pair) -> None:
    """A draft model equal to its target then agrees in every token, as it does without guidance."""
    result = decoder(tiny, "speculative", "self").generate(
        PROMPT, max_new_tokens=40, guidance_scale=3.0, negative_prompt=LONG, temperature=1.0, seed=2
    )
    assert result.stats.acceptance_rate == 1


def test_samples_share_both_contexts(tiny: Pair) -> None:
    results = decoder(tiny, "ouroboros").generate(
        PROMPT, n=3, seed=10, guidance_scale=2.0, negative_prompt=LONG, temperature=1.0, max_new_tokens=20
    )
    assert [r.stats.cached_tokens for r in results] == [0, len(PROMPT) - 1, len(PROMPT) - 1]
    oracle = NaiveGuided(tiny.oracle, 2.0, PROMPT, LONG)
    for i, result in enumerate(results):
        assert result.token_ids == generate(oracle, PROMPT, SamplingParams(temperature=1, max_new_tokens=20), 10 + i)


def test_a_session_goes_on_without_guidance(tiny: Pair) -> None:
    session = decoder(tiny, "ouroboros").session()
    session.generate(PROMPT, max_new_tokens=10, guidance_scale=2.0, negative_prompt=LONG)
    plain = session.generate(PROMPT, max_new_tokens=10)
    assert plain.token_ids == generate(tiny.oracle, PROMPT, SamplingParams(max_new_tokens=10), 0)


def test_both_contexts_end_where_the_longer_one_does(tiny: Pair) -> None:
    size = tiny.target.info.max_positions
    negative = [1 + i % 30 for i in range(size - 8)]
    result = decoder(tiny, "ouroboros").generate(
        PROMPT, max_new_tokens=50, guidance_scale=1.5, negative_prompt=negative, ignore_eos=True
    )
    assert len(result.token_ids) == 8
    assert result.finish_reason == "length"


def test_rewinding_keeps_the_contexts_in_step(tiny: Pair) -> None:
    model = GuidedModel(tiny.target, 2.0, PROMPT, LONG)
    context = Context(model)
    context.prefill(PROMPT)
    tree = TokenTree(PROMPT[-1])
    tree.extend(0, [4, 8, 15], Origin.DRAFT)
    first = model.score([ScoreRequest(context.slot, tree)])[0]
    context.commit([0, 1, 2], [*PROMPT, 4, 8, 15])
    context.slot.rewind(len(PROMPT) - 1)
    assert torch.equal(model.score([ScoreRequest(context.slot, tree)])[0], first)
    context.slot.rewind(1)  # inside the prompt: the negative one stays whole
    again = model.score([ScoreRequest(context.slot, tree, None, PROMPT[1:-1])])[0]
    assert (again - first).abs().max() < 1e-9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance_scale": -1}, "guidance_scale must be a number of at least 0, not -1"),
        ({"negative_prompt": [1]}, "negative_prompt needs a guidance_scale other than 1"),
        (
            {"guidance_scale": 2, "negative_prompt": ""},
            "negative_prompt must be a text or token ids, not empty",
        ),
        ({"guidance_scale": 2, "negative_prompt": 7}, "negative_prompt must be a text or token ids, not empty, not 7"),
        ({"guidance_scale": 2, "negative_prompt": [40]}, "negative_prompt holds the token id 40"),
        ({"guidance_scale": 2, "negative_prompt": "no"}, "a text negative_prompt needs a tokenizer"),
        ({"guidance_scale": 2, "negative_prompt": [1] * 512}, "negative_prompt has 512 tokens"),
    ],
    ids=str,
)
def test_bad_guidance(tiny: Pair, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        decoder(tiny, "ouroboros").generate(PROMPT, **settings)


@pytest.fixture(scope="module")
def module() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=50, n_positions=128, n_embd=32, n_layer=2, n_head=4)
    config.eos_token_id = config.bos_token_id = config.pad_token_id = None
    model: Any = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    return model


@pytest.mark.parametrize("negative", [None, LONG])
def test_transformers_own_guidance(module: Any, negative: list[int] | None) -> None:
    settings: dict[str, Any] = {"guidance_scale": 1.8, "do_sample": False, "max_new_tokens": 24}
    if negative is not None:
        settings["negative_prompt_ids"] = torch.tensor([negative])
    truth = module.generate(torch.tensor([PROMPT]), **settings)
    plain = module.generate(torch.tensor([PROMPT]), do_sample=False, max_new_tokens=24)
    assert truth[0].tolist() != plain[0].tolist()
    result = ouroboros.load(module, method="lookahead").generate(
        PROMPT, max_new_tokens=24, guidance_scale=1.8, negative_prompt=negative
    )
    assert [*PROMPT, *result.token_ids] == truth[0].tolist()
    # And in transformers' own call, where its processor is taken apart into our two contexts.
    ours = module.generate(torch.tensor([PROMPT]), custom_generate=ouroboros.custom_generate, **settings)
    assert ours[0].tolist() == truth[0].tolist()
