"""The Responses API: a conversation as items, and the answer as items, whole or as numbered events.

Stateless: nothing is stored, clients send the history. The same builder makes the stream and the whole answer, so that
items have the same ids in both.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from ouroboros.server.asking import params_of
from ouroboros.server.completing import Asked, choose_tools, format_grammar
from ouroboros.server.errors import APIError
from ouroboros.server.messages import TRANSCRIPT_STOPS, prompt_of, text_of
from ouroboros.server.output import Delta, Output, merged, usage_of
from ouroboros.server.schema import (
    Function,
    FunctionCall,
    Item,
    JsonSchema,
    Message,
    NamedFunction,
    NamedTool,
    Part,
    ResponseFormat,
    ResponsesNamed,
    ResponsesRequest,
    ResponsesTool,
    Tool,
    ToolCall,
)
from ouroboros.server.service import Run, Service
from ouroboros.server.stream import event
from ouroboros.server.tools import Arguments, Begin, CallParser, Content

__all__ = ["Response", "ask_response"]

_REFUSED = ("previous_response_id", "conversation", "prompt", "background")
ROLES = ("system", "developer", "user", "assistant")


async def ask_response(request: ResponsesRequest, service: Service) -> Asked:
    """
    Raises:
        APIError, InputError: what cannot be done.
    """
    for name in _REFUSED:
        if getattr(request, name):
            told = f"{name} is not supported: nothing is stored here, send the whole conversation as input"
            raise APIError(400, told, name, "unsupported_parameter")
    if request.truncation == "auto":
        raise APIError(400, "truncation must be disabled: nothing is left out here", "truncation")
    messages = _messages(request.input)
    if request.instructions:
        messages.insert(0, Message(role="system", content=request.instructions))
    if not 0 < len(messages) <= service.settings.max_messages:
        told = f"input has {len(messages)} messages; allowed are 1 to {service.settings.max_messages}"
        raise APIError(400, told, "input")
    chosen = request.tool_choice
    if isinstance(chosen, ResponsesNamed):
        chosen = NamedTool(type="function", function=NamedFunction(name=chosen.name))  # type: ignore[assignment]
    tools, grammar = choose_tools([_tool(tool) for tool in request.tools or []], chosen, service)  # type: ignore[arg-type]
    form = _format(request)
    if grammar is None:
        grammar = format_grammar(form, service)
    elif form is not None and form.type != "text":
        raise APIError(400, "text.format must be text where a tool must be called", "text.format")
    plain = [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in tools]
    prompt = prompt_of(messages, plain, None, service.words)
    ids = await service.encode(prompt, "input")
    stops = TRANSCRIPT_STOPS if isinstance(prompt, str) else ()
    room = service.context - len(ids)
    top = request.top_logprobs
    if top is None and "message.output_text.logprobs" in (request.include or ()):
        top = 0
    params = params_of(request, service.settings, request.max_output_tokens, room, stops, top, grammar=grammar)
    return Asked([ids], params, tuple(tool.function.name for tool in tools))


def _tool(tool: ResponsesTool) -> Tool:
    if tool.type != "function":
        raise APIError(400, f"tools of type {tool.type!r:.40} are not to be had; allowed is 'function'", "tools")
    if tool.name is None:
        raise APIError(400, "a tool needs a name", "tools")
    try:
        function = Function(name=tool.name, description=tool.description, parameters=tool.parameters)
    except ValueError:
        raise APIError(
            400, f"a tool's name must be 1 to 64 letters, digits, _ . -, not {tool.name!r:.70}", "tools"
        ) from None
    return Tool(type="function", function=function)


def _format(request: ResponsesRequest) -> ResponseFormat | None:
    given = None if request.text is None else request.text.format
    if given is None:
        return None
    schema = None if given.schema_ is None else JsonSchema(schema=given.schema_)
    return ResponseFormat(type=given.type, json_schema=schema)


def _messages(given: str | Sequence[Item]) -> list[Message]:
    if isinstance(given, str):
        return [Message(role="user", content=given)]
    found: list[Message] = []
    for place, item in enumerate(given):
        values, param = item.model_dump(), f"input.{place}"
        match item.type or "message":
            case "message":
                if values.get("role") not in ROLES:
                    raise APIError(400, f"{param}.role must be one of {', '.join(ROLES)}", param)
                found.append(Message(role=values["role"], content=_text(values.get("content"), param)))
            case "function_call":
                name, arguments = values.get("name"), values.get("arguments")
                if not isinstance(name, str) or not isinstance(arguments, str):
                    raise APIError(400, f"{param} must have a name and arguments, both texts", param)
                call = ToolCall(id=_id(values), function=FunctionCall(name=name, arguments=arguments))
                if found and found[-1].role == "assistant":
                    last = found[-1]
                    found[-1] = last.model_copy(update={"tool_calls": [*(last.tool_calls or []), call]})
                else:
                    found.append(Message(role="assistant", tool_calls=[call]))
            case "function_call_output":
                found.append(Message(role="tool", content=_text(values.get("output"), param), tool_call_id=_id(values)))
            case "reasoning":
                continue  # of another model: there is none here
            case other:
                raise APIError(400, f"{param} is of type {other!r:.40}, which cannot be had here", param)
    return found


def _id(values: dict[str, Any]) -> str | None:
    found = values.get("call_id")
    return found if isinstance(found, str) else None


def _text(content: Any, param: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    try:
        return text_of([Part.model_validate(part) for part in content], param)
    except (TypeError, ValueError):
        raise APIError(400, f"{param} must hold a text or a list of parts", param) from None


class Response:
    """To one request."""

    def __init__(self, service: Service, run: Run, asked: Asked, request: ResponsesRequest, name: str) -> None:
        parser = CallParser(service.tool_format, asked.functions) if asked.functions else None
        self._run, self._name, self._number = run, name, 0
        self._logprobs = asked.params.logprobs is not None
        self._output = Output(0, run.tickets[0], service, parser, self._logprobs)
        self._items: list[dict[str, Any]] = []
        self._open = False  # the last item goes on
        form: dict[str, Any] = {"type": "text"}
        if request.text is not None and request.text.format is not None:
            form = request.text.format.model_dump(by_alias=True, exclude_none=True)
        choice: Any = request.tool_choice or "auto"
        self._head = {
            "id": f"resp_{name}",
            "object": "response",
            "created_at": int(time.time()),
            "model": service.settings.model_name,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": asked.params.temperature,
            "text": {"format": form},
            "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
            "tools": [
                {"parameters": None, "strict": False, **t.model_dump(exclude_none=True)} for t in request.tools or []
            ],
            "top_logprobs": asked.params.logprobs or 0,
            "top_p": asked.params.top_p,
            "truncation": "disabled",
            "background": False,
            "user": request.user,
        }

    @property
    def outputs(self) -> list[Output]:
        return [self._output]

    async def whole(self) -> dict[str, Any]:
        """The body."""
        async for _, delta in merged([self._output]):
            self._take(delta)
        self._close_item()
        return self._body()

    async def events(self) -> AsyncGenerator[bytes]:
        """Of the stream."""
        yield self._event("response.created", response=self._body())
        yield self._event("response.in_progress", response=self._body())
        async for _, delta in merged([self._output]):
            for kind, values in self._take(delta):
                yield self._event(kind, **values)
        for kind, values in self._close_item():
            yield self._event(kind, **values)
        body = self._body()
        yield self._event(f"response.{body['status']}", response=body)

    def _event(self, kind: str, **values: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return event({"type": kind, "sequence_number": number, **values}, kind)

    def _body(self) -> dict[str, Any]:
        finish = self._output.finish
        status = "in_progress" if finish is None else "incomplete" if finish == "length" else "completed"
        details = {"reason": "max_output_tokens"} if status == "incomplete" else None
        usage = None
        if finish is not None:
            found = usage_of(self._run, [self._output])
            usage = {
                "input_tokens": found["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": found["prompt_tokens_details"]["cached_tokens"]},
                "output_tokens": found["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": found["total_tokens"],
            }
        rest = {"status": status, "error": None, "incomplete_details": details, "usage": usage}
        return {**self._head, **rest, "output": json.loads(json.dumps(self._items))}

    # --- items ---

    def _take(self, delta: Delta) -> list[tuple[str, dict[str, Any]]]:
        """What has come, as events."""
        found: list[tuple[str, dict[str, Any]]] = []
        logprobs = delta.logprobs
        for one in delta.events:
            if isinstance(one, Content):
                found += self._content(one.text, logprobs)
                logprobs = []
            elif isinstance(one, Begin):
                found += self._close_item()
                item = {"id": f"fc_{self._name}_{len(self._items)}", "type": "function_call", "status": "in_progress"}
                found += self._add({**item, "call_id": one.id, "name": one.name, "arguments": ""})
            else:
                found.append(self._arguments(one))
        if self._output.finish is not None and not self._items:
            found += self._content("", logprobs)
        return found

    def _content(self, text: str, logprobs: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
        found: list[tuple[str, dict[str, Any]]] = []
        if not self._open or self._items[-1]["type"] != "message":
            found += self._close_item()
            item = {"id": f"msg_{self._name}_{len(self._items)}", "type": "message", "status": "in_progress"}
            found += self._add({**item, "role": "assistant", "content": []})
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            self._items[-1]["content"].append(part)
            found.append(("response.content_part.added", {**self._place(), "part": json.loads(json.dumps(part))}))
        part = self._items[-1]["content"][0]
        part["text"] += text
        part["logprobs"] += logprobs
        if text:
            values = {**self._place(), "delta": text, "logprobs": logprobs}
            found.append(("response.output_text.delta", values))
        return found

    def _arguments(self, one: Arguments) -> tuple[str, dict[str, Any]]:
        item = self._items[-1]
        item["arguments"] += one.text
        values = {"item_id": item["id"], "output_index": len(self._items) - 1, "delta": one.text}
        return "response.function_call_arguments.delta", values

    def _add(self, item: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        self._items.append(item)
        self._open = True
        shown = json.loads(json.dumps(item))
        return [("response.output_item.added", {"output_index": len(self._items) - 1, "item": shown})]

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1, "content_index": 0}

    def _close_item(self) -> list[tuple[str, dict[str, Any]]]:
        if not self._open:
            return []
        self._open = False
        item, index = self._items[-1], len(self._items) - 1
        item["status"] = "incomplete" if self._output.finish == "length" else "completed"
        found: list[tuple[str, dict[str, Any]]] = []
        if item["type"] == "message":
            part = item["content"][0]
            text = {"text": part["text"], "logprobs": part["logprobs"]}
            found.append(("response.output_text.done", {**self._place(), **text}))
            found.append(("response.content_part.done", {**self._place(), "part": json.loads(json.dumps(part))}))
        else:
            done = {"item_id": item["id"], "output_index": index, "name": item["name"], "arguments": item["arguments"]}
            found.append(("response.function_call_arguments.done", done))
        return [*found, ("response.output_item.done", {"output_index": index, "item": json.loads(json.dumps(item))})]
