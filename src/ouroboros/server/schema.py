"""What clients may send: OpenAI's requests as pydantic types, with the fields that are this server's own.

A field that is not here is refused. One of OpenAI's that means nothing here is taken and named in the response's header
``x-ouroboros-ignored``; what is asked for and cannot be done is refused where it is looked at.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from ouroboros.config import METHODS

__all__ = [
    "ChatRequest",
    "CompletionRequest",
    "DetokenizeRequest",
    "ErrorBody",
    "Message",
    "Sampling",
    "TokenizeRequest",
    "Tool",
    "ToolCall",
]

INT = 2**63


def _false(value: bool) -> bool:
    if value:
        raise ValueError("must be a name or false")
    return value


No = Annotated[bool, AfterValidator(_false), Field(json_schema_extra={"const": False})]  # Literal[False] takes 0 too
MemoryName = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Bias = Annotated[float, Field(ge=-100, le=100)]
TOKEN_NAME: dict[str, Any] = {"pattern": "^[0-9]{1,9}$"}
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Loose(BaseModel):
    """What clients send back of an answer, or templates look at, may hold more than is known here."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class Part(Loose):
    type: str
    text: str | None = None


class FunctionCall(Loose):
    name: str
    arguments: str = "{}"


class ToolCall(Loose):
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Loose):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class Described(BaseModel):
    """What every API says of a function beside its name."""

    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Function(Described, Strict):
    name: Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_.-]+$")]


class Tool(Strict):
    type: Literal["function"]
    function: Function


class NamedFunction(Strict):
    name: str


class NamedTool(Strict):
    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Strict):
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Prediction(Strict):
    type: Literal["content"]
    content: str | list[Part]


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Sampling(Strict):
    """What all three ways to ask share. ``IGNORED``: of OpenAI's fields, those that mean nothing here."""

    IGNORED: ClassVar[tuple[str, ...]] = (
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        "prompt_cache_retention",
    )

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    # This server's own.
    seed: Annotated[int, Field(ge=-INT, lt=INT)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=1e-6, le=100)] | None = None
    ignore_eos: bool | None = None
    method: Annotated[str, Field(json_schema_extra={"enum": [*METHODS]})] | None = None
    draft: bool | None = None
    memory: MemoryName | No | None = None
    return_sources: bool | None = None

    @property
    def ignored(self) -> list[str]:
        """Names of fields that were sent and mean nothing here."""
        return [name for name in self.IGNORED if getattr(self, name) is not None]


class Completing(Sampling):
    """What chats and completions share."""

    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    n: Annotated[int, Field(ge=1, le=1024)] | None = None
    stop: str | list[str] | None = None
    logit_bias: Annotated[dict[str, Bias], Field(json_schema_extra={"propertyNames": TOKEN_NAME})] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    prediction: Prediction | None = None
    response_format: ResponseFormat | None = None


class ChatRequest(Completing):
    IGNORED: ClassVar[tuple[str, ...]] = (*Sampling.IGNORED, "reasoning_effort", "verbosity")

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text"]] | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionRequest(Completing):
    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    echo: bool | None = None
    suffix: str | None = None


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """What every refusal says."""

    error: ErrorDetail


class TokenizeRequest(Strict):
    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_special_tokens: bool = True


class DetokenizeRequest(Strict):
    model: str | None = None
    tokens: list[TokenId]
