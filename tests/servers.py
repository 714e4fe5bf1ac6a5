"""A server of the embedded pair in a thread, and clients of it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import openai

import ouroboros
from ouroboros.server.running import Server
from ouroboros.server.service import Service
from ouroboros.server.settings import Settings


@contextlib.contextmanager
def serving(decoder: ouroboros.Decoder, **settings: Any) -> Iterator[Server]:
    """A running server; ``port`` is chosen by the machine."""
    service = Service(decoder, Settings(**{"port": 0, "grace": 5.0, **settings}))
    ready = threading.Event()
    server = Server(service, lambda address: ready.set())
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert ready.wait(20)
        yield server
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def client_of(server: Server, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key=key, max_retries=0, timeout=30)
