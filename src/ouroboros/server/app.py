"""The routes. What they answer is made in completing.py and responses.py, of
what asked.py and items.py make of it; what they pass first is in gate.py."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import APIRouter, Body, Depends, FastAPI, Path, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from ouroboros._version import __version__
from ouroboros.errors import OuroborosError
from ouroboros.server.asked import Asked, ask_chat, ask_completion
from ouroboros.server.completing import Answer
from ouroboros.server.errors import APIError, of_library, of_validation
from ouroboros.server.gate import Gate
from ouroboros.server.items import ask_response
from ouroboros.server.messages import prompt_of
from ouroboros.server.pages import serve_page
from ouroboros.server.responses import Response as Answered
from ouroboros.server.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    ErrorBody,
    Sampling,
    TokenizeRequest,
)
from ouroboros.server.schema_answers import Chat, Completion, Health, Model, Models, Responded, Text, Tokens
from ouroboros.server.schema_responses import ResponsesRequest
from ouroboros.server.service import Run, Service
from ouroboros.server.stream import CLOSED, ClientGoneError, EventStream, JSONAnswer, attended

__all__ = ["create_app"]

REFUSALS = (400, 401, 403, 404, 405, 408, 413, 429, 500, 503)
NESTED = 100  # levels of a body
EVENTS: dict[str, Any] = {"text/event-stream": {}}


def create_app(service: Service) -> ASGIApp:
    """The server as an ASGI application; when it ends, the service is closed."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        saving = asyncio.create_task(service.save_often())
        yield
        saving.cancel()
        await service.finish()

    app = FastAPI(
        title="Ouroboros",
        version=__version__,
        docs_url=None,  # their pages load code from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        responses={status: {"model": ErrorBody} for status in REFUSALS},
    )
    keys = [Security(HTTPBearer(auto_error=False))] if service.settings.api_keys else []  # gate.py asks for them
    api = APIRouter(dependencies=keys)
    _handle_errors(app)
    _answer(api, service)
    _tokens(api, service)
    _tell(api, service)
    app.include_router(api)
    _health(app, service)
    pages = serve_page(app)
    gate: ASGIApp = Gate(app, service.settings, {"/health", *pages}, lambda: service.stopping, service.metrics.refused)
    origins = list(service.settings.cors_origins)
    if origins:
        gate = CORSMiddleware(gate, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"])
    return gate


def _handle_errors(app: FastAPI) -> None:
    def told(error: APIError) -> Response:
        return JSONAnswer(error.body, error.status, error.headers)

    @app.exception_handler(APIError)
    async def api(request: Request, error: APIError) -> Response:
        return told(error)

    @app.exception_handler(OuroborosError)
    async def library(request: Request, error: OuroborosError) -> Response:
        return told(of_library(error))

    @app.exception_handler(RequestValidationError)
    async def validation(request: Request, error: RequestValidationError) -> Response:
        return told(of_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        return told(APIError(error.status_code, str(error.detail), headers=error.headers))

    @app.exception_handler(Exception)
    async def defect(request: Request, error: Exception) -> Response:
        return told(APIError(500, "the server has a defect; its log says more", code="internal_error"))

    @app.exception_handler(ClientGoneError)
    async def gone(request: Request, error: ClientGoneError) -> Response:
        return Response(status_code=CLOSED)


def memory_of(request: Request, asked: Sampling, service: Service) -> str | None:
    """The name of the memory that a request reads and writes (see tenants.py)."""
    return service.memory_name(request.scope.get("ouroboros.tenant"), asked.memory)


class Answering(Protocol):
    """To one request, whole or in a stream."""

    async def whole(self) -> dict[str, Any]: ...

    def events(self) -> AsyncGenerator[bytes]: ...


R = TypeVar("R", bound=Sampling)


def _headers(asked: Sampling) -> dict[str, str]:
    return {"x-ouroboros-ignored": ", ".join(asked.ignored)} if asked.ignored else {}


async def _checked(http: Request) -> None:
    """What holds for every body. A page elsewhere may send other kinds of content without asking this server first;
    what is nested deeply costs a stack wherever it is walked through.

    Raises:
        APIError: another content type than JSON's, or too many levels.
    """
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise APIError(400, f"the content type must be application/json, not {kind!r:.60}", "content-type")
    layer, levels = [await http.json()], 0
    while layer := [inner for one in layer if isinstance(one, dict | list) for inner in _members(one)]:
        levels += 1
        if levels > NESTED:
            raise APIError(400, f"the body is nested more than {NESTED} deep")


def _members(one: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return one.values() if isinstance(one, dict) else one


CHECKED = [Depends(_checked)]


def _said(kind: type[BaseModel], others: Mapping[str, Any] | None = None) -> dict[int | str, dict[str, Any]]:
    """For the schema: what an answer holds, and the other content types that it may have."""
    return {200: {"model": kind, "content": dict(others or {})}}


def _answer(api: APIRouter, service: Service) -> None:
    async def respond(
        http: Request, asked: R, ask: Callable[[R, Service], Awaitable[Asked]], kind: Callable[..., Answering]
    ) -> Response:
        service.check_model(asked.model)
        wanted = await attended(http.receive, ask(asked, service))
        run = await service.submit(wanted.prompts, wanted.params, memory_of(http, asked, service))
        answer = kind(service, run, wanted, asked, http.scope["ouroboros.id"])
        note(http, run, wanted.prompts)
        if asked.stream:
            return EventStream(answer.events(), lambda: service.end(run), _headers(asked))
        try:
            return JSONAnswer(await attended(http.receive, answer.whole()), headers=_headers(asked))
        finally:
            service.end(run)

    def note(http: Request, run: Run, prompts: list[list[int]]) -> None:
        http.scope["ouroboros.log"] |= {"prompt_tokens": sum(map(len, prompts)), "texts": len(run.tickets)}
        if service.settings.log_prompts and service.words is not None:
            http.scope["ouroboros.log"]["prompts"] = [service.words.decode(ids) for ids in prompts]

    @api.post("/v1/chat/completions", responses=_said(Chat, EVENTS), dependencies=CHECKED)
    async def chat(http: Request, asked: Annotated[ChatRequest, Body()]) -> Response:
        return await respond(http, asked, ask_chat, Answer)

    @api.post("/v1/completions", responses=_said(Completion, EVENTS), dependencies=CHECKED)
    async def completions(http: Request, asked: Annotated[CompletionRequest, Body()]) -> Response:
        return await respond(http, asked, ask_completion, Answer)

    @api.post("/v1/responses", responses=_said(Responded, EVENTS), dependencies=CHECKED)
    async def responses(http: Request, asked: Annotated[ResponsesRequest, Body()]) -> Response:
        return await respond(http, asked, ask_response, Answered)


def _tell(api: APIRouter, service: Service) -> None:
    """What the server serves, and how it goes."""

    @api.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        text = service.metrics.text(service.engine.load, service.tenants.phrases())
        return Response(text, media_type="text/plain; version=0.0.4")

    @api.get("/v1/models", responses=_said(Models))
    async def models() -> Response:
        return JSONAnswer({"object": "list", "data": [_model(service)]})

    @api.get("/v1/models/{name:path}", responses=_said(Model))
    async def model(name: str = Path(examples=[service.settings.model_name])) -> Response:
        service.check_model(name)
        return JSONAnswer(_model(service))


def _health(app: FastAPI, service: Service) -> None:
    @app.get("/health", responses=_said(Health))
    async def health() -> Response:
        if service.stopping:
            return JSONAnswer({"status": "stopping"}, 503)
        return JSONAnswer({"status": "ok"})


def _model(service: Service) -> dict[str, Any]:
    head = {"id": service.settings.model_name, "object": "model", "created": service.created, "owned_by": "ouroboros"}
    decoder = service.decoder
    return {**head, "max_model_len": service.context, "method": decoder.method, "draft": decoder.draft is not None}


def _tokens(api: APIRouter, service: Service) -> None:
    @api.post("/tokenize", responses=_said(Tokens), dependencies=CHECKED)
    async def tokenize(asked: Annotated[TokenizeRequest, Body()]) -> Response:
        service.check_model(asked.model)
        if (asked.prompt is None) == (asked.messages is None):
            raise APIError(400, "give a prompt or messages", "prompt")
        words = service.words
        if words is None:
            raise APIError(400, "this model has no tokenizer")
        text = (asked.prompt or "") if asked.messages is None else prompt_of(asked.messages, (), None, words)
        ids = [] if text == "" else await service.encode(text)
        if not asked.add_special_tokens and isinstance(text, str):
            while ids and words.is_silent(ids[0]):
                del ids[0]
        return JSONAnswer({"tokens": ids, "count": len(ids), "max_model_len": service.context})

    @api.post("/detokenize", responses=_said(Text), dependencies=CHECKED)
    async def detokenize(asked: Annotated[DetokenizeRequest, Body()]) -> Response:
        service.check_model(asked.model)
        words = service.words
        if words is None:
            raise APIError(400, "this model has no tokenizer")
        ids = asked.tokens
        wrong = next((i for i in ids if i >= service.decoder.target.info.vocab_size), None)
        if wrong is not None:
            raise APIError(400, f"there is no token {wrong}", "tokens")
        return JSONAnswer({"prompt": await service.call(lambda: words.decode(ids))})
