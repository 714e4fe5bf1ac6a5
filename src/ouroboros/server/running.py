"""A server that listens: uvicorn, with an end that keeps what requests have written."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Generator
from types import FrameType

import uvicorn

from ouroboros.server.app import create_app
from ouroboros.server.service import Service

__all__ = ["Server"]

LAST = 5  # seconds that connections have once requests have ended


class Server(uvicorn.Server):
    """
    Args:
        ready: is told the address once requests are taken.

    Attributes:
        signal: the number of the one that ended it, if one did. was_started: it has listened.
    """

    def __init__(self, service: Service, ready: Callable[[str], None] = lambda address: None) -> None:
        settings = service.settings
        super().__init__(
            uvicorn.Config(
                create_app(service),
                host=settings.host,
                port=settings.port,
                log_config=None,
                access_log=False,
                server_header=False,
                ws="none",
                lifespan="on",
                timeout_keep_alive=75,
                timeout_graceful_shutdown=int(settings.grace) + LAST,
                h11_max_incomplete_event_size=64 << 10,
            )
        )
        self.signal: int | None = None
        self.was_started = False
        self._service, self._ready = service, ready

    @property
    def address(self) -> str:
        """Where it listens, as a URL."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def startup(self, sockets: list[object] | None = None) -> None:
        await super().startup(sockets)  # type: ignore[arg-type]
        if self.started:
            self.was_started = True
            self._ready(self.address)

    async def shutdown(self, sockets: list[object] | None = None) -> None:
        draining = asyncio.create_task(self._service.drain())
        await super().shutdown(sockets)  # type: ignore[arg-type]
        await draining

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """SIGTERM and SIGINT end it in order; a second one at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, number: int, frame: FrameType | None) -> None:
        self.force_exit = self.signal is not None
        self.signal = number
        self.should_exit = True
        self._service.stopping = True
