"""What every request passes first: the API key, the size of its body, the log. It knows no route.

Pure ASGI: a body is read here, whole and bounded, and handed on; then the connection's own messages follow, so that
whoever answers notices a client that goes away.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import secrets
import time
from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ouroboros.server.errors import APIError
from ouroboros.server.settings import LOOPBACK, Settings
from ouroboros.server.stream import CLOSED, JSONAnswer

__all__ = ["Gate", "Keys"]

_LOGGER = logging.getLogger("ouroboros.server")
READING = 60.0  # seconds that a client has to send its body
_NAMES = (*LOOPBACK, "[::1]", "testserver")


class Keys:
    """The keys that let requests in. Each comparison takes as long as any other, and all of them are made."""

    def __init__(self, keys: Collection[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def name(self, header: str | None) -> str | None:
        """Of whoever sent this ``Authorization``: a part of the key's digest; None where no key lets it in."""
        kind, _, key = (header or "").partition(" ")
        given, found = _digest(key.strip()), None
        for digest in self._digests:
            if hmac.compare_digest(digest, given):
                found = digest.hex()[:16]
        return found if kind.lower() == "bearer" else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class Gate:
    """
    Args:
        open_paths: that need no key: health, and the page's own files. refused: is told the status of each request that
            was not done, where that is not a defect and the client has not gone.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        open_paths: Collection[str],
        stopping: Callable[[], bool],
        refused: Callable[[int], None],
    ) -> None:
        self._app, self._settings, self._open = app, settings, frozenset(open_paths)
        self._keys = Keys(settings.api_keys)
        self._stopping, self._refused = stopping, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0
        scope["ouroboros.id"] = secrets.token_hex(12)
        notes: dict[str, Any] = {}
        scope["ouroboros.log"] = notes

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", scope["ouroboros.id"].encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        try:
            try:
                self._check(scope)
                receiving = await self._body(scope, receive)
            except APIError as error:
                await JSONAnswer(error.body, error.status, error.headers)(scope, receive, sending)
                return
            await self._app(scope, receiving, sending)
        finally:
            if status >= 400 and status not in (CLOSED, 500):
                self._refused(status)
            seconds = round(time.monotonic() - began, 4)
            told = {"method": scope["method"], "path": scope["path"][:200], "status": status, "seconds": seconds}
            _LOGGER.info("%s", json.dumps({"id": scope["ouroboros.id"], **told, **notes}))

    def _check(self, scope: Scope) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path, tenant = scope["path"], None
        if self._keys:
            tenant = self._keys.name(headers.get("authorization"))
            if tenant is None and path not in self._open and scope["method"] != "OPTIONS":
                told = "an API key is needed: Authorization: Bearer KEY"
                if "authorization" in headers:
                    told = "this API key is not known here"
                raise APIError(401, told, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        elif self._settings.local and not self._settings.cors_origins:
            # A page elsewhere may have its own name lead here; it is then asked for under that name.
            given = headers.get("host", "localhost")
            try:
                host = urlsplit(f"//{given}").hostname
            except ValueError:
                raise APIError(400, f"the host {given!r:.100} is no host", "host") from None
            if host not in _NAMES:
                raise APIError(403, f"the host {host!r:.100} is not this machine's: give the server an API key", "host")
        scope["ouroboros.tenant"] = tenant
        if self._stopping() and path != "/health":
            raise APIError(503, "the server is stopping", code="stopping", headers={"retry-after": "5"})

    async def _body(self, scope: Scope, receive: Receive) -> Receive:
        if scope["method"] not in ("POST", "PUT", "PATCH", "DELETE"):
            return receive
        limit, body, more = self._settings.max_body, bytearray(), True
        told = f"the body is larger than {limit} bytes"
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > limit:
            raise APIError(413, told, code="body_too_large", headers={"connection": "close"})
        try:
            async with asyncio.timeout(READING):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        break
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > limit:
                        raise APIError(413, told, code="body_too_large", headers={"connection": "close"})
        except TimeoutError:
            raise APIError(408, f"the body did not come within {READING:g} seconds") from None
        first: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def receiving() -> Message:
            return first.pop() if first else await receive()

        return receiving
