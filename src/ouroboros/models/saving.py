"""Writes a checkpoint in Hugging Face layout, a file of safetensors at a time. It knows nothing of what is in it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ouroboros.errors import InputError
from ouroboros.models.config import Shape

__all__ = ["write_directory"]

TEXT_FILES = ("*.json", "tokenizer*", "*.model", "*.jinja", "merges.txt")
INDEX = "model.safetensors.index.json"


def write_directory(
    out: Path,
    raw: Mapping[str, object],
    shapes: Mapping[str, Shape],
    get: Callable[[str], Tensor],
    dtype: torch.dtype,
    shard_bytes: int,
    beside: Path,
) -> None:
    """Writes config.json, tensors and what lies beside them.

    Args:
        out: a new or empty directory. raw: config.json. shapes: of all tensors. get: gives one, in ``dtype``.
        shard_bytes: the most that a file holds, unless one tensor is larger; so much memory is needed. beside: the
            directory whose tokenizer and generation files are copied.

    Raises:
        InputError: ``out`` cannot be written to or is not empty.
    """
    if shard_bytes < 1:
        raise InputError(f"shard_bytes must be 1 at least, not {shard_bytes}")
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise InputError(f"{str(out)!r} is not empty; a checkpoint needs a directory of its own")
        shards = _shards({name: math.prod(shape) * dtype.itemsize for name, shape in shapes.items()}, shard_bytes)
        files = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
        if len(shards) == 1:
            files = ["model.safetensors"]
        for file, names in zip(files, shards, strict=True):
            save_file({name: get(name).cpu().contiguous() for name in names}, out / file, metadata={"format": "pt"})
        if len(shards) > 1:
            total = sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize
            places = {name: file for file, names in zip(files, shards, strict=True) for name in names}
            _dump(out / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
        for file_ in {file for pattern in TEXT_FILES for file in beside.glob(pattern) if file.is_file()}:
            if file_.name not in ("config.json", INDEX):
                shutil.copyfile(file_, out / file_.name)
        _dump(out / "config.json", raw)  # last: without it, what was cut short is no checkpoint
    except OSError as error:
        raise InputError(f"cannot write {str(out)!r}: {error}") from error


def _shards(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    shards: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not shards or size > room:
            shards.append([])
            room = most
        shards[-1].append(name)
        room -= size
    return shards


def _dump(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
