"""From what a user gives as a prompt (text, token ids, messages) to checked token ids. It knows nothing of models."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, cast

from ouroboros.errors import InputError
from ouroboros.text import Tokenizer

__all__ = ["Message", "Prompt", "check_ids", "encode", "is_batch", "read_text", "short"]

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


def read_text(name: str, kind: str) -> str:
    """A UTF-8 file's text; ``kind``: what an error calls the file.

    Raises:
        InputError: unreadable, or not UTF-8.
    """
    try:
        return Path(name).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {kind} {name!r}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{kind} {name!r} must be UTF-8 text") from None


def short(value: object) -> str:
    """A value as an error shows it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
