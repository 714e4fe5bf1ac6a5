"""Chats and completions: from what a client sends to prompts in tokens, and how they are to be decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ouroboros.config import SamplingParams
from ouroboros.server.asking import params_of, stops_of
from ouroboros.server.errors import APIError
from ouroboros.server.grammars import choose_tools, format_grammar, plain
from ouroboros.server.messages import TRANSCRIPT_STOPS, predicted_text, prompt_of
from ouroboros.server.schema import ChatRequest, CompletionRequest
from ouroboros.server.service import Service

__all__ = ["Asked", "ask_chat", "ask_completion"]

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
    prompt = prompt_of(request.messages, [plain(tool) for tool in tools], request.chat_template_kwargs, service.words)
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
