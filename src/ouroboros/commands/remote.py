"""Models in another process: a client of OpenAI's chat API with what ``ouroboros serve`` adds, by the standard library.

It shows a stream as it comes, and stops the server's work by closing the connection. Redirects are refused: they would
take the API key elsewhere. What a server writes is believed as little as a file.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ouroboros.commands.conversation import Answer, Message
from ouroboros.commands.process import Interrupts
from ouroboros.config import SamplingParams
from ouroboros.errors import InputError

if TYPE_CHECKING:
    from ouroboros._render import Screen

__all__ = ["RemoteChat", "Server", "request_fields"]

_SHORT, _LONG = 10.0, 600.0  # seconds: for what is answered at once; between two pieces of an answer, queue included
_MOST_ERROR = 1 << 16  # bytes that are read of a refusal
_MOST_LINE = 1 << 20  # bytes of an event
_NAMES = {"max_new_tokens": "max_tokens"}  # of a field in OpenAI's API, where it has another
_ALWAYS = ("max_new_tokens", "temperature")  # a server's defaults are not ours
_SENT = (
    *("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "stop", "ignore_eos"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)
_KEPT = ("guidance_scale", "negative_prompt", "stop_token_ids")  # what the API has no field for


def request_fields(params: SamplingParams) -> dict[str, Any]:
    """The parameters as fields of a request; what is left at its default is left out.

    Raises:
        InputError: a parameter that the API cannot say.
    """
    usual = SamplingParams()
    for name in _KEPT:
        if getattr(params, name) != getattr(usual, name):
            raise InputError(f"--{name.removesuffix('s').replace('_', '-')} is for models loaded here, not for --url")
    fields = {
        _NAMES.get(name, name): getattr(params, name)
        for name in _SENT
        if name in _ALWAYS or getattr(params, name) != getattr(usual, name)
    }
    if params.logit_bias:
        fields["logit_bias"] = {str(token): value for token, value in params.logit_bias}
    if params.grammar is not None:
        ((kind, schema),) = params.grammar.items()
        if kind != "json_schema":
            raise InputError(f"--{kind} is for models loaded here: a server takes --json-schema alone")
        schema = json.loads(schema) if isinstance(schema, str) else schema
        fields["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    return fields


class Server:
    """The API at an address.

    Raises:
        InputError: an address that is none; from the methods: no answer, a refusal, or an answer that is not the API's.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        self._url = _checked(url)
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._opener = urllib.request.build_opener(_NoRedirect)

    def model(self) -> str:
        """The name of the first model that is served."""
        with self._understood(), self._open("models", None, _SHORT) as response:
            name = json.loads(response.read(_MOST_LINE))["data"][0]["id"]
            if not isinstance(name, str):
                raise TypeError
            return name

    def chat(self, fields: Mapping[str, Any]) -> Generator[Mapping[str, Any]]:
        """The chunks of a streamed answer; closing the iterator stops it."""
        with self._understood(), self._open("chat/completions", {**fields, "stream": True}, _LONG) as response:
            while line := response.readline(_MOST_LINE):
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                value = json.loads(data)
                if "error" in value:
                    raise InputError(f"the server ended the answer: {value['error']['message']}")
                yield value
            raise InputError(f"the server at {self._url} ended the answer before its end")

    def _open(self, path: str, body: Mapping[str, Any] | None, seconds: float) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {**self._headers, "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._url}/v1/{path}", data, headers)
        return self._opener.open(request, timeout=seconds)

    @contextlib.contextmanager
    def _understood(self) -> Iterator[None]:
        try:
            yield
        except urllib.error.HTTPError as error:
            with error:
                raise InputError(f"the server at {self._url} refuses: {_refusal(error)}") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            raise InputError(f"no answer from {self._url}: {_line(reason) or type(error).__name__}") from None
        except InputError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise InputError(f"the server at {self._url} does not speak OpenAI's API") from None


@dataclass(frozen=True, slots=True)
class RemoteChat:
    """Answers a conversation's turns. ``fields``: of each request, beside its messages."""

    server: Server
    fields: Mapping[str, Any]
    screen: Screen
    interrupts: Interrupts

    def __call__(self, messages: Sequence[Message]) -> Answer:
        """Asks the server and shows the answer as it comes."""
        heard = _Heard()
        interrupted = False
        chunks = self.server.chat({**self.fields, "messages": list(messages), "return_sources": True})
        try:
            with contextlib.closing(chunks):
                for chunk in chunks:
                    self.screen.pieces(heard.take(chunk))
                    self.interrupts.check()
        except KeyboardInterrupt:
            interrupted = True
        finally:
            self.screen.end_text()
        return Answer("".join(heard.text), interrupted, lambda note: self.screen.note(heard.figures() + note))


class _Heard:
    """What has come of an answer: its text, and how many tokens in how many steps and how long."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self._tokens = self._first = 0  # tokens in all, and those that came first, whose time nobody knows
        self._steps: set[int] = set()
        self._begun = self._ended = 0.0

    def take(self, chunk: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Its (text, source) pairs. A server that names no sources is shown as the target alone."""
        try:
            return self._take(chunk)
        except (LookupError, TypeError, AttributeError):
            raise InputError("the server's answer is not what OpenAI's API says") from None

    def _take(self, chunk: Mapping[str, Any]) -> list[tuple[str, str]]:
        if not chunk["choices"]:
            return []
        choice = chunk["choices"][0]
        content = choice["delta"].get("content") or ""
        sources = choice.get("sources") or ()
        pieces = [(str(one["text"]), str(one["source"])) for one in sources]
        steps = [one.get("step", len(self._steps) + 1) for one in sources]  # a chunk is a step, where it is not said
        steps = [int(step) for step in steps if step is not None]  # None: text of tokens that were counted
        if steps:
            self._ended = time.perf_counter()
            if not self._tokens:
                self._begun, self._first = self._ended, len(steps)
            self._tokens += len(steps)
            self._steps.update(steps)
        elif content and not pieces:
            pieces = [(content, "bonus")]
        self.text.append(content)
        return pieces

    def figures(self) -> str:
        if not self._steps:
            return "the server named no sources of tokens"
        parts = [f"{self._tokens} new tokens", f"{self._tokens / len(self._steps):.2f} tokens per target forward"]
        if self._ended > self._begun:
            parts.append(f"{(self._tokens - self._first) / (self._ended - self._begun):.1f} tokens/s")
        return ", ".join(parts)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None  # then the redirect itself is the error


def _checked(url: str) -> str:
    wrong = InputError(f"--url must be http://HOST:PORT or https://HOST, perhaps with a path, not {url!r}")
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError:
        raise wrong from None
    sound = parts.scheme in ("http", "https") and parts.hostname and port != 0 and not (parts.query or parts.fragment)
    if not sound or "@" in parts.netloc or any(c.isspace() or not c.isprintable() for c in url):
        raise wrong
    return url.rstrip("/").removesuffix("/v1")


def _refusal(error: urllib.error.HTTPError) -> str:
    try:
        return _line(json.loads(error.read(_MOST_ERROR))["error"]["message"])
    except (ValueError, LookupError, TypeError, RecursionError, OSError, http.client.HTTPException):
        return f"status {error.code}"


def _line(text: object) -> str:
    return " ".join(str(text).split())[:500]
