"""Structured output: exact under every method, valid, and with forced tokens for nothing."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch

import ouroboros
from ouroboros import InputError, SamplingParams
from ouroboros.grammar import Grammar
from ouroboros.text import Tokenizer
from tests.pairs import EMBEDDED, Pair
from tests.reference import generate

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]{1,8}$"},
        "city": {"enum": ["Paris", "London"]},
        "known_since": {"type": "integer", "minimum": 1900, "maximum": 2030},
    },
    "required": ["name", "city", "known_since"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
PROMPT = "# a person, as JSON\n"


def tokenizer() -> Tokenizer:
    found = Tokenizer.from_directory(EMBEDDED / "target")
    assert found is not None
    return found


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.1}], ids=str)
def test_every_method_writes_what_the_oracle_writes(embedded: Pair, settings: dict[str, Any]) -> None:
    words = tokenizer()
    ids = words.encode(PROMPT)
    grammar = Grammar({"json_schema": SCHEMA}, words, 8192, frozenset({0}), len(ids))
    params = SamplingParams(max_new_tokens=60, processors=(grammar,), **settings)
    truth = generate(embedded.oracle, ids, params, 5, frozenset({0}))
    for method in ouroboros.METHODS:
        decoder = ouroboros.load(method=method, dtype="float32")
        result = decoder.generate(PROMPT, max_new_tokens=60, seed=5, grammar={"json_schema": SCHEMA}, **settings)
        assert result.token_ids == truth
        assert result.finish_reason == "stop"
        assert result.text is not None
        person = json.loads(result.text)
        assert sorted(person) == ["city", "known_since", "name"]
        assert person["city"] in ("Paris", "London")
        if method != "autoregressive":
            assert result.stats.accepted_by_origin["forced"] >= 5
            assert result.stats.target_forwards < len(truth) * 0.9
        else:
            assert result.stats.target_forwards == len(truth)


@pytest.mark.parametrize("method", ["autoregressive", "speculative", "ouroboros"])
def test_among_others_it_writes_what_it_writes_alone(method: str) -> None:
    decoder = ouroboros.load(method=method, dtype="float32", pool=False)
    asked: list[dict[str, Any]] = [
        {"grammar": {"json_schema": SCHEMA}},
        {},
        {"grammar": {"regex": "[a-z]{3,9}, (yes|no)"}, "temperature": 0.9},
        {"temperature": 0.9},
        {"grammar": {"json_schema": SCHEMA}, "temperature": 0.9, "repetition_penalty": 1.1},
    ]
    settings = [{"max_new_tokens": 40, "seed": place, **one} for place, one in enumerate(asked * 2)]
    alone = [decoder.generate(PROMPT, **one).token_ids for one in settings]
    with ouroboros.Engine(decoder, max_requests=4) as engine:  # some come while others write
        tickets = [engine.submit(PROMPT, **one) for one in settings]
        assert [ticket.result(timeout=60).token_ids for ticket in tickets] == alone


def test_forced_tokens_need_no_draft_forward() -> None:
    decoder = ouroboros.load(method="speculative", dtype="float32")
    words = "the quick brown fox jumps over the lazy dog and then goes home again"
    result = decoder.generate(PROMPT, max_new_tokens=60, grammar={"regex": re.escape(words)})
    assert result.text == words
    assert result.stats.target_forwards <= 3
    assert result.stats.draft_forwards <= 3


def test_regex_and_lark() -> None:
    decoder = ouroboros.load(method="prompt_lookup", dtype="float32")
    text = decoder.generate(
        PROMPT, max_new_tokens=30, seed=1, temperature=1.0, grammar={"regex": "[a-f]{3}-[0-9]{2}"}
    ).text
    assert text is not None
    assert re.fullmatch("[a-f]{3}-[0-9]{2}", text)
    lark = 'start: "yes" | "no"'
    assert decoder.generate(PROMPT, max_new_tokens=5, grammar={"lark": lark}).text in ("yes", "no")


def test_states_are_functions_of_the_text() -> None:
    words = tokenizer()
    grammar = Grammar({"regex": "ab(c|de)*f"}, words, 8192, frozenset({0}), 2)
    scores = torch.zeros(1, 8192)

    def allowed(text: str) -> set[int]:
        history = torch.tensor([[7, 7, *words.encode(text)]])
        return set(torch.isfinite(grammar(history, scores)[0]).nonzero()[:, 0].tolist())

    first = {text: allowed(text) for text in ("", "ab", "abc", "abde", "abcf")}
    for text in ("abcf", "abde", "", "abc", "ab", "abcde", "abcde"):  # any order, again
        fresh = Grammar({"regex": "ab(c|de)*f"}, words, 8192, frozenset({0}), 2)
        history = torch.tensor([[7, 7, *words.encode(text)]])
        assert allowed(text) == set(torch.isfinite(fresh(history, scores)[0]).nonzero()[:, 0].tolist())
        assert text not in first or allowed(text) == first[text]
    assert first["abcf"] == {0}
    assert len(allowed("xyz")) == 8192  # broken already: nothing behind it matters


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"grammar": {"regex": "(("}}, "no valid regex"),
        ({"grammar": {"json_schema": {"type": "nonsense"}}}, "no valid json_schema"),
        ({"grammar": {"bnf": "x"}}, "json_schema or regex or lark"),
        ({"grammar": "x"}, "json_schema or regex or lark"),
        ({"grammar": {}}, "json_schema or regex or lark"),
        ({"grammar": {"regex": "a"}, "ignore_eos": True}, "ignore_eos must be False"),
    ],
)
def test_bad_grammars(settings: dict[str, Any], words: str) -> None:
    decoder = ouroboros.load(method="prompt_lookup", dtype="float32")
    with pytest.raises(InputError, match=words) as error:
        decoder.generate(PROMPT, **settings)
    assert "\n" not in str(error.value)
