"""A phrase pool on disk: one safetensors file of integer arrays, bound to a vocabulary, written atomically.

Arrays, one row a phrase, oldest key first: ``keys`` int32 [P, 3] and ``tokens`` int32 [P, longest phrase], padded with
-1, and ``counts`` int64 [P, 4]: origin, seen, offered, accepted. What else is remembered, each padded with -1, may be
missing: ``outputs`` int32 [O]: earlier outputs, -1 behind each (SuffixDecoding); ``successors`` int32 [S, 1 + most]: a
token and its successors (Token Recycling); ``predictions`` int32 [R, 2 + most]: the token before (-1: any), a token,
what the target predicted behind them, and ``logs`` float16 [R, most]: their log-probabilities. The metadata holds
format, version, fingerprint and the pool's bounds. Nothing in the file is ever executed.
"""

from __future__ import annotations

import json
import os
import tempfile
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ouroboros.errors import PoolFileError
from ouroboros.phrases.memory import Memory
from ouroboros.phrases.pool import KEYS, MAX_KEY, Phrase, PhrasePool
from ouroboros.tree import Origin

__all__ = ["load_pool", "save_pool"]

FORMAT, VERSION = "ouroboros-phrase-pool", "1"
_ORIGINS = (Origin.VERIFIED, Origin.CORRECTED, Origin.PROMPT, Origin.WINDOW)


def save_pool(memory: Memory, path: str | os.PathLike[str], fingerprint: str) -> None:
    """Writes the pool and what else is remembered; the file holds the old contents or the new ones, never a part.

    Args:
        fingerprint: what identifies the vocabulary that the tokens belong to.

    Raises:
        PoolFileError: the file cannot be written.
    """
    pool = memory.phrases
    entries = list(pool.items())
    keys = np.full((len(entries), MAX_KEY), -1, dtype=np.int32)
    tokens = np.full((len(entries), max((len(p.tokens) for _, p in entries), default=1)), -1, dtype=np.int32)
    counts = np.empty((len(entries), 4), dtype=np.int64)
    for row, (key, phrase) in enumerate(entries):
        keys[row, : len(key)] = key
        tokens[row, : len(phrase.tokens)] = phrase.tokens
        counts[row] = (_ORIGINS.index(phrase.origin), phrase.seen, phrase.offered, phrase.accepted)
    bounds = {"max_keys": pool.max_keys, "phrases_per_key": pool.phrases_per_key, "max_tokens": pool.max_tokens}
    metadata = {"format": FORMAT, "version": VERSION, "fingerprint": fingerprint, "bounds": json.dumps(bounds)}
    arrays: dict[str, np.ndarray[Any, Any]] = {"keys": keys, "tokens": tokens, "counts": counts}
    arrays |= {
        "outputs": np.array(memory.outputs.tokens, dtype=np.int32),
        "successors": _table(list(memory.successors.items())),
    }
    rows = list(memory.predictions.items())
    arrays["predictions"] = _table([(-1 if before is None else before, (last, *row.ids)) for before, last, row in rows])
    arrays["logs"] = np.full((len(rows), max(arrays["predictions"].shape[1] - 2, 0)), -np.inf, dtype=np.float16)
    for place, (_, _, prediction) in enumerate(rows):
        arrays["logs"][place, : len(prediction.logs)] = prediction.logs
    data = save(arrays, metadata=metadata)
    target = Path(path)
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=target.name, delete=False) as file:
            file.write(data)
        try:
            os.chmod(file.name, 0o644)
            os.replace(file.name, target)
        except OSError:
            os.unlink(file.name)
            raise
    except OSError as error:
        raise PoolFileError(f"cannot write the phrase pool {str(path)!r}: {error.strerror or error}") from error


def load_pool(path: str | os.PathLike[str], fingerprint: str) -> Memory:
    """Reads a pool that ``save_pool`` wrote for the same vocabulary.

    Raises:
        PoolFileError: unreadable, no pool, damaged, of another version or of another vocabulary.
    """
    try:
        with open(path, "rb"):
            pass  # safetensors does not say why it cannot open a file
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise PoolFileError(f"{str(path)!r} is no phrase pool")
            if metadata.get("version") != VERSION:
                version = metadata.get("version")
                raise PoolFileError(f"{str(path)!r} is a phrase pool of version {version!r}; this reads {VERSION!r}")
            if metadata.get("fingerprint") != fingerprint:
                raise PoolFileError(f"{str(path)!r} is a phrase pool of another vocabulary than the target model's")
            arrays = [file.get_tensor(name) for name in ("keys", "tokens", "counts")]
            here = set(file.keys())
            names = ("outputs", "successors", "predictions", "logs")
            more = {name: file.get_tensor(name).tolist() for name in names if name in here}
        pool = PhrasePool(**json.loads(metadata["bounds"]))
        for key, tokens, (origin, seen, offered, accepted) in zip(*(a.tolist() for a in arrays), strict=True):
            key = tuple(token for token in key if token >= 0)
            known = tuple(token for token in tokens if token >= 0)
            if not key or not known or min(seen, offered + 1, accepted + 1) < 1:
                raise ValueError("an empty entry")
            if len(key) in KEYS:  # else the file is of a version that had other keys, and knows it under these too
                phrase = Phrase(known, _ORIGINS[origin], len(key))
                phrase.note(phrase.origin, seen, offered, accepted)
                pool.restore(key, phrase)
        memory = Memory(pool)
        memory.outputs.restore(more.get("outputs", ()))
        for token, *behind in more.get("successors", ()):
            memory.successors[token] = tuple(one for one in behind if one >= 0)
        for (before, last, *ids), logs in zip(more.get("predictions", ()), more.get("logs", ()), strict=True):
            row = array("i", (one for one in ids if one >= 0))
            memory.predictions.restore(None if before < 0 else before, last, row, array("f", logs[: len(row)]))
        return memory
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or "it is no phrase pool, or damaged"
        raise PoolFileError(f"cannot read the phrase pool {str(path)!r}: {reason}") from error
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise PoolFileError(f"the phrase pool {str(path)!r} is damaged ({error})") from error


def _table(rows: Sequence[tuple[int, Sequence[int]]]) -> np.ndarray[Any, np.dtype[np.int32]]:
    """A row for each: the number and those behind it, padded with -1."""
    table = np.full((len(rows), 1 + max((len(behind) for _, behind in rows), default=0)), -1, dtype=np.int32)
    for row, (first, behind) in enumerate(rows):
        table[row, : 1 + len(behind)] = first, *behind
    return table
