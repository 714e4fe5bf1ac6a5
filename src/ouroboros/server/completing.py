"""Chats and completions: what is asked for, and the answers' bodies, whole and in chunks."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from ouroboros.config import SamplingParams
from ouroboros.server.asking import check_size, params_of, stops_of
from ouroboros.server.errors import APIError
from ouroboros.server.messages import TRANSCRIPT_STOPS, predicted_text, prompt_of
from ouroboros.server.output import Delta, Output, merged, usage_of
from ouroboros.server.schema import ChatRequest, CompletionRequest, NamedTool, ResponseFormat, Tool
from ouroboros.server.service import Run, Service
from ouroboros.server.stream import DONE, event
from ouroboros.server.tools import Arguments, Begin, CallParser, Content, bounded, grammar_of

__all__ = ["Answer", "Asked", "ask_chat", "ask_completion", "choose_tools", "format_grammar"]

DEFAULT_TOKENS = 16  # of a completion that says nothing, as OpenAI has it


@dataclass(frozen=True, slots=True)
class Asked:
    """A request in tokens. ``functions``: names of those that may be called."""

    prompts: list[list[int]]
    params: SamplingParams
    functions: tuple[str, ...] = ()


async def ask_chat(request: ChatRequest, service: Service) -> Asked:
    """
    Raises:
        APIError, InputError: what cannot be done.
    """
    settings = service.settings
    if len(request.messages) > settings.max_messages:
        told = f"there are {len(request.messages)} messages; allowed are {settings.max_messages}"
        raise APIError(400, told, "messages")
    if request.top_logprobs is not None and not request.logprobs:
        raise APIError(400, "top_logprobs needs logprobs to be true", "top_logprobs")
    tools, grammar = choose_tools(request.tools or [], request.tool_choice, service)
    if grammar is None:
        grammar = format_grammar(request.response_format, service)
    elif request.response_format is not None and request.response_format.type != "text":
        raise APIError(400, "response_format must be text where a tool must be called", "response_format")
    prompt = prompt_of(request.messages, [_plain(tool) for tool in tools], request.chat_template_kwargs, service.words)
    ids = await service.encode(prompt, "messages")
    stops = stops_of(request.stop, settings)
    if isinstance(prompt, str):
        stops += TRANSCRIPT_STOPS
    wanted = request.max_completion_tokens or request.max_tokens
    top = (request.top_logprobs or 0) if request.logprobs else None
    room = service.context - len(ids)
    expected = predicted_text(request.prediction)
    params = params_of(request, settings, wanted, room, stops, top, grammar=grammar, prediction=expected)
    return Asked([ids], params, tuple(tool.function.name for tool in tools))


async def ask_completion(request: CompletionRequest, service: Service) -> Asked:
    """
    Raises:
        APIError, InputError: what cannot be done.
    """
    for name in ("echo", "suffix"):
        if getattr(request, name):
            raise APIError(400, f"{name} is not supported", name, "unsupported_parameter")
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise APIError(400, f"best_of must be n, which is {request.n or 1}, not {request.best_of}", "best_of")
    given: Any = request.prompt
    prompts = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    if len(prompts) > service.settings.max_prompts:
        told = f"there are {len(prompts)} prompts; allowed are {service.settings.max_prompts}"
        raise APIError(400, told, "prompt")
    encoded = [await service.encode(prompt) for prompt in prompts]
    stops = stops_of(request.stop, service.settings)
    grammar = format_grammar(request.response_format, service)
    params = params_of(
        request,
        service.settings,
        request.max_tokens,
        DEFAULT_TOKENS,
        stops,
        request.logprobs,
        grammar=grammar,
        prediction=predicted_text(request.prediction),
    )
    return Asked(encoded, params)


def _plain(tool: Tool) -> dict[str, Any]:
    return tool.model_dump(exclude_none=True, exclude={"function": {"strict"}})


def choose_tools(
    tools: Sequence[Tool], choice: str | NamedTool | None, service: Service
) -> tuple[list[Tool], dict[str, Any] | None]:
    """The tools that the model is told of, and the grammar of a call where there must be one.

    Raises:
        APIError: a choice among tools that are not there, or schemas that are too large.
    """
    check_size("tools", json.dumps([_plain(tool) for tool in tools]), service.settings)
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise APIError(400, "two tools have the same name", "tools")
    if choice is None or choice == "auto":
        return list(tools), None
    if choice == "none":
        return [], None
    if not tools:
        raise APIError(400, "tool_choice needs tools", "tool_choice")
    wanted = [choice.function.name] if isinstance(choice, NamedTool) else names
    functions = [(tool.function.name, tool.function.parameters) for tool in tools if tool.function.name in wanted]
    if not functions:
        raise APIError(400, f"tool_choice names {wanted[0]!r:.70}, which is not among the tools", "tool_choice")
    marked = service.tool_format == "hermes"
    return list(tools), grammar_of(list(functions), marked)


def format_grammar(form: ResponseFormat | None, service: Service) -> dict[str, Any] | None:
    """The grammar of a response format; None for text.

    Raises:
        APIError: there is no schema, or a schema too large.
    """
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return {"json_schema": bounded({"type": "object"})}
    schema = None if form.json_schema is None else form.json_schema.schema_
    if schema is None:
        raise APIError(400, "response_format of type json_schema needs a json_schema with a schema", "response_format")
    check_size("response_format", json.dumps(schema), service.settings)
    return {"json_schema": bounded(schema)}


class Answer:
    """To one chat or completion.

    Args:
        chat: whether it is a chat. sources: whether each token's source is told. usage: in a stream, whether it ends
            with the tokens' counts.
    """

    def __init__(
        self, service: Service, run: Run, asked: Asked, request: ChatRequest | CompletionRequest, name: str
    ) -> None:
        self._service, self._run, self._request = service, run, request
        self._chat = isinstance(request, ChatRequest)
        self._sources = bool(request.return_sources)
        self._usage = request.stream_options is not None and bool(request.stream_options.include_usage)
        self._logprobs = asked.params.logprobs is not None
        form = service.tool_format
        self._outputs = [
            Output(
                i,
                ticket,
                service,
                CallParser(form, asked.functions) if asked.functions else None,
                self._logprobs,
                self._sources,
            )
            for i, ticket in enumerate(run.tickets)
        ]
        self._head = {
            "id": ("chatcmpl-" if self._chat else "cmpl-") + name,
            "object": "chat.completion" if self._chat else "text_completion",
            "created": int(time.time()),
            "model": service.settings.model_name,
            "system_fingerprint": service.system,
        }

    @property
    def outputs(self) -> list[Output]:
        return self._outputs

    async def whole(self) -> dict[str, Any]:
        """The body."""
        async for _ in merged(self._outputs):
            pass
        choices = [self._message(output) if self._chat else self._text(output) for output in self._outputs]
        return {**self._head, "choices": choices, "usage": usage_of(self._run, self._outputs)}

    async def events(self) -> AsyncGenerator[bytes]:
        """Of the stream."""
        head = {**self._head, "object": "chat.completion.chunk" if self._chat else "text_completion"}
        usage: dict[str, Any] = {"usage": None} if self._usage else {}
        if self._chat:
            for output in self._outputs:
                begin = {"index": output.index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
                yield event({**head, "choices": [{**begin, "logprobs": None}], **usage})
        async for output, delta in merged(self._outputs):
            for choice in self._choices(output, delta):
                yield event({**head, "choices": [choice], **usage})
        if self._usage:
            yield event({**head, "choices": [], "usage": usage_of(self._run, self._outputs)})
        yield DONE

    # --- chats ---

    def _message(self, output: Output) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": output.text, "refusal": None}
        if output.calls:
            message["content"] = output.text or None
            message["tool_calls"] = [
                {"id": c["id"], "type": "function", "function": {"name": c["name"], "arguments": c["arguments"]}}
                for c in output.calls
            ]
        found: dict[str, Any] = {"index": output.index, "message": message, "finish_reason": output.finish}
        found["logprobs"] = {"content": output.logprobs, "refusal": None} if self._logprobs else None
        return found | ({"sources": output.sources} if self._sources else {})

    def _choices(self, output: Output, delta: Delta) -> list[dict[str, Any]]:
        """The chunks of what has come: of one kind each, log-probabilities and sources with the first."""
        more = self._more(delta)
        if not self._chat:
            text, finish = delta.content, delta.finish
            if not (text or finish or more):
                return []
            logprobs = self._flat(delta.logprobs, len(output.text) - len(text)) if self._logprobs else None
            sources = {name: value for name, value in more.items() if name == "sources"}
            return [{"index": output.index, "text": text, "finish_reason": finish, "logprobs": logprobs, **sources}]
        deltas = [_delta(one) for one in delta.events] or ([{}] if more else [])
        found: list[dict[str, Any]] = [
            {"index": output.index, "delta": one, "finish_reason": None, "logprobs": None} for one in deltas
        ]
        if more:
            found[0] |= more
        if delta.finish is not None:
            found.append({"index": output.index, "delta": {}, "finish_reason": delta.finish, "logprobs": None})
        return found

    def _more(self, delta: Delta) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self._logprobs and delta.logprobs:
            found["logprobs"] = {"content": delta.logprobs, "refusal": None}
        if self._sources and delta.sources:
            found["sources"] = delta.sources
        return found

    # --- completions ---

    def _text(self, output: Output) -> dict[str, Any]:
        logprobs = self._flat(output.logprobs, 0) if self._logprobs else None
        found = {"index": output.index, "text": output.text, "finish_reason": output.finish, "logprobs": logprobs}
        return found | ({"sources": output.sources} if self._sources else {})

    def _flat(self, entries: Sequence[dict[str, Any]], offset: int) -> dict[str, Any]:
        """As completions have them: columns. ``offset``: characters of the text before."""
        offsets = []
        for entry in entries:
            offsets.append(offset)
            offset += len(entry["token"])
        return {
            "tokens": [entry["token"] for entry in entries],
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": [{top["token"]: top["logprob"] for top in entry["top_logprobs"]} for entry in entries],
            "text_offset": offsets,
        }


def _delta(one: Content | Begin | Arguments) -> dict[str, Any]:
    if isinstance(one, Content):
        return {"content": one.text}
    if isinstance(one, Begin):
        function = {"name": one.name, "arguments": ""}
        return {"tool_calls": [{"index": one.index, "id": one.id, "type": "function", "function": function}]}
    return {"tool_calls": [{"index": one.index, "function": {"arguments": one.text}}]}
