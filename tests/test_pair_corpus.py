"""The embedded pair's corpus: licences, functions as documents, nothing of the evaluation sets in it."""

from __future__ import annotations

import json
from email.message import Message
from pathlib import Path
from typing import Any, cast

import pytest

from ouroboros.stats import repeated_4grams
from recipes.embedded_pair.card import parses
from recipes.embedded_pair.corpus import LEAST_WORDS, _remember, build_corpus, evaluation_texts, licence_of, overlaps
from recipes.embedded_pair.corpus import text_grams as grams
from recipes.embedded_pair.functions import self_contained, short_functions, whole_functions
from recipes.embedded_pair.refine import is_code

SOLUTION = "total = 0\nfor left, right in zip(first, second):\n    total += left * right\nreturn total / len(first)\n"


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ({"License-Expression": "BSD-3-Clause AND MIT"}, "BSD-3-Clause AND MIT"),
        ({"License-Expression": "MPL-2.0 AND MIT"}, None),
        ({"License": "MIT License\n\nPermission is …"}, "MIT License"),
        ({"License": "GPL-3.0"}, None),
        ({"Classifier": "License :: OSI Approved :: Apache Software License"}, "Apache Software License"),
        ({"Classifier": "License :: OSI Approved :: GNU Lesser General Public License v3 (LGPLv3)"}, None),
        ({}, None),
    ],
)
def test_licences(fields: dict[str, str], licence: str | None) -> None:
    metadata = Message()
    for name, value in fields.items():
        metadata[name] = value
    assert licence_of(cast(Any, metadata)) == licence


def test_what_overlaps_is_found() -> None:
    _remember(frozenset(grams(SOLUTION)))
    assert overlaps(f"def mean(first, second):\n    {SOLUTION}")
    assert not overlaps("total = 0\nfor left, right in zip(a, b):\n    total -= left + right\n")
    short = "return sorted ( set ( a ) | set ( b ) , key = len , reverse = flag )"
    assert LEAST_WORDS <= len(next(iter(grams(short)))) < 13
    _remember(frozenset(grams(short)))
    assert overlaps(f"x = 1\n{short}")
    assert list(grams("return a + b")) == []


def test_functions_are_documents() -> None:
    filler = "    value = value + 1  # one of many lines\n" * 6
    text = f'import os\n\n\ndef f(value):\n    """Adds."""\n{filler}    return value\n\n\ndef g():\n    pass\n'
    assert list(whole_functions(text, 200, 4000)) == [text[text.index("def f") : text.index("\n\n\ndef g")] + "\n"]
    assert list(whole_functions(text, 2000, 4000)) == []
    assert list(whole_functions("def f(:\n", 1, 4000)) == []


def test_short_functions_are_cut_into_head_and_body() -> None:
    text = (
        'import os\n\n\ndef add(left: int, right: int) -> int:\n    """Adds two numbers.\n\n    Much more about it.\n\n'
        '    >>> add(1, 2)\n    3\n    """\n    total = left + right\n    return total\n\n\n'
        'def where(name):\n    """Finds it."""\n    path = os.path.join(name)\n    return path\n'
    )
    first, second = short_functions(text)
    head = 'def add(left: int, right: int) -> int:\n    """Adds two numbers.\n    >>> add(1, 2)\n    3\n    """\n'
    assert first.head.lstrip("\n") == head
    assert first.body.startswith("    total = left + right\n    return total\n")
    assert second.head.lstrip("\n") == 'def where(name):\n    """Finds it."""\n'
    assert self_contained(head + "    return left + right\n")
    assert not self_contained(second.text)  # os comes from its module
    assert is_code(first.text)
    assert not is_code(head)


def test_no_evaluation_text_is_in_the_corpus(tmp_path: Path) -> None:
    rows = [{"question": f"How many are {n} and {n}?", "answer": SOLUTION if n == 2 else f"#### {n}"} for n in range(5)]
    train, evaluation = tmp_path / "train.jsonl", tmp_path / "evaluation.jsonl"
    train.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    evaluation.write_text(json.dumps({"code": SOLUTION, "turns": ["one", "two"]}) + "\n", encoding="utf-8")
    assert list(evaluation_texts(evaluation)) == [SOLUTION, "one", "two"]
    corpus = build_corpus(train, [evaluation], 20_000, 0, 1, only=["iniconfig"])
    assert corpus.removed["GSM8K, training part"] == 1
    assert sorted({name for name, _ in corpus.documents}) == ["GSM8K, training part", "iniconfig"]
    assert corpus.licences["iniconfig"] == "MIT"
    assert not any("zip(first, second)" in text for _, text in corpus.documents)


def test_figures_of_the_card() -> None:
    assert repeated_4grams([1, 2, 3, 4] * 2) == pytest.approx(1 / 5)
    assert parses("def f(a):\n", "    return a\nprint(f(")
    assert not parses("def f(a):\n", "    return (a\n")
