"""What all requests to an application on a Ray cluster pass first: it tells which replica one is for, and passes
messages on. It has no model and knows no route.

Requests of one tenant that begin alike go to one replica, as long as that has room: caches and phrases are warm there.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ouroboros.server.errors import APIError
from ouroboros.server.stream import JSONAnswer, event

__all__ = ["Ingress", "merged_metrics", "routing_key"]

SESSION = "x-session-id"  # requests that name the same one go to one replica, whatever they ask
BEGINNING = 1024  # characters of a prompt that tell where its rows are
TRIES = 4  # replicas that a request is given to, one after the other dying
PAUSE = 0.25  # seconds before the second try; twice as long before each further one
ASKING = 5.0  # seconds that all replicas have to say how they are


def routing_key(headers: Mapping[str, str], body: bytes) -> str:
    """What requests have in common that should meet: their tenant, and a session or the beginning of what they ask."""
    tenant, memory, beginning = headers.get("authorization", ""), None, headers.get(SESSION)
    with contextlib.suppress(ValueError, RecursionError):
        asked = json.loads(body) if body else None
        if isinstance(asked, dict):
            memory = asked.get("memory")
            if beginning is None:
                beginning = _beginning(asked)
    return hashlib.sha256(repr((tenant, memory, beginning)).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _beginning(asked: Mapping[str, Any]) -> str:
    said = asked.get("messages", asked.get("input"))
    if isinstance(said, list):  # up to the first user's message: what all turns of a chat begin with
        first = next((i for i, one in enumerate(said) if isinstance(one, dict) and one.get("role") == "user"), 0)
        said = said[: first + 1]
    return json.dumps([asked.get("instructions"), said, asked.get("prompt")])[:BEGINNING]


def merged_metrics(texts: Mapping[str, str]) -> str:
    """Prometheus' text of several replicas as one: each sample has its replica as a label."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for replica, text in texts.items():
        family = ""
        for line in text.splitlines():
            if line.startswith("# HELP "):
                family = line.split(" ")[2]
                samples.setdefault(family, [])
                heads[family] = [line]
            elif line.startswith("#"):
                heads.setdefault(family, []).append(line)
            elif line:
                name, brace, rest = line.partition("{")
                if not brace:
                    name, _, value = line.partition(" ")
                    rest = f"}} {value}"
                comma = "" if rest.startswith("}") else ","
                samples.setdefault(family, []).append(f'{name}{{replica="{replica}"{comma}{rest}')
    return "\n".join(line for family in samples for line in (*heads.get(family, ()), *samples[family])) + "\n"


class Ingress:
    """Passes requests on. ``replicas``: a handle of theirs. max_body: bytes of a request."""

    def __init__(self, replicas: Any, max_body: int) -> None:
        self._replicas, self._max_body = replicas, max_body

    async def __call__(self, request: Request) -> Response:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self._max_body:
                break  # the replica's gate says so
        names = "type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers"
        scope = {name: request.scope[name] for name in names if name in request.scope}
        if scope["method"] == "GET" and scope["path"] in ("/health", "/metrics"):  # they wait for no place
            return await self._asked_of_all(scope)
        key = routing_key(request.headers, bytes(body))
        return _Relay(self._replicas.options(method_name="answer", stream=True, session_id=key), scope, bytes(body))

    async def _asked_of_all(self, scope: Scope) -> Response:
        try:
            asked = self._replicas.broadcast("whole", scope)
            found = await asked.results_async(timeout_s=ASKING, return_exceptions=True)
        except Exception:  # a cluster that is being changed has many
            found = []
        told = [one for one in found if not isinstance(one, BaseException)]
        if not told:
            return JSONAnswer({"status": "no replica answers"}, 503)
        refused = [(status, body) for _, status, body in told if status != 200]
        if scope["path"] == "/metrics" and not refused:
            text = merged_metrics({name: body.decode() for name, _, body in told})
            return Response(text, media_type="text/plain; version=0.0.4")
        status, body = refused[0] if len(refused) == len(told) else (200, told[0][2])
        return Response(body, status, media_type="application/json")


class _Relay(Response):
    """A replica's answer, passed on as it comes. What was not begun when its replica died is asked of another one."""

    def __init__(self, replicas: Any, scope: Scope, body: bytes) -> None:
        super().__init__()
        self._replicas, self._scope, self._body = replicas, scope, body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from ray.exceptions import RayActorError, WorkerCrashedError
        from ray.serve.exceptions import BackPressureError, ReplicaUnavailableError

        refusal = APIError(503, "the replicas that had this request have died", code="replica_lost")
        for attempt in range(TRIES):
            held: list[Message] | None = []  # None: the client has been told a part
            answer = self._replicas.remote(self._scope, self._body)
            try:
                async for messages in answer:
                    for message in messages:
                        if held is None:
                            await send(message)
                            continue
                        held.append(message)
                        if _begins(held):
                            await _send_all(held, send)
                            held = None
                return
            except (RayActorError, WorkerCrashedError, ReplicaUnavailableError):
                if held is None:
                    lost = APIError(503, "the replica that wrote this has died", code="replica_lost")
                    await send({"type": "http.response.body", "body": event(lost.body), "more_body": False})
                    return
                await asyncio.sleep(PAUSE * 2**attempt)
            except BackPressureError:
                refusal = APIError(429, "the queue is full", code="queue_full", headers={"retry-after": "1"})
                break
            finally:
                answer.cancel()
        await JSONAnswer(refusal.body, refusal.status, refusal.headers)(scope, receive, send)


def _begins(held: Sequence[Message]) -> bool:
    """Whether the client can be told: a stream's first event is there, or all of a whole answer."""
    start, last = held[0], held[-1]
    if last["type"] != "http.response.body":
        return False
    streams = any(
        name == b"content-type" and value.startswith(b"text/event-stream") for name, value in start["headers"]
    )
    return not last.get("more_body", False) or (streams and bool(last.get("body")))


async def _send_all(messages: Sequence[Message], send: Send) -> None:
    for message in messages:
        await send(message)
