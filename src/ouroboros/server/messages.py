"""From a conversation as clients send it to a prompt: by the model's chat template, else as a plain transcript.

The transcript is for models without a template: ``User: …`` and ``Assistant: …``, a line break between; the answer ends
where the next ``User:`` would begin.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ouroboros.prompts import Chat
from ouroboros.server.errors import APIError
from ouroboros.server.schema import Message, Part, Prediction
from ouroboros.text import Tokenizer

__all__ = ["TRANSCRIPT_STOPS", "plain_messages", "prompt_of", "text_of"]

TRANSCRIPT_STOPS = ("\nUser:",)
_NAMES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}
_KEPT = ("name", "tool_call_id", "reasoning_content")  # of a message, beside role, content and calls


def text_of(content: str | Sequence[Part] | None, param: str) -> str:
    """
    Raises:
        APIError: a part that is no text.
    """
    if content is None or isinstance(content, str):
        return content or ""
    for place, part in enumerate(content):
        if part.type not in ("text", "input_text", "output_text") or part.text is None:
            told = f"{param}.{place} is of type {part.type!r:.40}; this model takes parts of type 'text' alone"
            raise APIError(400, told, param, "unsupported_content")
    return "\n".join(part.text or "" for part in content)


def plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """As chat templates take them: contents are texts, arguments of calls are objects."""
    found = []
    for place, message in enumerate(messages):
        one: dict[str, Any] = {"role": message.role, "content": text_of(message.content, f"messages.{place}.content")}
        given = message.model_dump(exclude_none=True)
        one |= {name: given[name] for name in _KEPT if isinstance(given.get(name), str)}
        if message.role == "assistant" and message.tool_calls:
            one["tool_calls"] = [
                {
                    **({"id": call.id} if call.id else {}),
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
                }
                for call in message.tool_calls
            ]
        found.append(one)
    return found


def _arguments(text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def prompt_of(
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    arguments: Mapping[str, Any] | None,
    words: Tokenizer | None,
) -> Chat | str:
    """
    Args:
        tools: as OpenAI's API has them. arguments: of the chat template.

    Raises:
        APIError, InputError: a conversation that cannot be one.
    """
    plain = plain_messages(messages)
    if words is not None and words.has_chat_template:
        if "developer" not in str(words.hf.chat_template):
            for one in plain:
                one["role"] = "system" if one["role"] == "developer" else one["role"]
        ends = plain[-1]["role"] == "assistant" and not plain[-1].get("tool_calls")
        return Chat(plain, tools, arguments, continue_final_message=ends)
    if arguments:
        raise APIError(400, "this model has no chat template that takes arguments", "chat_template_kwargs")
    return _transcript(plain, tools)


def _transcript(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    if tools:
        functions = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
        lines.append(f"System: Functions that can be called:\n{functions}\nA call is written as\n{_CALL}")
    for message in messages:
        said = [message["content"]] if message["content"] else []
        for call in message.get("tool_calls", ()):
            said.append(f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>")
        lines.append(f"{_NAMES.get(message['role'], 'System')}: " + "\n".join(said))
    if messages[-1]["role"] != "assistant":
        lines.append("Assistant:")
    return "\n".join(lines)


_CALL = '<tool_call>\n{"name": …, "arguments": {…}}\n</tool_call>'


def predicted_text(prediction: Prediction | None) -> str | None:
    """The text that is expected, None where there is none."""
    return None if prediction is None else text_of(prediction.content, "prediction.content") or None
