"""From files to token ids: prompts for the target's own generations, and plain text. It knows nothing of models."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

from ouroboros.errors import InputError
from ouroboros.prompts import encode, read_prompts, read_text
from ouroboros.text import Tokenizer

__all__ = ["Material", "gather"]


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


def _encode_text(name: str, tokenizer: Tokenizer | None, vocab_size: int) -> list[int]:
    ids = encode(read_text(name, "text file"), tokenizer, vocab_size, 2**31, f"text file {name!r}")
    end = None if tokenizer is None else tokenizer.eos_token_id
    return ids if end is None else [*ids, end]
