"""From what a user gives as a prompt (text, token ids, messages) to checked token ids. It knows nothing of models.

A file of prompts is text that is one prompt, or a JSON object a line with the prompt in one of ``FIELDS``: a text,
token ids, messages for the chat template, or the user's turns (as in Spec-Bench) of which the first counts.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, cast

from ouroboros.errors import InputError
from ouroboros.files import parse_json
from ouroboros.text import Tokenizer

__all__ = [
    "Chat",
    "Message",
    "Prompt",
    "check_ids",
    "encode",
    "is_batch",
    "prompt_rows",
    "read_prompts",
    "read_text",
    "short",
]

FIELDS = ("prompt", "messages", "question", "text", "turns", "instruction")  # the first of these that a line has

Message = Mapping[str, Any]  # {"role": "user", "content": "..."}, as chat templates take it
RESERVED = (  # of a template's arguments: those that have a field of their own, or are not the template's
    *("messages", "conversation", "tools", "add_generation_prompt", "continue_final_message", "chat_template"),
    *("tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs"),
    *("return_assistant_tokens_mask", "sanitize_control_tokens"),
)


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation as a prompt, and what its chat template is told. A list of messages alone is one of the defaults.

    Attributes:
        messages: mappings with ``role`` and ``content``, which is a text or a list of parts ``{"type": "text", "text":
            …}``, joined by line breaks; whatever else the template looks at.
        tools: what the model may call, mostly JSON schemas, as the template takes them.
        chat_template_kwargs: further arguments of the template by name, such as ``{"enable_thinking": False}``.
        add_generation_prompt: the template opens the assistant's answer.
        continue_final_message: the last message, the assistant's, is not ended: the output goes on with it.
        control_tokens: what reads like a control token in messages (``<|im_end|>``) becomes that token. Without it
            stays text: whoever can write a message cannot write as somebody else.

    Raises:
        InputError: an argument that is not as it should be.
    """

    messages: Sequence[Message]
    tools: Sequence[Any] = ()
    chat_template_kwargs: Mapping[str, Any] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    control_tokens: bool = False

    def __post_init__(self) -> None:
        if not _is_chat(self.messages):
            raise InputError(f"messages must be a list of at least one mapping, not {short(self.messages)}")
        if isinstance(self.tools, str | Mapping) or not isinstance(self.tools, Sequence):
            raise InputError(f"tools must be a list, not {short(self.tools)}")
        if not isinstance(self.chat_template_kwargs, Mapping | None):
            raise InputError(f"chat_template_kwargs must be a mapping, not {short(self.chat_template_kwargs)}")
        for name in self.chat_template_kwargs or ():
            if not isinstance(name, str) or name in RESERVED:
                raise InputError(f"chat_template_kwargs cannot hold {name!r}, which is no argument of a template's own")
        for name in ("add_generation_prompt", "continue_final_message", "control_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} must be True or False, not {short(getattr(self, name))}")
        if self.continue_final_message and self.messages[-1].get("role") != "assistant":
            role = self.messages[-1].get("role")
            raise InputError(f"continue_final_message needs a last message of the assistant's, not of {role!r:.40}")


Plain = str | Sequence[int] | Sequence[Message]  # what a file can hold
Prompt = Plain | Chat


def encode(prompt: Prompt, tokenizer: Tokenizer | None, vocab_size: int, limit: int, name: str = "prompt") -> list[int]:
    """Token ids: of a text with the tokenizer's special tokens, of messages by its chat template, or the ids given.

    Args:
        limit: how many tokens there may be at most. name: what an error calls the prompt.

    Raises:
        InputError: an empty or too long prompt, ids out of range, or a text or messages without a tokenizer for them.
    """
    if isinstance(prompt, str) and not prompt:
        raise InputError(f"{name} is empty ''; it must have at least one character")
    if _is_chat(prompt):
        prompt = Chat(prompt)
    if isinstance(prompt, str | Chat) and tokenizer is None:
        kind = f"a text {name} needs" if isinstance(prompt, str) else "messages need"
        raise InputError(f"{kind} a tokenizer, and this model has none: give token ids")
    if isinstance(prompt, str):
        assert tokenizer is not None
        _check_length(prompt, tokenizer, limit, name)
        prompt = tokenizer.encode(prompt)
    elif isinstance(prompt, Chat):
        assert tokenizer is not None
        prompt = tokenizer.apply_chat_template(
            [_with_text(number, message) for number, message in enumerate(prompt.messages)],
            prompt.tools,
            prompt.chat_template_kwargs,
            prompt.add_generation_prompt,
            prompt.continue_final_message,
            prompt.control_tokens,
        )
    values = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    try:
        ids = [_index(value) for value in cast(Sequence[Any], values)]
    except TypeError:
        raise InputError(f"{name} must be a text, a list of token ids or of messages, not {short(prompt)}") from None
    check_ids(ids, vocab_size, name)
    if not ids:
        raise InputError(f"{name} is empty []; it must have at least one token")
    if len(ids) > limit:
        raise InputError(f"{name} has {len(ids)} tokens; the target model's context allows at most {limit}")
    return ids


