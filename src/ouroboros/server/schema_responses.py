"""What clients may send to the Responses API; see schema.py."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ouroboros.server.schema import Described, JsonSchema, Loose, Sampling, Strict

__all__ = ["Item", "ResponsesNamed", "ResponsesRequest", "ResponsesTool"]


class TextFormat(JsonSchema):
    type: Literal["text", "json_object", "json_schema"]


class TextSettings(Strict):
    format: TextFormat | None = None
    verbosity: str | None = None


class ResponsesTool(Described, Loose):
    type: str
    name: str | None = None


class ResponsesNamed(Strict):
    type: Literal["function"]
    name: str


class Item(Loose):
    """Of a conversation: a message, a call, or what a call gave."""

    type: str | None = None


class ResponsesRequest(Sampling):
    IGNORED: ClassVar[tuple[str, ...]] = (
        *Sampling.IGNORED,
        *("reasoning", "include", "stream_options", "max_tool_calls"),
    )

    input: str | list[Item]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    text: TextSettings | None = None
    tools: list[ResponsesTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponsesNamed | None = None
    parallel_tool_calls: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    background: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    include: list[str] | None = None
    reasoning: dict[str, Any] | None = None
    max_tool_calls: int | None = None
