"""One replica on a Ray cluster: models, an engine, and the server's own routes. It knows nothing of other replicas, but
that they may read what it writes of tenants' memories."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from starlette.types import Message, Scope

import ouroboros
from ouroboros.errors import InputError, OuroborosError, PoolFileError
from ouroboros.models.memory import available_memory
from ouroboros.server.app import create_app
from ouroboros.server.neighbours import MOST_SERVERS
from ouroboros.server.service import Service
from ouroboros.server.settings import Settings

__all__ = ["Replica"]

_LOGGER = logging.getLogger("ouroboros.server")
LEAVING = 5.0  # seconds that an answer has to end once its client has gone


class Replica:
    """One engine behind the server's own routes.

    Args:
        load: arguments of ``ouroboros.load``. settings: of the server; under ``memory_dir`` it takes the first place
            that no other replica has. shares: of the machine's memory, of which it takes one.
    """

    def __init__(self, load: Mapping[str, Any], settings: Settings, shares: int) -> None:
        from ray import serve

        decoder = ouroboros.load(**load)
        free = available_memory(torch.device(decoder.target.info.device))
        if settings.kv_memory is None and free is not None:
            settings = replace(settings, kv_memory=max(1, free // (2 * shares)))
        self._service = _service(decoder, settings)
        self._app = create_app(self._service)
        self._saving: asyncio.Task[None] | None = None
        self.name = serve.get_replica_context().replica_id.unique_id

    async def answer(self, scope: Scope, body: bytes) -> AsyncGenerator[list[Message]]:
        """The messages of an answer, as they come; those that are there at once in one list."""
        if self._saving is None:
            self._saving = asyncio.create_task(self._service.save_often())
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        gone = asyncio.Event()
        asked: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if asked:
                return asked.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"x-ouroboros-replica", self.name.encode())]}
            messages.put_nowait(message)

        async def work() -> None:
            try:
                await self._app(scope, receive, send)
            except Exception:
                _LOGGER.exception("an answer failed")  # its client has been told by the app
            finally:
                messages.put_nowait(None)

        task = asyncio.create_task(work())
        try:
            ended = False
            while not ended:
                found = [await messages.get()]
                while not messages.empty():
                    found.append(messages.get_nowait())
                ended = found[-1] is None
                told = [message for message in found if message is not None]
                if told:
                    yield told
        finally:
            gone.set()
            await asyncio.wait({task}, timeout=LEAVING)
            task.cancel()

    async def whole(self, scope: Scope) -> tuple[str, int, bytes]:
        """Its name, and the status and body of its answer to a request without a body."""
        status, body = 500, b""
        async for messages in self.answer(scope, b""):
            for message in messages:
                status = message.get("status", status)
                body += message.get("body", b"")
        return self.name, status, body

    def state(self) -> dict[str, Any]:
        """Its name (in the header ``x-ouroboros-replica`` of its answers), process, and what its engine has to do."""
        return {"replica": self.name, "pid": os.getpid(), **asdict(self._service.engine.load)}

    def check_health(self) -> None:
        """
        Raises:
            OuroborosError: the engine has ended, so that Serve must replace this replica.
        """
        if not self._service.engine.alive:
            raise OuroborosError("the engine has ended")

    def __del__(self) -> None:
        """Serve calls it when the replica's requests have ended: memories are saved."""
        if hasattr(self, "_service"):
            self._service.close()


def _service(decoder: ouroboros.Decoder, settings: Settings) -> Service:
    if settings.memory_dir is None:
        return Service(decoder, settings)
    for place in range(MOST_SERVERS):
        try:
            return Service(decoder, replace(settings, memory_dir=f"{settings.memory_dir}/{place}", neighbours=True))
        except PoolFileError:  # another replica has this one
            continue
    raise InputError(f"memory_dir {settings.memory_dir!r} has no place left, or no replica may write there")