def _check_length(text: str, tokenizer: Tokenizer, limit: int, name: str) -> None:
    """Refuses a text of millions of characters by its beginning: tokens of a whole one take seconds and gigabytes.

    Raises:
        InputError: the beginning alone has more tokens than ``limit``, with some to spare for where it was cut.
    """
    most = 16 * (limit + 64)  # characters; tokens have four on average, and what has more is encoded as a whole
    if len(text) > most:
        tokens = len(tokenizer.encode(text[:most]))
        if tokens > limit + 64:
            told = f"more than {tokens - 64} tokens in {len(text)} characters"
            raise InputError(f"{name} has {told}; the target model's context allows at most {limit}")


def is_batch(prompt: Prompt | Sequence[Prompt]) -> TypeGuard[Sequence[Prompt]]:
    """Whether this is a list of prompts and no prompt itself."""
    if isinstance(prompt, str) or not isinstance(prompt, Sequence):
        return False
    return bool(prompt) and not is_id(prompt[0]) and not isinstance(prompt[0], Mapping)


def is_id(value: object) -> bool:
    """Whether this is one whole number; a tensor or an array of one element is a list of numbers, as it says itself."""
    return hasattr(value, "__index__") and not getattr(value, "ndim", 0) and not isinstance(value, bool)


def _index(value: Any) -> int:
    if not is_id(value):
        raise TypeError
    return operator.index(value)


def _with_text(number: int, message: Message) -> Message:
    """The message with a list of text parts as one text, which every template takes."""
    parts = message.get("content")
    if not isinstance(parts, list | tuple):
        if not isinstance(parts, str | None):
            raise InputError(f"the content of message {number} must be a text or a list of parts, not {short(parts)}")
        return message
    texts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("text") if isinstance(part, Mapping) else part
        if kind not in ("text", None) or not isinstance(text, str):
            shown = repr(kind) if isinstance(kind, str) else short(part)
            raise InputError(f"message {number} has a part {shown:.60}; allowed are parts of type 'text' with a text")
        texts.append(text)
    return {**message, "content": "\n".join(texts)}


def _is_chat(prompt: object) -> TypeGuard[Sequence[Message]]:
    return (
        isinstance(prompt, Sequence)
        and not isinstance(prompt, str)
        and bool(prompt)
        and all(isinstance(entry, Mapping) for entry in prompt)
    )


def check_ids(ids: Sequence[int], vocab_size: int, name: str) -> None:
    """
    Raises:
        InputError: an id that the vocabulary does not have.
    """
    wrong = next((i for i in ids if not 0 <= i < vocab_size), None)
    if wrong is not None:
        raise InputError(f"{name} holds the token id {wrong}; allowed are 0 to {vocab_size - 1}")


def read_prompts(name: str) -> list[Plain]:
    """The prompts of a file (see the header).

    Raises:
        InputError: an unreadable or empty file, or a line that is not as it should be.
    """
    return [prompt for prompt, _ in prompt_rows(name)]


def prompt_rows(name: str) -> list[tuple[Plain, Mapping[str, Any]]]:
    """The prompts of a file, each with all of its line: an empty object where the whole file is one prompt.

    Raises:
        InputError: an unreadable or empty file, or a line that is not as it should be.
    """
    text = read_text(name, "prompt file")
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise InputError(f"prompt file {name!r} is empty; it must hold at least one prompt")
    if _object(lines[0][1]) is None:
        return [(text, {})]
    found: list[tuple[Plain, Mapping[str, Any]]] = []
    for number, line in lines:
        row = _object(line)
        prompt = None if row is None else _prompt_of(row)
        if row is None or prompt is None:
            wanted = f"a JSON object with a prompt as one of {', '.join(FIELDS)}"
            raise InputError(f"line {number} of prompt file {name!r} must be {wanted}, not {line[:60]!r}")
        found.append((prompt, row))
    return found


def _object(line: str) -> Mapping[str, Any] | None:
    try:
        row = parse_json(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _prompt_of(row: Mapping[str, Any]) -> Plain | None:
    name = next((name for name in FIELDS if name in row), None)
    value = row[name] if name else None
    if name == "turns" and isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, str):
        return value or None
    if isinstance(value, list) and value:
        if all(type(token) is int for token in value):
            return value
        if all(isinstance(message, dict) for message in value):
            return value
    return None


def read_text(name: str, kind: str) -> str:
    """A UTF-8 file's text with no byte changed; ``kind``: what an error calls the file.

    Raises:
        InputError: unreadable, or not UTF-8.
    """
    try:
        data = Path(name).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {kind} {name!r}: {error.strerror}") from None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{kind} {name!r} must be UTF-8 text; byte {error.start} ({data[error.start]:#04x}) is not"
        ) from None


def short(value: object) -> str:
    """A value as an error shows it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
