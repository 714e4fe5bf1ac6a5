"""Calls in text: the same ones, however the text is cut."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

import pytest

from ouroboros.server.tool_formats import format_of
from ouroboros.server.tools import Arguments, Begin, CallParser, Content

HERMES = (
    'Sure.\n<tool_call>\n{"name": "f", "arguments": {"a": "x}\\"", "b": [1, {"c": 2}]}}\n</tool_call>\n'
    '<tool_call>\n{"arguments": {"z": 1}, "name": "g"}\n</tool_call>'
)
CASES = [
    ("hermes", HERMES, "Sure.", [("f", '{"a": "x}\\"", "b": [1, {"c": 2}]}'), ("g", '{"z": 1}')]),
    ("hermes", "no <tool call> and <tool_call>oops</tool_call> end  ", None, []),
    ("hermes", '<tool_call>{"name":"f","arguments":{"a":1', "", [("f", '{"a":1')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {}}</tool_call> and more', " and more", [("f", "{}")]),
    ("hermes", "<tool_call", None, []),
    ("hermes", '{"name": "f", "arguments": {}}', None, []),
    ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]', "", None),
    ("mistral", '[{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]', "", None),
    ("mistral", '[TOOL_CALLS]f{"a": 1}', "", [("f", '{"a": 1}')]),
    ("mistral", '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[ARGS]{"b": 1}', "", [("f", '{"a": 1}'), ("g", '{"b": 1}')]),
    ("mistral", '[{"name": "unknown", "x": {"a": 1}}, 5] yes', None, []),
    ("llama3", '{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}', "", None),
    ("llama3", '<|python_tag|>{"type": "function", "name": "f", "parameters": {"a": 1}}', "", [("f", '{"a": 1}')]),
    ("llama3", '  {"answer": 42}\n', None, []),
    ("generic", '{"name": "f", "arguments": "{\\"a\\": 1}"}', "", [("f", '{"a": 1}')]),
    ("generic", '{"name": "f"}', "", [("f", "{}")]),
    ("generic", '<tool_call>{"name": "f", "arguments": null}</tool_call>', "", [("f", "{}")]),
    ("generic", "plain  text \n\n", None, []),
    ("generic", "[", None, []),
    ("generic", "", None, []),
]


def read(form: str, pieces: Sequence[str]) -> tuple[str, list[list[str]]]:
    numbers = iter(range(100))
    parser = CallParser(form, ["f", "g"], lambda: f"id{next(numbers)}")
    content, calls = "", list[list[str]]()
    for event in [e for piece in pieces for e in parser.push(piece)] + parser.finish():
        if isinstance(event, Content):
            content += event.text
        elif isinstance(event, Begin):
            assert event.index == len(calls)
            calls.append([event.name, ""])
        else:
            assert isinstance(event, Arguments)
            assert event.index == len(calls) - 1
            calls[-1][1] += event.text
    return content, calls


@pytest.mark.parametrize(("form", "text", "content", "calls"), CASES)
def test_calls_do_not_depend_on_cuts(
    form: str, text: str, content: str | None, calls: list[tuple[str, str]] | None
) -> None:
    expected_calls = [("f", '{"a": 1}'), ("g", "{}")] if calls is None else calls
    whole = read(form, [text])
    assert whole == (text if content is None else content, [list(call) for call in expected_calls])
    assert read(form, list(text)) == whole
    source = random.Random(1)
    for place in range(len(text)):
        assert read(form, [text[:place], text[place:]]) == whole
    for _ in range(100):
        cuts = sorted(source.sample(range(len(text) + 1), min(len(text), source.randint(0, 6))))
        assert read(form, [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]) == whole


def test_random_text_is_never_lost() -> None:
    source = random.Random(2)
    parts = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", *'{}[]":, \n\\', "name", "f"]
    for _ in range(2000):
        text = "".join(source.choices(parts, k=source.randint(1, 14)))
        form = source.choice(["hermes", "mistral", "llama3", "generic"])
        whole = read(form, [text])
        assert read(form, list(text)) == whole
        if not whole[1]:
            assert whole[0] == text


def test_formats_by_template() -> None:
    assert format_of("… <tool_call> …") == "hermes"
    assert format_of("… [TOOL_CALLS] …") == "mistral"
    assert format_of('… {"name": …, "parameters": …} …') == "llama3"
    assert format_of(None) == "generic"
    assert json.loads(read("hermes", [HERMES])[1][0][1]) == {"a": 'x}"', "b": [1, {"c": 2}]}
