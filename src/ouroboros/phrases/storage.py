"""A phrase pool on disk: one safetensors file of integer arrays, bound to a vocabulary, written atomically.

Arrays, one row a phrase, oldest key first: ``keys`` int32 [P, 3] and ``tokens`` int32 [P, longest phrase], padded with
-1, and ``counts`` int64 [P, 4]: origin, seen, offered, accepted. What else is remembered, each padded with -1, may be
missing: ``outputs`` int32 [O]: earlier outputs, -1 behind each (SuffixDecoding); ``successors`` int32 [S, 1 + most]: a
token and its successors (Token Recycling); ``predictions`` int32 [R, 2 + most]: the token before (-1: any), a token,
what the target predicted behind them, and ``logs`` float16 [R, most]: their log-probabilities. The metadata holds
format, version, fingerprint and the pool's bounds. Nothing in the file is ever executed, and all of it is checked
(stored.py).
"""

from __future__ import annotations

import contextlib
import json
import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ouroboros.errors import LoadError, PoolFileError
from ouroboros.files import regular, write_whole
from ouroboros.phrases.lock import PoolLock
from ouroboros.phrases.memory import Memory
from ouroboros.phrases.pool import KEYS, MAX_KEY, Phrase, PhrasePool
from ouroboros.phrases.stored import Arrays, check, check_bounds, check_shapes
from ouroboros.tree import Origin

__all__ = ["fingerprint_of", "load_pool", "pack_pool", "save_pool", "write_pool"]

FORMAT, VERSION = "ouroboros-phrase-pool", "1"
MOST_BYTES = 1 << 30  # of a file; a full pool of the default bounds has a tenth of it
LEAST_LOG = float(np.finfo(np.float16).min)
_ORIGINS = (Origin.VERIFIED, Origin.CORRECTED, Origin.PROMPT, Origin.WINDOW)


def save_pool(memory: Memory, path: str | os.PathLike[str], fingerprint: str, lock: PoolLock | None = None) -> None:
    """Writes the pool and what else is remembered; the file holds the old contents or the new ones, never a part, and
    keeps its mode.

    Args:
        fingerprint: what identifies the vocabulary that the tokens belong to. lock: the caller's right to save to this
            file; without one it is taken for as long as it is written.

    Raises:
        PoolFileError: the file cannot be written, or somebody else has the right to.
    """
    write_pool(pack_pool(memory, fingerprint), path, lock)


def pack_pool(memory: Memory, fingerprint: str) -> bytes:
    """What a file holds of a memory."""
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
        arrays["logs"][place, : len(prediction.logs)] = np.nan_to_num(
            np.clip(prediction.logs, LEAST_LOG, 0), nan=LEAST_LOG
        )
    return save(arrays, metadata=metadata)


def write_pool(data: bytes, path: str | os.PathLike[str], lock: PoolLock | None = None) -> None:
    """Writes what ``pack_pool`` made; see ``save_pool``.

    Raises:
        PoolFileError: as there.
    """
    with contextlib.nullcontext() if lock is not None else PoolLock(path):
        try:
            write_whole(Path(path), data)
        except OSError as error:
            raise PoolFileError(f"cannot write the phrase pool {str(path)!r}: {error.strerror or error}") from error


