"""Requests that are made to hurt: long paths and headers, deep and large JSON, grammars that explode. Each is answered
with 4xx, soon, and the server goes on."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest

import ouroboros
from ouroboros.server.running import Server
from tests.servers import serving

SOON = 20.0  # seconds, on a busy machine
MESSAGES = [{"role": "user", "content": "x"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(ouroboros.load(dtype="float32"), max_tokens=8) as running:
        yield running
        assert httpx.get(running.address + "/health").json() == {"status": "ok"}


def raw(server: Server, request: bytes) -> int:
    """The status of the answer to these bytes."""
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=SOON) as connection:
        with contextlib.suppress(OSError):  # it answered before all was sent
            connection.sendall(request)
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 "), answer
    return int(answer[9:12])


HEADS = {
    "a long path": (b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: localhost", 400),
    "an escaped path": (b"GET /v1/models/" + b"%00%ff/.." * 500 + b" HTTP/1.1\r\nHost: localhost", 404),
    "a path upwards": (b"GET /" + b"../" * 5000 + b"etc/passwd HTTP/1.1\r\nHost: localhost", 404),
    "an escaped path upwards": (b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: localhost", 404),
    "a proxy's path": (b"GET http://elsewhere.example/ HTTP/1.1\r\nHost: elsewhere.example", 403),
    "a long host": (b"GET / HTTP/1.1\r\nHost: " + b"a" * 200_000, 400),
    "half a host": (b"GET / HTTP/1.1\r\nHost: [::1", 400),
    "many headers": (b"GET / HTTP/1.1\r\nHost: localhost" + b"\r\nX: y" * 50_000, 400),
    "a null": (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: \x00", 400),
    "a huge length": (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"9" * 18, 413),
    "a negative length": (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1", 400),
    "no HTTP": (b"NONSENSE\x01 / HTTP/9.9", 400),
}


@pytest.mark.parametrize(("head", "status"), HEADS.values(), ids=HEADS)
def test_paths_and_headers(server: Server, head: bytes, status: int) -> None:
    assert raw(server, head + b"\r\n\r\n") == status


def nested(depth: int, opening: str, closing: str) -> str:
    return opening * depth + "0" + closing * depth


def with_fields(**fields: str) -> str:
    """A chat whose fields are JSON texts."""
    given = {"messages": json.dumps(MESSAGES), **fields}
    return "{" + ",".join(f'"{name}": {text}' for name, text in given.items()) + "}"


def tool(parameters: str) -> str:
    return '[{"type": "function", "function": {"name": "f", "parameters": ' + parameters + "}}]"


def schema(text: str) -> str:
    return '{"type": "json_schema", "json_schema": {"schema": ' + text + "}}"


PAIRS = {"arrays": ("[", "]"), "objects": ('{"a":', "}")}
DEEP = {f"{depth} {kind}": nested(depth, *PAIRS[kind]) for depth in (200, 900, 20_000) for kind in PAIRS}


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP)
@pytest.mark.parametrize("field", ["metadata", "messages", "tools", "schema", "forced", "kwargs", "message", "input"])
def test_nested_json(server: Server, field: str, text: str) -> None:
    body = with_fields(
        **{
            "metadata": {"metadata": '{"a":' + text + "}", "temperature": "9"},
            "messages": {"messages": text},
            "tools": {"tools": tool('{"a":' + text + "}"), "temperature": "9"},
            "schema": {"response_format": schema('{"type": "nonsense", "a":' + text + "}")},
            "forced": {"tools": tool('{"type": "nonsense", "a":' + text + "}"), "tool_choice": '"required"'},
            "kwargs": {"chat_template_kwargs": '{"tokenize":' + text + "}"},
            "message": {"messages": '[{"role": "user", "content": [{"type": "image_url", "url":' + text + "}]}]"},
            "input": {"input": "[" + text + "]"},
        }[field]
    )
    check(server, body)


LARGE = {
    "a long number": {"seed": "9" * 100_000},
    "an infinite number": {"temperature": "1e400"},
    "many tokens": {"max_tokens": "1" + "0" * 5000},
    "many biases": {"logit_bias": json.dumps({str(i): 200 for i in range(100_000)})},
    "many stop strings": {"stop": json.dumps(["a"] * 100_000)},
    "large tools": {"tools": tool(json.dumps({"a": "b" * 100_000}))},
    "a large choice": {"response_format": schema(json.dumps({"enum": [str(i) for i in range(20_000)]}))},
    "a broken pattern": {"response_format": schema('{"type": "string", "pattern": "((((("}')},
    "a missing reference": {"response_format": schema('{"$ref": "#/$defs/missing"}')},
    "a reference to a file": {"response_format": schema('{"$ref": "file:///etc/passwd"}')},
    "no such array": {"response_format": schema('{"type": "array", "minItems": 5, "maxItems": 3}')},
    "many messages": {"messages": json.dumps(MESSAGES * 3000)},
    "a long message": {"messages": json.dumps([{"role": "user", "content": "x " * 100_000}])},
}


@pytest.mark.parametrize("fields", LARGE.values(), ids=LARGE)
def test_large_values(server: Server, fields: dict[str, str]) -> None:
    check(server, with_fields(**fields))


def check(server: Server, body: str) -> None:
    began = time.monotonic()
    path = "/v1/responses" if '"input"' in body else "/v1/chat/completions"
    if path == "/v1/responses":
        body = body.replace('"messages": ' + json.dumps(MESSAGES) + ",", "")
    headers = {"content-type": "application/json"}
    answer = httpx.post(server.address + path, content=body, headers=headers, timeout=SOON)
    assert time.monotonic() - began < SOON
    assert 400 <= answer.status_code < 500, answer.text[:500]
    error: Any = answer.json()["error"]
    assert len(error["message"]) < 1000
    assert "\n" not in error["message"]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": False},
        {"type": "string", "pattern": "(a{1,1000}){1,1000}b{1,1000}"},
    ],
    ids=["recursive", "repetitions of repetitions"],
)
def test_schemas_that_are_no_bombs(server: Server, schema: dict[str, Any]) -> None:
    body = {"messages": MESSAGES, "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
    answer = httpx.post(server.address + "/v1/chat/completions", json={**body, "max_tokens": 8}, timeout=SOON)
    assert answer.status_code == 200
