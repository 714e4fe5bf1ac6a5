"""A small server with the wire format of ``ouroboros serve``, told by the test what to answer: for the page and for the
client of ``ouroboros chat --url``."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

import ouroboros

WEB = Path(ouroboros.__file__).parent / "server" / "web"
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css"}
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:"

Step = Sequence[tuple[str, str]]  # (text, source) of its tokens

STEPS: tuple[Step, ...] = (
    (("def ", "draft"), ("add(", "draft"), ("a, b", "bonus")),
    (("):\n", "phrase"), ("    return ", "phrase"), ("a ", "phrase"), ("+ ", "bonus")),
    (("b", "draft"), ("\n", "bonus")),
)
TEXT = "".join(text for step in STEPS for text, _ in step)


def plainly(steps: Sequence[Step]) -> list[Step]:
    return [((text, "bonus"),) for step in steps for text, _ in step]


class FakeServer:
    """Answers every chat with ``steps``; tests change its attributes at any time.

    Attributes:
        steps: of each answer. pause, plain_pause: seconds before each step, drafted and plain.
        key: the API key, if any. refusals: (status, headers, message) of the next chats, used up one by one.
        cut: end the next answer after so many steps, without a word.
        sources: whether they are named. refused: drafts in place of each step's last token.
        failure: an error inside the stream, in place of its end.
        goes_on: while it is not set no answer goes on after its first step.
        bodies, keys: of the chats that came. gone: is set when a client left an answer before its end.
    """

    def __init__(self, port: int = 0) -> None:
        self.steps: Sequence[Step] = STEPS
        self.pause = self.plain_pause = 0.0
        self.key: str | None = None
        self.refusals: list[tuple[int, dict[str, str], str]] = []
        self.cut: int | None = None
        self.sources = True
        self.refused: list[str] = []
        self.failure: str | None = None
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.gone = threading.Event()
        self.goes_on = threading.Event()
        self.goes_on.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._ending = threading.Event()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ending(self) -> bool:
        return self._ending.is_set()

    def __enter__(self) -> FakeServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _handler(fake: FakeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            if self.path == "/health":
                self._json(200, {"status": "ok"})
            elif self.path == "/v1/models":
                if self._allowed():
                    self._json(200, {"object": "list", "data": [{"id": "embedded", "object": "model"}]})
            else:
                self._file("index.html" if self.path == "/" else self.path.lstrip("/"))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self._allowed():
                return
            if self.path != "/v1/chat/completions":
                self._error(404, {}, f"no such route: {self.path}")
                return
            fake.bodies.append(body)
            if fake.refusals:
                self._error(*fake.refusals.pop(0))
                return
            self._answer(body)

        def _answer(self, body: dict[str, Any]) -> None:
            plain = body.get("draft") is False
            steps, pause = (plainly(fake.steps), fake.plain_pause) if plain else (fake.steps, fake.pause)
            cut, fake.cut = fake.cut, None
            self._head(200, {"Content-Type": "text/event-stream"})
            try:
                self._chunk({"role": "assistant", "content": ""})
                for number, step in enumerate(steps, 1):
                    while number > 1 and not fake.ending and not fake.goes_on.wait(0.02):
                        pass
                    if fake.ending or (cut is not None and number > cut):
                        return
                    time.sleep(pause)
                    sources = [{"text": text, "source": source, "step": number} for text, source in step]
                    sources[-1]["refused"] = fake.refused
                    self._chunk(
                        {"content": "".join(text for text, _ in step)},
                        sources if fake.sources and body.get("return_sources") else None,
                    )
                if fake.failure is not None:
                    self._event(json.dumps({"error": {"message": fake.failure, "type": "server_error", "code": None}}))
                    return
                self._chunk({}, finish="stop")
                self._event("[DONE]")
            except OSError:
                fake.gone.set()

        def _chunk(self, delta: dict[str, Any], sources: object = None, finish: str | None = None) -> None:
            choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": finish}
            if sources is not None:
                choice["sources"] = sources
            self._event(json.dumps({"object": "chat.completion.chunk", "choices": [choice]}))

        def _event(self, data: str) -> None:
            self.wfile.write(f"data: {data}\n\n".encode())
            self.wfile.flush()

        def _allowed(self) -> bool:
            given = self.headers.get("Authorization")
            fake.keys.append(given)
            if fake.key is None or given == f"Bearer {fake.key}":
                return True
            self._error(401, {}, "the API key is wrong")
            return False

        def _file(self, name: str) -> None:
            path = WEB / name
            if path.parent != WEB or not path.is_file():
                self._error(404, {}, f"no such file: {name}")
                return
            self._head(200, {"Content-Type": TYPES[path.suffix], "Content-Security-Policy": POLICY})
            self.wfile.write(path.read_bytes())

        def _json(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
            self._head(status, {"Content-Type": "application/json", **(headers or {})})
            self.wfile.write(json.dumps(value).encode())

        def _error(self, status: int, headers: dict[str, str], message: str) -> None:
            self._json(status, {"error": {"message": message, "type": "error", "param": None, "code": None}}, headers)

        def _head(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Connection": "close"}.items():
                self.send_header(name, value)
            self.end_headers()

    return Handler
