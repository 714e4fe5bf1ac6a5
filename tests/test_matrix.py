"""Architectures × ways of sampling: what a naive generator writes over transformers' own forward, token for token.

The generator recomputes the whole text for every token, draws in plain Python (tests.reference) and asks llguidance for
a grammar's mask with a new matcher each time; no code of the library is in it. Models are small and random (tests.zoo),
drafts are perturbed copies: each architecture must meet rejections and acceptances, and branches where it takes them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import llguidance
import llguidance.hf
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import ouroboros
from ouroboros.config import SamplingParams
from tests.pairs import unsettled
from tests.reference import draw
from tests.zoo import ADAPTED, CHAINS, NATIVE, build, perturbed

ARCHITECTURES = {**NATIVE, **ADAPTED}  # what both know, the library runs natively
RUN_NATIVELY = {*NATIVE, "gemma2", "gemma3"}
METHODS = ("ouroboros", "lookahead", "suffix_decoding", "token_recycling")
SEED = 5
EOS = 0
SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "a": {"type": "integer", "minimum": 0, "maximum": 999},
        "b": {"enum": ["yes", "no", "perhaps"]},
        "c": {"type": "boolean"},
    },
    "required": ["a", "b", "c"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
PENALTIES: Mapping[str, Any] = {"repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.2}
COLUMNS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {},
    "greedy, penalties": PENALTIES,
    "sampled": {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "min_p": 0.01},
    "penalties": {"temperature": 0.7, **PENALTIES},
    "grammar": {"grammar": {"json_schema": SCHEMA}},
    "sampled grammar": {"temperature": 0.8, **PENALTIES, "grammar": {"json_schema": SCHEMA}},
}
TEXT = 'An answer: {"a":7,"b":"no","c":true} and another: {"a":7,'  # phrases repeat
MERGES = ("tr", "u"), ("tru", "e"), ("y", "e"), ("ye", "s"), ('"', ":"), ('"', ","), ("{", '"'), ("1", "2")


@cache
def tokenizer() -> Any:
    """Every byte, a few longer tokens, and an end of text."""
    tokens = ["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = [("t", "r"), *MERGES]
    vocabulary = {token: i for i, token in enumerate([*tokens, *(a + b for a, b in merges)])}
    words = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")


@cache
def prompt() -> tuple[int, ...]:
    return tuple(tokenizer().encode(TEXT))


@cache
def module(name: str) -> Any:
    # With tied embeddings a random model repeats its last token for ever.
    return unsettled(build(name, len(tokenizer()), tie_word_embeddings=False))


# ------------------------------------------------------------------------------------------------ the naive generator


class NaiveGrammar:
    """The mask behind a text, by a matcher that reads it from its beginning."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.words = llguidance.hf.from_tokenizer(tokenizer(), n_vocab=len(tokenizer()), eos_token=[EOS])
        self.source = llguidance.LLMatcher.grammar_from_json_schema(dict(schema))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        text = input_ids[0, len(prompt()) :].tolist()
        matcher = llguidance.LLMatcher(self.words, self.source)
        assert matcher.try_consume_tokens(text) == len(text)
        bits = matcher.compute_bitmask()
        allowed = [bits[token // 8] >> token % 8 & 1 for token in range(scores.shape[-1])]
        return scores.masked_fill(~torch.tensor(allowed, dtype=torch.bool), -torch.inf)


def request(column: str) -> dict[str, Any]:
    """A column's settings as ``generate`` takes them."""
    settings = dict(COLUMNS[column])
    return settings | ({"max_new_tokens": 48} if "grammar" in settings else {"max_new_tokens": 20, "ignore_eos": True})


@torch.inference_mode()
def naive(name: str, column: str) -> tuple[int, ...]:
    settings = request(column)
    grammar = settings.pop("grammar", None)
    processors = (NaiveGrammar(grammar["json_schema"]),) if grammar else ()
    params = SamplingParams(**settings, processors=processors)
    tokens = list(prompt())
    for _ in range(params.max_new_tokens):
        logits = module(name)(torch.tensor([tokens]), use_cache=False).logits[0, -1]
        tokens.append(draw(logits.tolist(), params, SEED, tokens, len(prompt())))
        if tokens[-1] == EOS and not params.ignore_eos:
            break
    return tuple(tokens[len(prompt()) :])


# ----------------------------------------------------------------------------------------------------------- the tests


# Whatever a forward costs on this machine: drafts are made and rejected. What chooses by costs has tests of its own.
SIZES: Mapping[str, Mapping[str, Any]] = {
    "ouroboros": {"control": False, "draft_tokens": 4, "tree_tokens": 32},
    "lookahead": {"window": 10, "ngram": 5, "branches": 8},
    "token_recycling": {"tree_tokens": 80},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_matrix(name: str) -> None:
    expected = {column: naive(name, column) for column in COLUMNS}
    assert len(set(expected["greedy, penalties"])) > 8
    draft = perturbed(module(name))
    for method in METHODS:
        totals: Counter[str] = Counter()
        own = draft if method == "ouroboros" else None
        decoder = ouroboros.load(module(name), own, tokenizer(), method, options=SIZES.get(method))
        for column in COLUMNS:
            result = decoder.generate(prompt(), seed=SEED, **request(column))
            assert result.token_ids == expected[column], (method, column)
            if "grammar" in column:
                assert result.text is not None
                assert sorted(json.loads(result.text)) == ["a", "b", "c"]
                assert result.finish_reason == "stop"
            totals += happened(result.stats)
        assert result.stats.backend == ("native" if name in RUN_NATIVELY else "transformers")
        assert result.stats.trees == decoder.target.info.trees == (name not in CHAINS)
        assert totals["rejected"]
        assert totals["accepted, not forced"]
        assert totals["accepted phrase"]
        assert totals["accepted draft"] or own is None
        branched = bool(totals["beside another"])
        assert branched == (name not in CHAINS) or (method == "suffix_decoding" and not branched)  # it may be sure


def happened(stats: ouroboros.Stats) -> Counter[str]:
    accepted = Counter(stats.accepted_by_source)
    found = Counter({f"accepted {source}": count for source, count in accepted.items()})
    found["accepted, not forced"] = stats.accepted_tokens - stats.accepted_by_origin.get("forced", 0)
    found["rejected"] = stats.draft_tokens - stats.accepted_tokens
    found["beside another"] = max([0, *(n - stats.target_forwards for n in stats.draft_tokens_by_depth)])
    return found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_is_what_generate_writes(name: str) -> None:
    """transformers' own generation, over its own caches."""
    decoder = ouroboros.load(module(name), perturbed(module(name)), options=SIZES["ouroboros"])
    totals: Counter[str] = Counter()
    settings: Sequence[dict[str, Any]] = ({}, {"repetition_penalty": 1.2})
    for more in settings:
        inputs = torch.tensor([prompt()])
        theirs = module(name).generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=EOS,
            **more,
        )
        ours = decoder.generate(prompt(), max_new_tokens=24, ignore_eos=True, **more)
        assert ours.token_ids == tuple(theirs[0, len(prompt()) :].tolist())
        totals += happened(ours.stats)
    assert totals["rejected"]
    assert totals["accepted draft"]
