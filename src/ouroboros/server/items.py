"""The Responses API: from a conversation as items to a prompt in tokens. Stateless: clients send the history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ouroboros.server.asked import Asked
from ouroboros.server.asking import params_of
from ouroboros.server.errors import APIError
from ouroboros.server.grammars import choose_tools, format_grammar, plain
from ouroboros.server.messages import TRANSCRIPT_STOPS, prompt_of, text_of
from ouroboros.server.schema import (
    Function,
    FunctionCall,
    JsonSchema,
    Message,
    NamedFunction,
    NamedTool,
    Part,
    ResponseFormat,
    Tool,
    ToolCall,
)
from ouroboros.server.schema_responses import Item, ResponsesNamed, ResponsesRequest, ResponsesTool
from ouroboros.server.service import Service

__all__ = ["ask_response"]

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
    chosen: str | NamedTool | None
    if isinstance(request.tool_choice, ResponsesNamed):
        chosen = NamedTool(type="function", function=NamedFunction(name=request.tool_choice.name))
    else:
        chosen = request.tool_choice
    tools, grammar = choose_tools([_tool(tool) for tool in request.tools or []], chosen, service)
    form = _format(request)
    if grammar is None:
        grammar = format_grammar(form, service)
    elif form is not None and form.type != "text":
        raise APIError(400, "text.format must be text where a tool must be called", "text.format")
    prompt = prompt_of(messages, [plain(tool) for tool in tools], None, service.words)
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
