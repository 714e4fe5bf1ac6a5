"""From files to token ids: prompts for the target's own generations, and plain text. It knows nothing of models.

A file of prompts is text that is one prompt, or a JSON object a line with the prompt in one of ``FIELDS``: a text,
token ids, messages for the chat template, or the user's turns (Spec-Bench) of which the first counts.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ouroboros.errors import InputError
from ouroboros.prompts import Prompt, encode, read_text
from ouroboros.text import Tokenizer

__all__ = ["Material", "gather", "read_prompts"]

FIELDS = ("prompt", "messages", "question", "text", "turns", "instruction")


@dataclass(frozen=True, slots=True)
class Material:
    """``train``, ``selection``, ``held_out``: prompts, none of them in two of these; ``texts``: plain texts; all as
    token ids. ``digest``: of all of it, to tell whether files have changed."""

    train: tuple[tuple[int, ...], ...]
    selection: tuple[tuple[int, ...], ...]
    held_out: tuple[tuple[int, ...], ...]
    texts: tuple[tuple[int, ...], ...]
    digest: str


def gather(
    prompts: Sequence[str],
    texts: Sequence[str],
    tokenizer: Tokenizer | None,
    vocab_size: int,
    limit: int,
    held_out: int,
    selection: int,
    seed: int,
) -> Material:
    """Reads, encodes and shuffles; the same prompt twice counts once.

    Args:
        prompts, texts: files. limit: the most tokens of a prompt; longer ones are left out. held_out, selection: how
            many prompts are set aside, to measure with and to choose by.

    Raises:
        InputError: an unreadable file, or too few prompts.
    """
    found: dict[tuple[int, ...], None] = {}
    longest = 0
    for name in prompts:
        for prompt in read_prompts(name):
            ids = tuple(encode(prompt, tokenizer, vocab_size, 2**31, f"a prompt of {name!r}"))
            longest = max(longest, len(ids))
            if len(ids) <= limit:
                found[ids] = None
    order = sorted(found)
    random.Random(seed).shuffle(order)
    least = held_out + selection + 1
    if len(order) < least:
        short = f" of up to {limit} tokens (the longest has {longest})" if longest > limit else ""
        raise InputError(f"prompts must be at least {least} different ones{short}: {held_out} to measure with, "
                         f"{selection} to choose by and the rest to train on; found {len(order)}")  # fmt: skip
    plain = [tuple(_encode_text(name, tokenizer, vocab_size)) for name in texts]
    digest = hashlib.sha256(json.dumps([order, plain]).encode()).hexdigest()
    first, second = held_out, held_out + selection
    return Material(tuple(order[second:]), tuple(order[first:second]), tuple(order[:first]), tuple(plain), digest)


def read_prompts(name: str) -> list[Prompt]:
    """The prompts of a file (see the header).

    Raises:
        InputError: an unreadable or empty file, or a line that is not as it should be.
    """
    text = read_text(name, "prompt file")
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise InputError(f"prompt file {name!r} is empty; it must hold at least one prompt")
    if _object(lines[0][1]) is None:
        return [text]
    found: list[Prompt] = []
    for number, line in lines:
        row = _object(line)
        prompt = None if row is None else _prompt_of(row)
        if prompt is None:
            wanted = f"a JSON object with a prompt as one of {', '.join(FIELDS)}"
            raise InputError(f"line {number} of prompt file {name!r} must be {wanted}, not {line[:60]!r}")
        found.append(prompt)
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


def _encode_text(name: str, tokenizer: Tokenizer | None, vocab_size: int) -> list[int]:
    ids = encode(read_text(name, "text file"), tokenizer, vocab_size, 2**31, f"text file {name!r}")
    end = None if tokenizer is None else tokenizer.eos_token_id
    return ids if end is None else [*ids, end]
