"""Answers over a connection: whole ones and server-sent events. A client that goes away cancels its request at once,
whichever it waits for: the connection is listened to all the time."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ouroboros.server.errors import APIError

__all__ = ["CLOSED", "DONE", "ClientGoneError", "EventStream", "JSONAnswer", "attended", "event"]

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
CLOSED = 499  # nobody reads it


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


class JSONAnswer(Response):
    """JSON in ASCII, so that nothing that a client sent can fail to be sent back."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def event(payload: Mapping[str, Any], name: str | None = None) -> bytes:
    """One server-sent event."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(payload, allow_nan=False, separators=(',', ':'))}\n\n".encode("ascii")


async def gone(receive: Receive) -> None:
    """Until the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def attended(receive: Receive, work: Awaitable[T]) -> T:
    """What ``work`` gives.

    Raises:
        ClientGoneError: the client went away first; the work is cancelled.
    """
    job = asyncio.ensure_future(work)
    listener = asyncio.create_task(gone(receive))
    try:
        await asyncio.wait({job, listener}, return_when=asyncio.FIRST_COMPLETED)
        if not job.done():
            raise ClientGoneError
        return job.result()
    finally:
        for task in (job, listener):
            task.cancel()


class EventStream(Response):
    """
    Args:
        events: encoded; an APIError in them is told as an event. ended: called once, whatever happened.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes], ended: Callable[[], None], headers: Mapping[str, str] | None = None
    ) -> None:
        self._events, self._ended = events, ended
        self.status_code, self.background = 200, None
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no", **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send(send))
        listener = asyncio.create_task(gone(receive))
        try:
            await asyncio.wait({sending, listener}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        except OSError:
            pass  # the connection broke while something was sent
        finally:
            self._ended()
            for task in (sending, listener):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for data in self._events:
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except APIError as error:
            await send({"type": "http.response.body", "body": event(error.body), "more_body": True})
        finally:
            await self._events.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})
