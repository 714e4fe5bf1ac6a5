"""Sixteen clients of the openai package, each with another kind of request, at once: all get what they get alone."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import openai
import pytest

import ouroboros
from ouroboros.server.running import Server
from ouroboros.stream import Chunk, GenerationResult
from tests.servers import client_of, serving

MODEL = "ouroboros"
PROMPT = "def add(a, b):\n"
MESSAGES: Any = [{"role": "user", "content": "Write a function that adds two numbers."}]
FUNCTION: Any = {
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "London"]}, "days": {"type": "integer", "maximum": 9, "minimum": 1}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}
TOOLS: Any = [{"type": "function", "function": FUNCTION}]
SCHEMA: Any = {"type": "json_schema", "json_schema": {"name": "place", "schema": FUNCTION["parameters"]}}
Client = openai.OpenAI


@pytest.fixture(scope="module")
def decoder() -> ouroboros.Decoder:
    return ouroboros.load(dtype="float32")


@pytest.fixture(scope="module")
def server(decoder: ouroboros.Decoder) -> Iterator[Server]:
    with serving(decoder, max_requests=8, max_queue=64) as running:
        yield running


def completion(**more: Any) -> Callable[[Client], Any]:
    def ask(client: Client) -> Any:
        found: Any = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=24, **more)
        texts = [""] * more.get("n", 1)
        for chunk in found if more.get("stream") else [found]:
            for choice in chunk.choices:
                texts[choice.index] += choice.text
        return texts

    return ask


def chat(**more: Any) -> Callable[[Client], Any]:
    def ask(client: Client) -> Any:
        settings: Any = {"model": MODEL, "messages": MESSAGES, "max_tokens": 60, "seed": 7, **more}
        if not more.get("stream"):
            message = client.chat.completions.create(**settings).choices[0].message
            return message.content or "", [
                (call.function.name, call.function.arguments) for call in message.tool_calls or []
            ]
        text, calls = "", dict[int, list[str]]()
        for chunk in client.chat.completions.create(**settings):
            delta = chunk.choices[0].delta
            text += delta.content or ""
            for call in delta.tool_calls or []:
                if call.id:
                    calls[call.index] = [call.function.name, ""]
                calls[call.index][1] += call.function.arguments or ""
        return text, [(name, arguments) for name, arguments in calls.values()]

    return ask


def response(**more: Any) -> Callable[[Client], Any]:
    def ask(client: Client) -> Any:
        settings: Any = {"model": MODEL, "input": "Add two numbers.", "max_output_tokens": 24, **more}
        found: Any = client.responses.create(**settings, extra_body={"seed": 3})
        if not more.get("stream"):
            return found.output_text
        events = list(found)
        assert [one.sequence_number for one in events] == list(range(len(events)))
        text = "".join(one.delta for one in events if one.type == "response.output_text.delta")
        assert events[-1].response.output_text == text
        return text

    return ask


def asynchronous(client: Client) -> Any:
    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=client.base_url, api_key="none", max_retries=0) as own:
            stream = await own.completions.create(model=MODEL, prompt=PROMPT, max_tokens=24, temperature=0, stream=True)
            return "".join([chunk.choices[0].text async for chunk in stream])

    return [asyncio.run(ask())]


def cancelled(client: Client) -> Any:
    stream = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=1900, temperature=0, stream=True)
    text = next(iter(stream)).choices[0].text
    stream.close()
    return bool(text)


GREEDY: Any = {"temperature": 0}
SAMPLED: Any = {"temperature": 0.9, "top_p": 0.95, "seed": 11}
EXPECTED: Any = {"type": "content", "content": "    return a + b\n\n\ndef sub(a, b):\n    return a - b\n"}
KINDS: dict[str, Callable[[Client], Any]] = {
    "completion": completion(**GREEDY),
    "completion, streamed": completion(stream=True, **SAMPLED),
    "samples": completion(n=3, **SAMPLED),
    "samples, streamed": completion(n=3, stream=True, **SAMPLED),
    "stop string": completion(stop=["\n\n"], **SAMPLED),
    "another method": completion(extra_body={"method": "suffix_decoding"}, **SAMPLED),
    "plain": completion(extra_body={"draft": False}, **GREEDY),
    "asynchronous": asynchronous,
    "cancelled": cancelled,
    "chat": chat(**GREEDY),
    "prediction": chat(prediction=EXPECTED, **GREEDY),
    "prediction, streamed": chat(prediction=EXPECTED, stream=True, temperature=0.8),
    "schema": chat(response_format=SCHEMA, temperature=0.8),
    "tools, streamed": chat(tools=TOOLS, tool_choice="required", stream=True, temperature=0.8),
    "responses": response(**GREEDY),
    "responses, streamed": response(stream=True, temperature=0.8),
}


def test_sixteen_clients_at_once(decoder: ouroboros.Decoder, server: Server) -> None:
    assert len(KINDS) == 16
    alone: dict[str, Any] = {}
    together: dict[str, Any] = {}

    def ask(name: str, found: dict[str, Any]) -> None:
        with client_of(server) as client:
            found[name] = KINDS[name](client)

    for name in KINDS:
        ask(name, alone)
    threads = [threading.Thread(target=ask, args=(name, together)) for name in KINDS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone
    plain = ouroboros.load(method="autoregressive", dtype="float32")
    truth = plain.generate(PROMPT, max_new_tokens=24).text
    sampled = plain.generate(PROMPT, max_new_tokens=24, temperature=0.9, top_p=0.95, seed=11).text
    assert alone["completion"] == alone["plain"] == alone["asynchronous"] == [truth]
    assert alone["completion, streamed"] == alone["another method"] == [sampled]
    assert alone["samples"] == alone["samples, streamed"]
    assert alone["samples"][0] == sampled
    assert alone["chat"] == alone["prediction"]
    (call,) = alone["tools, streamed"][1]
    assert call[0] == "weather"
    assert json.loads(call[1])["city"] in ("Paris", "London")
    assert set(json.loads(alone["schema"][0])) == {"city", "days"}


class Scripted:
    """A ticket that brings a text in given pieces."""

    prompt_tokens = 3
    done = False

    def __init__(self, pieces: list[str], result: GenerationResult) -> None:
        self._pieces, self._result = pieces, result

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        for piece in self._pieces:
            yield Chunk(piece, (1,), ("bonus",), ((piece, "bonus"),))

    async def finished(self) -> GenerationResult:
        self.done = True
        return self._result

    def cancel(self) -> None:
        pass


CALLS = (
    'Sure: \n<tool_call>\n{"name": "weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>\n'
    '<tool_call>{"arguments": {"city": "a \\"b\\" {c}", "days": 1}, "name": "weather"}</tool_call>'
)


def test_tools_in_a_stream_that_is_cut_anywhere(
    decoder: ouroboros.Decoder, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = decoder.generate(PROMPT, max_new_tokens=1)
    result = GenerationResult(CALLS, (1,), (1, 2, 3), "stop", ended.stats)
    pieces: list[str] = []
    monkeypatch.setattr(server._service.engine, "submit", lambda *args, **more: Scripted(pieces, result))
    monkeypatch.setattr(type(server._service), "tool_format", "hermes")
    source = random.Random(0)
    cuts = [[place] for place in range(len(CALLS) + 1)] + [list(range(len(CALLS)))]
    cuts += [sorted(source.sample(range(len(CALLS)), 6)) for _ in range(20)]
    with client_of(server) as client:
        for places in cuts:
            pieces[:] = [CALLS[a:b] for a, b in zip([0, *places], [*places, len(CALLS)], strict=True)]
            found = chat(tools=TOOLS, stream=True)(client)
            assert found == (
                "Sure:",
                [("weather", '{"city": "Paris", "days": 2}'), ("weather", '{"city": "a \\"b\\" {c}", "days": 1}')],
            ), places
        assert chat(tools=TOOLS)(client) == found