def load_pool(path: str | os.PathLike[str], fingerprint: str, vocab_size: int) -> Memory:
    """Reads a pool that ``save_pool`` wrote for the same vocabulary.

    Args:
        vocab_size: of the target model; no token of the file is beyond it.

    Raises:
        PoolFileError: unreadable, no pool, damaged, of another version or of another vocabulary.
    """
    try:
        arrays, bounds = _read(Path(path), fingerprint)
        check(arrays, vocab_size, bounds["max_tokens"])
        return _memory(arrays, PhrasePool(bounds["max_keys"], bounds["phrases_per_key"], bounds["max_tokens"]))
    except LoadError as error:
        raise PoolFileError(f"cannot read the phrase pool {str(path)!r}: {error}") from error
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or "it is no phrase pool, or damaged"
        raise PoolFileError(f"cannot read the phrase pool {str(path)!r}: {reason}") from error
    except (KeyError, ValueError, TypeError, IndexError, OverflowError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PoolFileError(f"the phrase pool {str(path)!r} is damaged ({reason})") from error


def fingerprint_of(path: str | os.PathLike[str]) -> str:
    """What a pool's file is bound to.

    Raises:
        PoolFileError: unreadable, or no pool.
    """
    try:
        if not regular(Path(path)):
            raise PoolFileError(f"cannot read the phrase pool {str(path)!r}: there is no such file")
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except (LoadError, OSError, SafetensorError) as error:
        raise PoolFileError(f"cannot read the phrase pool {str(path)!r}: it is none, or damaged") from error
    if metadata.get("format") != FORMAT or "fingerprint" not in metadata:
        raise PoolFileError(f"{str(path)!r} is no phrase pool")
    return str(metadata["fingerprint"])


def _read(path: Path, fingerprint: str) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, int]]:
    """The arrays, of types and shapes that are right, and the pool's bounds."""
    if regular(path) and path.stat().st_size > MOST_BYTES:
        raise PoolFileError(f"{str(path)!r} has {path.stat().st_size} bytes; a phrase pool has at most {MOST_BYTES}")
    with open(path, "rb"):
        pass  # safetensors does not say why it cannot open a file
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise PoolFileError(f"{str(path)!r} is no phrase pool")
        if metadata.get("version") != VERSION:
            version = metadata.get("version")
            raise PoolFileError(f"{str(path)!r} is a phrase pool of version {version!r:.40}; this reads {VERSION!r}")
        if metadata.get("fingerprint") != fingerprint:
            raise PoolFileError(f"{str(path)!r} is a phrase pool of another vocabulary than the target model's")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        names = check_shapes({name: (one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()})
        return {name: file.get_tensor(name) for name in names}, check_bounds(metadata["bounds"])


def _memory(arrays: Arrays, pool: PhrasePool) -> Memory:
    rows = zip(*(arrays[name].tolist() for name in ("keys", "tokens", "counts")), strict=True)
    for key, tokens, (origin, *counts) in rows:
        key = tuple(token for token in key if token >= 0)
        if len(key) in KEYS:  # else the file is of a version that had other keys, and knows it under these too
            phrase = Phrase(tuple(token for token in tokens if token >= 0), _ORIGINS[origin], len(key))
            phrase.note(phrase.origin, *counts)
            pool.restore(key, phrase)
    memory = Memory(pool)
    if "outputs" in arrays:
        memory.outputs.restore(arrays["outputs"][-memory.outputs.max_tokens :].tolist())
    for token, *behind in arrays["successors"].tolist() if "successors" in arrays else ():
        memory.successors[token] = tuple(one for one in behind if one >= 0)
    if "predictions" in arrays:
        for (before, last, *ids), logs in zip(arrays["predictions"].tolist(), arrays["logs"].tolist(), strict=True):
            known = [(one, log) for one, log in zip(ids, logs, strict=True) if one >= 0 and log > -np.inf]
            if known:
                row = array("i", [one for one, _ in known]), array("f", [min(log, 0.0) for _, log in known])
                memory.predictions.restore(None if before < 0 else before, last, *row)
    return memory


def _table(rows: Sequence[tuple[int, Sequence[int]]]) -> np.ndarray[Any, np.dtype[np.int32]]:
    """A row for each: the number and those behind it, padded with -1."""
    table = np.full((len(rows), 1 + max((len(behind) for _, behind in rows), default=0)), -1, dtype=np.int32)
    for row, (first, behind) in enumerate(rows):
        table[row, : 1 + len(behind)] = first, *behind
    return table
