"""From what a user gives as a prompt (text, token ids, messages) to checked token ids. It knows nothing of models.

A file of prompts is text that is one prompt, or a JSON object a line with the prompt in one of ``FIELDS``: a text,
token ids, messages for the chat template, or the user's turns (as in Spec-Bench) of which the first counts.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, cast

from ouroboros.errors import InputError
from ouroboros.text import Tokenizer

__all__ = ["Message", "Prompt", "check_ids", "encode", "is_batch", "prompt_rows", "read_prompts", "read_text", "short"]

FIELDS = ("prompt", "messages", "question", "text", "turns", "instruction")  # the first of these that a line has

Message = Mapping[str, Any]  # {"role": "user", "content": "..."}, as chat templates take it
Prompt = str | Sequence[int] | Sequence[Message]


def encode(prompt: Prompt, tokenizer: Tokenizer | None, vocab_size: int, limit: int, name: str = "prompt") -> list[int]:
    """Token ids: of a text with the tokenizer's special tokens, of messages by its chat template, or the ids given.

    Args:
        limit: how many tokens there may be at most. name: what an error calls the prompt.

    Raises:
        InputError: an empty or too long prompt, ids out of range, or a text or messages without a tokenizer for them.
    """
    if isinstance(prompt, str) and not prompt:
        raise InputError(f"{name} is empty ''; it must have at least one character")
    if (isinstance(prompt, str) or _is_chat(prompt)) and tokenizer is None:
        kind = f"a text {name} needs" if isinstance(prompt, str) else "messages need"
        raise InputError(f"{kind} a tokenizer, and this model has none: give token ids")
    if isinstance(prompt, str):
        assert tokenizer is not None
        prompt = tokenizer.encode(prompt)
    elif _is_chat(prompt):
        assert tokenizer is not None
        prompt = tokenizer.apply_chat_template(prompt)
    values = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    try:
        ids = [operator.index(value) for value in cast(Sequence[Any], values)]
    except TypeError:
        raise InputError(f"{name} must be a text, a list of token ids or of messages, not {short(prompt)}") from None
    check_ids(ids, vocab_size, name)
    if not ids:
        raise InputError(f"{name} is empty []; it must have at least one token")
    if len(ids) > limit:
        raise InputError(f"{name} has {len(ids)} tokens; the target model's context allows at most {limit}")
    return ids


def is_batch(prompt: Prompt | Sequence[Prompt]) -> TypeGuard[Sequence[Prompt]]:
    """Whether this is a list of prompts and no prompt itself."""
    if isinstance(prompt, str) or not isinstance(prompt, Sequence):
        return False
    return bool(prompt) and not hasattr(prompt[0], "__index__") and not isinstance(prompt[0], Mapping)


def _is_chat(prompt: object) -> TypeGuard[Sequence[Message]]:
    return isinstance(prompt, Sequence) and bool(prompt) and all(isinstance(entry, Mapping) for entry in prompt)


def check_ids(ids: Sequence[int], vocab_size: int, name: str) -> None:
    """
    Raises:
        InputError: an id that the vocabulary does not have.
    """
    wrong = next((i for i in ids if not 0 <= i < vocab_size), None)
    if wrong is not None:
        raise InputError(f"{name} holds the token id {wrong}; allowed are 0 to {vocab_size - 1}")


def read_prompts(name: str) -> list[Prompt]:
    """The prompts of a file (see the header).

    Raises:
        InputError: an unreadable or empty file, or a line that is not as it should be.
    """
    return [prompt for prompt, _ in prompt_rows(name)]


def prompt_rows(name: str) -> list[tuple[Prompt, Mapping[str, Any]]]:
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
    found: list[tuple[Prompt, Mapping[str, Any]]] = []
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
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _prompt_of(row: Mapping[str, Any]) -> Prompt | None:
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
