"""Damaged pool files by the thousand: each is one PoolFileError, or decoding with it says what plain decoding says.

Run as a program, so that whatever kills a process is seen: ``python -m tests.pool_fuzz FIRST COUNT`` prints a count of
the outcomes, and ends with status 1 at the first wrong one.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save

import ouroboros
from ouroboros.errors import PoolFileError
from ouroboros.phrases.storage import load_pool, save_pool

PROMPT = "def add(a, b):\n    return a + b\n\ndef add"
METHODS = ("ouroboros", "suffix_decoding", "token_recycling", "lookahead")
NASTY = (-(2**63), -(2**31), -2, -1, 0, 1, 2, 17, 8191, 8192, 60_000, 5_000_000, 2**30, 2**31 - 1, 2**62, 2**63 - 1)
FLOATS = (np.nan, np.inf, -np.inf, 0.0, -0.0, 5e-8, 1.0, -65504.0, 60_000.0, -1e-7)
KINDS = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint32, np.float16, np.float32, np.float64)
BOUNDS: tuple[Any, ...] = (0, -1, 1, 2, 2**31, 10**30, 1.5, "8", None, True, [[[]]], {"a": 1}, float("inf"))


def mutated(data: bytes, arrays: dict[str, Any], meta: dict[str, str], dice: random.Random) -> bytes:
    """One damage or two, of bytes or of values."""
    if dice.random() < 0.3:
        found = bytearray(data)
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(found)) if dice.random() < 0.8 else dice.randrange(min(900, len(found)))
            match dice.randrange(4):
                case 0:
                    found[at] ^= 1 << dice.randrange(8)
                case 1:
                    found[at : at + dice.randint(1, 9)] = dice.randbytes(dice.randint(0, 9))
                case 2:
                    del found[at:]
                case _:
                    found[at : at + 4] = dice.choice(NASTY).to_bytes(9, "little", signed=True)[:4]
            if not found:
                return b""
        return bytes(found)
    arrays, meta = {name: array.copy() for name, array in arrays.items()}, dict(meta)
    for _ in range(dice.randint(1, 2)):
        name = dice.choice(list(arrays) or ["keys"])
        array = arrays.get(name, np.zeros((0, 1), np.int32))
        match dice.randrange(8):
            case 0 | 1 | 2 | 3 if array.size:
                for _ in range(dice.choice((1, 1, 5, 500))):
                    place = dice.randrange(array.size)
                    value = dice.choice((*FLOATS, -9 * dice.random()) if array.dtype.kind == "f" else NASTY)
                    if array.dtype.kind == "i" and dice.random() < 0.7:
                        value = dice.randrange(1, 4) if name == "counts" else dice.randrange(8192)  # may well be right
                    with np.errstate(all="ignore"):
                        array.reshape(-1)[place] = np.array(value).astype(array.dtype)
            case 4:
                arrays.pop(name, None)
            case 5:
                with np.errstate(all="ignore"):
                    arrays[name] = np.ascontiguousarray(array.astype(dice.choice(KINDS)))
            case 6:
                shape = dice.choice([array.T.shape, (array.size,), (array.size, 1), (*array.shape, 1), (array.size, 0)])
                part = array[: dice.randrange(len(array) + 1)] if dice.random() < 0.5 else array[..., :-1]
                arrays[name] = np.ascontiguousarray(
                    np.zeros(shape, array.dtype)
                    if 0 in shape
                    else array.reshape(shape)
                    if dice.random() < 0.5
                    else part
                )
            case _:
                key = dice.choice(["bounds", "bounds", "version", "fingerprint", "format"])
                bounds = json.loads(meta["bounds"]) if meta.get("bounds", "").startswith('{"max') else {"max_keys": 1}
                bounds[dice.choice(list(bounds))] = dice.choice(BOUNDS)
                texts = [json.dumps(bounds), "[" * 100_000, "", "null", '"' * 3, meta.get(key, "") + "x"]
                meta[key] = texts[0] if key == "bounds" and dice.random() < 0.7 else dice.choice(texts)
    return save(arrays, metadata=meta)


def _late(*_: object) -> None:
    raise TimeoutError("a damaged pool takes for ever")


def main(first: int, count: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _late)
    plain = ouroboros.load(method="autoregressive")
    decoders = {method: ouroboros.load(method=method) for method in METHODS}
    settings: list[dict[str, Any]] = [
        {"max_new_tokens": 12, "seed": 5, "temperature": temperature} for temperature in (0.0, 0.8)
    ]
    expected = [plain.generate(PROMPT, **one).token_ids for one in settings]
    path = Path(tempfile.mkdtemp()) / "pool"
    shared = decoders["ouroboros"].memory
    for decoder in decoders.values():
        decoder.memory = shared
        for one in settings:
            assert decoder.generate(PROMPT, **one).token_ids in expected
    assert shared is not None
    save_pool(shared, path, plain.fingerprint)
    data = path.read_bytes()
    with safe_open(path, framework="numpy") as file:
        arrays, meta = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    assert all(array.size for array in arrays.values())
    outcomes: Counter[str] = Counter()
    for number in range(first, first + count):
        path.write_bytes(mutated(data, arrays, meta, random.Random(number)))
        signal.alarm(60)
        try:
            memory = load_pool(path, plain.fingerprint, plain.target.info.vocab_size)
        except PoolFileError as error:
            if "\n" in str(error) or len(str(error)) >= 500:
                sys.exit(f"mutation {number}: {error}")
            outcomes["refused"] += 1
            continue
        method = METHODS[number % len(METHODS)]
        decoders[method].memory = memory
        for one, wanted in zip(settings, expected, strict=True):
            found = decoders[method].generate(PROMPT, **one).token_ids
            if found != wanted:
                sys.exit(f"mutation {number}, {method}: {found} in place of {wanted}")
        save_pool(memory, path, plain.fingerprint)
        load_pool(path, plain.fingerprint, plain.target.info.vocab_size)
        signal.alarm(0)
        outcomes["read"] += 1
    sys.stdout.write(json.dumps(outcomes) + "\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
