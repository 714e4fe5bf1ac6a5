"""The server as clients see it: the openai client against the embedded pair."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import openai
import pytest
from pydantic import BaseModel

import ouroboros
from ouroboros.server import schema_answers as answers
from ouroboros.server.running import Server
from tests.servers import client_of, serving

PROMPT = "def add(a, b):\n"
MESSAGES: Any = [{"role": "user", "content": "Write a function that adds two numbers."}]
CHAT = MESSAGES[0]["content"] + "\n"  # by the embedded pair's template
MODEL = "ouroboros"
GO_ON = {"ignore_eos": True}


@pytest.fixture(scope="module")
def decoder() -> ouroboros.Decoder:
    return ouroboros.load(dtype="float32")


@pytest.fixture(scope="module")
def server(decoder: ouroboros.Decoder) -> Iterator[Server]:
    with serving(decoder, max_requests=8, max_queue=24) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with client_of(server) as found:
        yield found


def post(server: Server, path: str, body: Any, **headers: str) -> httpx.Response:
    data = body if isinstance(body, bytes | str) else json.dumps(body)
    return httpx.post(server.address + path, content=data, headers={"content-type": "application/json", **headers})


def plain(decoder: ouroboros.Decoder, prompt: str, new: int, **settings: Any) -> str:
    found = ouroboros.load(method="autoregressive", dtype="float32")
    assert found.target.info.vocab_size == decoder.target.info.vocab_size
    text: str | None = found.generate(prompt, max_new_tokens=new, **settings).text
    assert text is not None
    return text


def test_models_and_health(server: Server, client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert model.id == MODEL
    assert client.models.retrieve(MODEL).object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other/model")
    assert httpx.get(server.address + "/health").json() == {"status": "ok"}
    page = httpx.get(server.address + "/")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe-inline" not in policy
    for name in ("app.js", "style.css"):
        assert httpx.get(f"{server.address}/{name}").status_code == 200


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 0.9, "top_p": 0.95, "seed": 7}], ids=str)
def test_the_text_is_the_decoder_s(decoder: ouroboros.Decoder, client: openai.OpenAI, settings: dict[str, Any]) -> None:
    truth = plain(decoder, PROMPT, 40, **settings)
    answer = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=40, **settings)
    assert answer.choices[0].text == truth
    chunks = list(client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=40, stream=True, **settings))
    assert "".join(chunk.choices[0].text for chunk in chunks) == truth
    assert chunks[-1].choices[0].finish_reason == answer.choices[0].finish_reason
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert all(chunk.usage is None for chunk in chunks)
    for more in ({"draft": False}, {"method": "prompt_lookup"}, {"memory": False}, {"memory": "mine"}):
        again = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=40, extra_body=more, **settings)
        assert again.choices[0].text == truth


def test_the_text_among_others_is_the_text_alone(decoder: ouroboros.Decoder, client: openai.OpenAI) -> None:
    truth = [plain(decoder, f"{PROMPT}# {i}\n", 24, temperature=0.8, seed=i) for i in range(16)]
    found: dict[int, str] = {}

    def ask(i: int) -> None:
        settings: Any = {"prompt": f"{PROMPT}# {i}\n", "max_tokens": 24, "temperature": 0.8, "seed": i}
        if i % 2:
            chunks = client.completions.create(model=MODEL, stream=True, **settings)
            found[i] = "".join(chunk.choices[0].text for chunk in chunks)
        else:
            found[i] = client.completions.create(model=MODEL, **settings).choices[0].text

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(16)] == truth


def test_chats(decoder: ouroboros.Decoder, client: openai.OpenAI) -> None:
    truth = plain(decoder, CHAT, 30, ignore_eos=True)
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_completion_tokens=30, temperature=0, extra_body=GO_ON
    )
    assert answer.choices[0].message.content == truth
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(decoder.tokenizer.encode(CHAT))  # type: ignore[union-attr]
    assert answer.usage.completion_tokens == 30
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": MESSAGES[0]["content"]}]}]
    stream = client.chat.completions.create(
        model=MODEL,
        messages=parts,
        max_tokens=30,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"return_sources": True, **GO_ON},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:-1])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == truth
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    usage: Any = chunks[-1].usage
    assert usage == answer.usage.model_copy(update={"prompt_tokens_details": usage.prompt_tokens_details})
    assert usage.prompt_tokens_details.cached_tokens > 0
    assert {(chunk.id, chunk.created, chunk.object) for chunk in chunks} == {
        (chunks[0].id, chunks[0].created, "chat.completion.chunk")
    }
    sources = [one for c in chunks[:-1] for one in (c.choices[0].model_extra or {}).get("sources", [])]
    assert "".join(one["text"] for one in sources) == truth
    assert {one["source"] for one in sources} <= {"draft", "phrase", "bonus"}
    steps = [one["step"] for one in sources if one["step"] is not None]
    assert len(steps) == 30
    assert steps == sorted(steps)
    assert set(steps) == set(range(1, max(steps) + 1))
    assert max(steps) < 30
    refused = [(one["text"], other) for one in sources for other in one.get("refused", [])]
    assert all(text != other for text, other in refused)


def test_usage_in_a_stream_only_where_it_is_asked_for(server: Server) -> None:
    body = {"messages": MESSAGES, "max_tokens": 3, "stream": True}
    for options, expected in (({}, False), ({"include_usage": False}, False), ({"include_usage": True}, True)):
        text = post(server, "/v1/chat/completions", {**body, "stream_options": options}).text
        lines = [line for line in text.split("\n\n") if line]
        assert lines[-1] == "data: [DONE]"
        rows = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
        assert ("usage" in rows[0]) == expected
        assert (rows[-1]["choices"] == []) == expected
        assert all(row["usage"] is None for row in rows[:-1] if expected)


def test_samples_and_lists_of_prompts(decoder: ouroboros.Decoder, client: openai.OpenAI) -> None:
    prompts = [PROMPT, "import os\n"]
    settings: Any = {"max_tokens": 12, "temperature": 1.0, "seed": 3, "n": 2}
    truth = [plain(decoder, prompt, 12, temperature=1.0, seed=3 + i) for prompt in prompts for i in range(2)]
    answer = client.completions.create(model=MODEL, prompt=prompts, **settings)
    assert [choice.text for choice in answer.choices] == truth
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    found = [""] * 4
    for chunk in client.completions.create(model=MODEL, prompt=prompts, stream=True, **settings):
        found[chunk.choices[0].index] += chunk.choices[0].text
    assert found == truth
    ids = decoder.tokenizer.encode(PROMPT)  # type: ignore[union-attr]
    same = client.completions.create(model=MODEL, prompt=ids, max_tokens=12, temperature=1.0, seed=3)
    assert same.choices[0].text == truth[0]


def test_logprobs_are_the_target_s(decoder: ouroboros.Decoder, client: openai.OpenAI) -> None:
    calm = {"logit_bias": {"0": -100}}  # it does not end
    sampled: Any = {"max_new_tokens": 12, "logit_bias": {0: -100}}
    truth = decoder.generate(CHAT, logprobs=2, **sampled).logprobs
    assert truth is not None
    settings: Any = {"max_tokens": 12, "temperature": 0, "logprobs": True, "top_logprobs": 2, **calm}
    whole = client.chat.completions.create(model=MODEL, messages=MESSAGES, **settings).choices[0].logprobs
    assert whole is not None
    assert whole.content is not None
    assert [one.logprob for one in whole.content] == pytest.approx([one.logprob for one in truth], abs=1e-4)
    assert all(len(one.top_logprobs) == 2 for one in whole.content)
    streamed: list[Any] = []
    for chunk in client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True, **settings):
        logprobs = chunk.choices[0].logprobs
        streamed += (logprobs.content or []) if logprobs else []
    assert [one.model_dump() for one in streamed] == [one.model_dump() for one in whole.content]
    joined = b"".join(bytes(one.bytes or []) for one in whole.content).decode()
    assert joined == decoder.generate(CHAT, **sampled).text
    ask: Any = client.completions.create
    columns = ask(model=MODEL, prompt=CHAT, max_tokens=12, temperature=0, logprobs=1, **calm)
    flat = columns.choices[0].logprobs
    assert flat is not None
    assert flat.token_logprobs == pytest.approx([one.logprob for one in truth], abs=1e-4)
    assert len(flat.text_offset or []) == 12


def test_stop_and_reasons(decoder: ouroboros.Decoder, client: openai.OpenAI) -> None:
    text = plain(decoder, PROMPT, 40)
    stop = text[4:7]
    answer = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=40, temperature=0, stop=[stop, "zzzz"])
    assert answer.choices[0].text == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_json_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "London"]}, "year": {"type": "integer", "minimum": 1, "maximum": 99}},
        "required": ["city", "year"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema, "strict": True}}
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=60, temperature=0, response_format=form
    )
    found = json.loads(answer.choices[0].message.content or "")
    assert found["city"] in ("Paris", "London")
    assert sorted(found) == ["city", "year"]
    bad: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    with pytest.raises(openai.BadRequestError, match="json_schema"):
        client.chat.completions.create(model=MODEL, messages=MESSAGES, response_format=bad)


TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "The weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Paris", "London"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("weather", "forecast")
]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "forecast"}}], ids=str)
def test_tools_that_must_be_called(client: openai.OpenAI, choice: Any) -> None:
    settings: Any = {"messages": MESSAGES, "tools": TOOLS, "tool_choice": choice, "max_tokens": 80, "temperature": 0}
    answer = client.chat.completions.create(model=MODEL, **settings).choices[0]
    assert answer.finish_reason == "tool_calls"
    (call,) = answer.message.tool_calls or []
    assert call.type == "function"
    assert call.function.name in (("forecast",) if isinstance(choice, dict) else ("weather", "forecast"))
    assert json.loads(call.function.arguments)["city"] in ("Paris", "London")
    name, arguments = "", ""
    for chunk in client.chat.completions.create(model=MODEL, stream=True, **settings):
        for delta in chunk.choices[0].delta.tool_calls or []:
            assert delta.index == 0
            if delta.function and delta.function.name:
                assert not name
                assert delta.id
                name = delta.function.name
            arguments += (delta.function.arguments or "") if delta.function else ""
    assert (name, arguments) == (call.function.name, call.function.arguments)
    history = [*MESSAGES, answer.message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    after = client.chat.completions.create(model=MODEL, messages=history, tools=TOOLS, max_tokens=3)
    assert after.usage is not None


def test_prediction_is_counted(decoder: ouroboros.Decoder, client: openai.OpenAI) -> None:
    truth = plain(decoder, CHAT, 60, ignore_eos=True)
    settings: Any = {"messages": MESSAGES, "max_tokens": 60, "temperature": 0}
    for text, right in ((truth, True), ("entirely other words, again and again and again", False)):
        prediction: Any = {"type": "content", "content": text}
        answer = client.chat.completions.create(
            model=MODEL, prediction=prediction, extra_body={"memory": False, **GO_ON}, **settings
        )
        assert answer.choices[0].message.content == truth
        assert answer.usage is not None
        details = answer.usage.completion_tokens_details
        assert details is not None
        assert details.accepted_prediction_tokens is not None
        assert details.rejected_prediction_tokens is not None
        # The text shows nothing of the end-of-sequence tokens that it goes on past: there it is found again.
        assert (details.accepted_prediction_tokens > 20) == right
        assert right or details.rejected_prediction_tokens > 8
        assert answer.usage.completion_tokens == 60 + details.rejected_prediction_tokens


def test_responses(decoder: ouroboros.Decoder, client: openai.OpenAI) -> None:
    settings: Any = {"model": MODEL, "input": MESSAGES[0]["content"], "max_output_tokens": 20, "temperature": 0}
    settings["extra_body"] = GO_ON
    answer = client.responses.create(**settings)
    assert answer.output_text == plain(decoder, CHAT, 20, ignore_eos=True)
    assert answer.status == "incomplete"
    assert answer.usage is not None
    assert answer.usage.output_tokens == 20
    assert answer.usage.output_tokens_details.reasoning_tokens == 0
    events = list(client.responses.create(stream=True, **settings))
    assert [one.sequence_number for one in events] == list(range(len(events)))
    assert [one.type for one in events][:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    last: Any = events[-1]
    assert last.type == "response.incomplete"
    text = "".join(one.delta for one in events if one.type == "response.output_text.delta")
    assert text == last.response.output_text == answer.output_text
    added: Any = next(one for one in events if one.type == "response.output_item.added")
    assert added.item.id == last.response.output[0].id
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        client.responses.create(previous_response_id="resp_1", **settings)


def test_responses_call_functions(client: openai.OpenAI) -> None:
    function: Any = {"type": "function", **TOOLS[0]["function"], "strict": True}
    settings: Any = {"model": MODEL, "input": "Weather?", "tools": [function], "tool_choice": "required", "seed": 1}
    extra = {"seed": settings.pop("seed")}
    answer = client.responses.create(max_output_tokens=80, extra_body=extra, **settings)
    call: Any = answer.output[0]
    assert call.type == "function_call"
    assert json.loads(call.arguments)["city"] in ("Paris", "London")
    events: Any = list(client.responses.create(max_output_tokens=80, stream=True, extra_body=extra, **settings))
    pieces = "".join(one.delta for one in events if one.type == "response.function_call_arguments.delta")
    assert pieces == call.arguments == events[-1].response.output[0].arguments
    settings["input"] = [
        {"role": "user", "content": "Weather?"},
        call.model_dump(),
        {"type": "function_call_output", "call_id": call.call_id, "output": "rain"},
    ]
    del settings["tool_choice"]
    assert client.responses.create(max_output_tokens=4, **settings).usage is not None


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("chat/completions", {"messages": []}, 400, "messages"),
        ("chat/completions", {"messages": [{"role": "king", "content": "x"}]}, 400, "role"),
        ("chat/completions", {"messages": MESSAGES, "nonsense": 1}, 400, "unknown field 'nonsense'"),
        ("chat/completions", {"messages": MESSAGES, "temperature": "hot"}, 400, "temperature"),
        ("chat/completions", {"messages": MESSAGES, "temperature": 3}, 400, "temperature"),
        ("chat/completions", {"messages": MESSAGES, "model": "gpt-9"}, 404, "gpt-9"),
        ("chat/completions", {"messages": MESSAGES, "n": 1000}, 400, "n must be at most 16"),
        ("chat/completions", {"messages": MESSAGES, "max_tokens": 0}, 400, "max_tokens"),
        ("chat/completions", {"messages": MESSAGES, "stop": ["a"] * 17}, 400, "stop"),
        ("chat/completions", {"messages": MESSAGES, "stop": ""}, 400, "stop"),
        ("chat/completions", {"messages": MESSAGES, "logit_bias": {"x": 1}}, 400, "logit_bias"),
        ("chat/completions", {"messages": MESSAGES, "logit_bias": {"999999": 1}}, 400, "logit_bias"),
        ("chat/completions", {"messages": MESSAGES, "method": "magic"}, 400, "method"),
        ("chat/completions", {"messages": MESSAGES, "top_logprobs": 3}, 400, "logprobs"),
        ("chat/completions", {"messages": MESSAGES, "tool_choice": "required"}, 400, "tools"),
        ("chat/completions", {"messages": MESSAGES, "modalities": ["audio"]}, 400, "modalities"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            400,
            "image_url",
        ),
        ("completions", {"prompt": "a " * 5000}, 413, "context"),
        ("completions", {"prompt": ""}, 400, "empty"),
        ("completions", {"prompt": []}, 400, "prompt"),
        ("completions", {"prompt": [9999999]}, 400, "9999999"),
        ("completions", {"prompt": "\ud800"}, 400, "prompt"),
        ("completions", {"prompt": "x", "echo": True}, 400, "echo"),
        ("responses", {"input": [{"type": "computer_call"}]}, 400, "computer_call"),
        ("responses", {"input": "x", "tools": [{"type": "web_search"}]}, 400, "web_search"),
        ("chat/completions", b'{"messages": [', 400, "JSON"),
        ("chat/completions", b"[" * 100_000, 400, ""),
        ("chat/completions", b'{"messages": 1e999999}', 400, "messages"),
        ("chat/completions", b"\xff\xfe", 400, ""),
        ("chat/completions", b" " * (9 << 20), 413, "larger"),
        ("nothing/here", {}, 404, ""),
    ],
)
def test_errors(server: Server, path: str, body: Any, status: int, words: str) -> None:
    answer = post(server, f"/v1/{path}", body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert words in error["message"]
    assert "\n" not in error["message"]


def test_more_refusals(server: Server) -> None:
    assert post(server, "/v1/completions", "{}", **{"content-type": "text/plain"}).status_code == 400
    assert httpx.get(server.address + "/v1/completions").status_code == 405
    assert httpx.get(server.address + "/v1/models", headers={"host": "evil.example"}).status_code == 403
    assert httpx.get(server.address + "/../../etc/passwd").status_code == 404
    ignored = post(server, "/v1/completions", {"prompt": "x", "max_tokens": 1, "store": True, "user": "me"})
    assert ignored.headers["x-ouroboros-ignored"] == "user, store"
    assert "access-control-allow-origin" not in ignored.headers


ASKED: dict[str, Any] = {"max_tokens": 6, "logprobs": 2, "return_sources": True}


@pytest.mark.parametrize(
    ("path", "kind", "body"),
    [
        ("/v1/models", answers.Models, None),
        (f"/v1/models/{MODEL}", answers.Model, None),
        ("/health", answers.Health, None),
        ("/tokenize", answers.Tokens, {"prompt": PROMPT}),
        ("/detokenize", answers.Text, {"tokens": [5, 6]}),
        ("/v1/completions", answers.Completion, {"prompt": [PROMPT, PROMPT], "n": 2, **ASKED}),
        ("/v1/chat/completions", answers.Chat, {"messages": MESSAGES, **ASKED, "logprobs": True, "top_logprobs": 2}),
        ("/v1/chat/completions", answers.Chat, {"messages": MESSAGES, "tools": TOOLS, "tool_choice": "required"}),
        ("/v1/responses", answers.Responded, {"input": "x", "max_output_tokens": 6, "top_logprobs": 2}),
        (
            "/v1/responses",
            answers.Responded,
            {"input": "x", "tools": [{"type": "function", **TOOLS[0]["function"]}], "tool_choice": "required"},
        ),
    ],
)
def test_answers_are_as_the_schema_says(server: Server, path: str, kind: type[BaseModel], body: Any) -> None:
    answer = httpx.get(server.address + path) if body is None else post(server, path, body)
    assert answer.status_code == 200, answer.text
    kind.model_validate_json(answer.text)
    told = httpx.get(server.address + "/openapi.json").json()
    told = told["paths"]["/v1/models/{name}" if path.startswith("/v1/models/") else path]
    content = told["get" if body is None else "post"]["responses"]["200"]["content"]
    assert content["application/json"]["schema"]["$ref"].endswith(f"/{kind.__name__}")


def test_tokens(server: Server, decoder: ouroboros.Decoder) -> None:
    found = post(server, "/tokenize", {"prompt": PROMPT}).json()
    assert found["tokens"] == decoder.tokenizer.encode(PROMPT)  # type: ignore[union-attr]
    assert found["count"] == len(found["tokens"])
    assert post(server, "/detokenize", {"tokens": found["tokens"]}).json() == {"prompt": PROMPT}
    assert post(server, "/tokenize", {"messages": MESSAGES}).json()["count"] > 5
    assert post(server, "/tokenize", {}).status_code == 400
    assert post(server, "/detokenize", {"tokens": [1 << 30]}).status_code == 400


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_its_request(server: Server, stream: bool) -> None:
    service = server._service
    body = json.dumps({"prompt": PROMPT, "max_tokens": 1900, "ignore_eos": True, "stream": stream, "temperature": 0})
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}"
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"{head}\r\n\r\n{body}".encode())
        until(lambda: service.engine.load.running == 1)
    until(lambda: service.engine.load.running + service.engine.load.waiting == 0, 2.0)


def until(test: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_metrics(server: Server, client: openai.OpenAI) -> None:
    for path, status in (("/v1/nothing", 404), ("/v1/completions", 400)):
        assert post(server, path, {}).status_code == status
    client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=9, temperature=0, extra_body=GO_ON)
    text = httpx.get(server.address + "/metrics").text
    values = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}
    assert values["ouroboros:num_requests_running"] == 0
    assert values['ouroboros:request_refused_total{status="404"}'] > 0
    assert values['ouroboros:request_refused_total{status="400"}'] > 0
    assert values["ouroboros:spec_decode_num_drafts_total"] > 0
    assert values["ouroboros:spec_decode_num_accepted_tokens_total"] == sum(
        value
        for name, value in values.items()
        if name.startswith("ouroboros:spec_decode_num_accepted_tokens_per_pos_total")
    )
    assert values["ouroboros:generation_tokens_total"] >= 9
    assert values["ouroboros:time_to_first_token_seconds_count"] > 0
    assert values['ouroboros:request_success_total{finished_reason="length"}'] > 0
    assert any(name.startswith("ouroboros:memory_phrases{") for name in values)


def test_nobody_is_let_in_at_the_end(decoder: ouroboros.Decoder) -> None:
    with serving(decoder) as server:
        server._service.stopping = True
        refused = post(server, "/v1/completions", {"prompt": PROMPT})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
        assert refused.headers["retry-after"] == "5"
        health = httpx.get(server.address + "/health")
        assert (health.status_code, health.json()) == (503, {"status": "stopping"})
