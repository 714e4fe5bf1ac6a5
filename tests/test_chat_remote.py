"""``ouroboros chat --url`` against a small server: streams, turns, commands, Ctrl-C, refusals, and what is no API."""

from __future__ import annotations

import http.server
import io
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ouroboros import cli
from ouroboros.commands.remote import Server, request_fields
from ouroboros.config import SamplingParams
from ouroboros.errors import InputError
from tests.children import answering
from tests.fake_server import TEXT, FakeServer


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as fake:
        yield fake


def talk(monkeypatch: pytest.MonkeyPatch, url: str, text: str, *args: str) -> int:
    monkeypatch.setattr(cli, "_load", lambda *args: pytest.fail("a model was loaded"))
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return cli.main(["chat", "--url", url, *args])


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the screen was asked to note, the help left out."""
    seen: list[str] = []
    monkeypatch.setattr("ouroboros._render.Screen.note", lambda screen, text: seen.append(text))
    return seen


def test_turns(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], notes: list[str]
) -> None:
    pieces: list[tuple[str, str]] = []
    monkeypatch.setattr("ouroboros._render.Screen.pieces", lambda screen, more: pieces.extend(more))
    assert talk(monkeypatch, server.url + "/v1/", "one\ntwo\n/undo\nthree\n", "--system", "Be brief.") == 0
    system, answer = {"role": "system", "content": "Be brief."}, {"role": "assistant", "content": TEXT}
    asked = [[one["content"] for one in body["messages"]] for body in server.bodies]
    assert asked == [["Be brief.", "one"], ["Be brief.", "one", TEXT, "two"], ["Be brief.", "one", TEXT, "three"]]
    assert server.bodies[1]["messages"][::2] == [system, answer]
    assert pieces[:4] == [("def ", "draft"), ("add(", "draft"), ("a, b", "bonus"), ("):\n", "phrase")]
    assert notes[0] == f"embedded at {server.url}/v1/"
    assert notes[2].startswith("9 new tokens, 3.00 tokens per target forward, ")
    first = {name: value for name, value in server.bodies[0].items() if name != "messages"}
    usual = {"model": "embedded", "max_tokens": 1024, "temperature": 0.0, "stream": True, "return_sources": True}
    assert first == usual
    assert capsys.readouterr().err == ""


def test_text_alone_goes_to_a_pipe(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert talk(monkeypatch, server.url, "one\n") == 0
    assert capsys.readouterr() == (TEXT + "\n", "")


def test_parameters_are_sent(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [
        "--max-new-tokens",
        "7",
        "--temperature",
        "0.5",
        "--top-k",
        "3",
        "--seed",
        "4",
        "--stop",
        "x",
        "--ignore-eos",
    ]
    given += ["--logit-bias", "5=-2", "--method", "speculative"]
    assert talk(monkeypatch, server.url, "one\n", *given) == 0
    body = server.bodies[0]
    assert {name: body[name] for name in ("max_tokens", "temperature", "top_k", "seed", "stop", "ignore_eos")} == {
        "max_tokens": 7,
        "temperature": 0.5,
        "top_k": 3,
        "seed": 4,
        "stop": ["x"],
        "ignore_eos": True,
    }
    assert (body["logit_bias"], body["method"]) == ({"5": -2.0}, "speculative")
    assert talk(monkeypatch, server.url, "one\n", "--json-schema", '{"type": "object"}') == 0
    body = server.bodies[1]
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_every_parameter_is_sent_or_refused() -> None:
    """A parameter that is added has to be thought of here."""
    other: dict[str, Any] = {
        "max_new_tokens": 5,
        "temperature": 0.3,
        "top_k": 2,
        "top_p": 0.5,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "logit_bias": {1: 2.0},
        "grammar": {"json_schema": {"type": "object"}},
        "seed": 3,
        "stop": ("x",),
        "ignore_eos": True,
    }
    usual = request_fields(SamplingParams())
    for name, value in other.items():
        assert request_fields(SamplingParams(**{name: value})) != usual, name
    refused: dict[str, dict[str, Any]] = {
        "guidance_scale": {"guidance_scale": 2.0},
        "negative_prompt": {"guidance_scale": 2.0, "negative_prompt": "x"},
        "stop_token_ids": {"stop_token_ids": (1,)},
        "grammar": {"grammar": {"regex": "a"}},
    }
    for values in refused.values():
        with pytest.raises(InputError, match="loaded here"):
            request_fields(SamplingParams(**values))
    elsewhere = {"n", "logprobs", "processors", "method", "prediction"}  # no option of a chat, or one of its own
    assert set(SamplingParams.__dataclass_fields__) == set(other) | set(refused) | elsewhere


def test_keys(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.key = "secret"
    (tmp_path / "key").write_text("secret\n")
    assert talk(monkeypatch, server.url, "one\n") == 2
    assert f"the server at {server.url} refuses: the API key is wrong" in capsys.readouterr().err
    assert talk(monkeypatch, server.url, "one\n", "--api-key-file", str(tmp_path / "key")) == 0
    assert server.keys[-1] == "Bearer secret"
    (tmp_path / "key").write_text("\n")
    assert talk(monkeypatch, server.url, "one\n", "--api-key-file", str(tmp_path / "key")) == 2
    assert "must be a key of printable ASCII characters" in capsys.readouterr().err


def test_a_turn_that_fails_leaves_the_conversation(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.refusals = [(429, {"Retry-After": "1"}, "the queue is full \x1b[31m")]
    server.cut = 1
    assert talk(monkeypatch, server.url, "one\ntwo\nthree\n") == 0
    err = capsys.readouterr().err
    assert f"the server at {server.url} refuses: the queue is full \\x1b[31m\n" in err
    assert f"the server at {server.url} ended the answer before its end" in err
    assert [[one["content"] for one in body["messages"]] for body in server.bodies] == [["one"], ["two"], ["three"]]


def test_an_error_inside_the_stream(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.failure = "the model is not a number"
    assert talk(monkeypatch, server.url, "one\n") == 0
    assert "the server ended the answer: the model is not a number" in capsys.readouterr().err


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:8000", "file:///etc/passwd", "http://", "http://h:x", "http://h:0", "http://u:p@h", "http://h?q"],
)
def test_what_is_no_address(url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert talk(monkeypatch, url, "one\n") == 2
    assert (
        f"--url must be http://HOST:PORT or https://HOST, perhaps with a path, not {url!r}" in capsys.readouterr().err
    )


def test_nobody_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer() as gone:
        url = gone.url
    assert talk(monkeypatch, url, "one\n") == 2
    assert f"no answer from {url}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "given",
    [
        *(["--target", "x"], ["--draft", "x"], ["--pool", "x"], ["--dtype", "float32"], ["--set", "control=off"]),
        *(["--template-arg", "a=1"], ["--control-tokens"], ["--chat-template", "x"], ["--threads", "1"]),
        *(["--guidance-scale", "2"], ["--regex", "a"], ["--stop-token-id", "1"]),
    ],
)
def test_options_of_models_that_are_loaded_here(
    given: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert talk(monkeypatch, "http://127.0.0.1:9", "one\n", *given) == 2
    err = capsys.readouterr().err
    assert given[0] in err
    assert "loaded here" in err


def test_a_key_needs_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["chat", "--api-key-file", "x"]) == 2
    assert "--api-key-file is for a server: it needs --url" in capsys.readouterr().err


@pytest.mark.parametrize("reply", ["[]", "{", '{"data": []}', '{"data": [{"id": 3}]}', "[" * 100_000])
def test_another_kind_of_server(reply: str) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            if self.path == "/moved/v1/models":
                self.send_response(302)
                self.send_header("Location", "/v1/models")
                self.end_headers()
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(reply.encode())

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as other:
        thread = threading.Thread(target=other.serve_forever, args=(0.02,))
        thread.start()
        url = f"http://127.0.0.1:{other.server_address[1]}"
        try:
            with pytest.raises(InputError, match="does not speak OpenAI's API"):
                Server(url).model()
            with pytest.raises(InputError, match="refuses: status 302"):
                Server(url + "/moved", "secret").model()
        finally:
            other.shutdown()
            thread.join()


def test_ctrl_c_stops_an_answer_and_the_server(server: FakeServer) -> None:
    server.steps, server.pause = [(("word ", "draft"),)] * 2000, 0.01
    with answering("one", "--url", server.url) as (process, head):
        process.send_signal(signal.SIGINT)
        assert server.gone.wait(10)
        server.steps, server.pause = [(("end", "bonus"),)], 0.0
        out, err = process.communicate(b"two\n", timeout=60)
    assert (process.returncode, err) == (0, b"")
    written = server.bodies[1]["messages"][1]["content"]
    assert 20 <= len(written) < 5000
    assert (head + out).decode() == f"{written}\nend\n"
    assert written == "word " * (len(written) // 5)
