"""What the server answers, as ``/openapi.json`` tells it. Answers are made elsewhere; tests hold them against these
types.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

__all__ = ["Chat", "Completion", "Health", "Model", "Models", "Responded", "Text", "Tokens"]


class Answered(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Health(Answered):
    status: Literal["ok"]


class Model(Answered):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    method: str
    draft: bool


class Models(Answered):
    object: Literal["list"]
    data: list[Model]


class Tokens(Answered):
    tokens: list[int]
    count: int
    max_model_len: int


class Text(Answered):
    prompt: str


class PromptDetails(Answered):
    cached_tokens: int
    audio_tokens: Literal[0]


class CompletionDetails(Answered):
    reasoning_tokens: Literal[0]
    audio_tokens: Literal[0]
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(Answered):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class Likely(Answered):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Likely):
    top_logprobs: list[Likely]


class ChatLogprobs(Answered):
    content: list[TokenLogprob]
    refusal: None


class Source(Answered):
    text: str
    source: Literal["draft", "phrase", "bonus"]
    step: int | None
    refused: list[str] = []


class Called(Answered):
    name: str
    arguments: str


class Call(Answered):
    id: str
    type: Literal["function"]
    function: Called


class AnswerMessage(Answered):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[Call] = []


class Choice(Answered):
    index: int
    finish_reason: Literal["stop", "length", "tool_calls"]
    sources: list[Source] = []


class ChatChoice(Choice):
    message: AnswerMessage
    logprobs: ChatLogprobs | None


class Columns(Answered):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(Choice):
    text: str
    logprobs: Columns | None


class Body(Answered):
    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage


class Chat(Body):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class Completion(Body):
    object: Literal["text_completion"]
    choices: list[TextChoice]


class CachedDetails(Answered):
    cached_tokens: int


class ReasoningDetails(Answered):
    reasoning_tokens: Literal[0]


class ResponseUsage(Answered):
    input_tokens: int
    input_tokens_details: CachedDetails
    output_tokens: int
    output_tokens_details: ReasoningDetails
    total_tokens: int


class OutputText(Answered):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[TokenLogprob]


class OutputMessage(Answered):
    id: str
    type: Literal["message"]
    status: Literal["completed", "incomplete"]
    role: Literal["assistant"]
    content: list[OutputText]


class OutputCall(Answered):
    id: str
    type: Literal["function_call"]
    status: Literal["completed", "incomplete"]
    call_id: str
    name: str
    arguments: str


class Incomplete(Answered):
    reason: Literal["max_output_tokens"]


class Responded(BaseModel):
    """What a request said comes back beside these."""

    id: str
    object: Literal["response"]
    created_at: int
    model: str
    status: Literal["completed", "incomplete"]
    error: None
    incomplete_details: Incomplete | None
    output: list[OutputMessage | OutputCall]
    usage: ResponseUsage
