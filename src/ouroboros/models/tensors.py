"""Where a checkpoint's tensors lie: safetensors files of a directory, or a loaded module. Read one at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ouroboros.errors import LoadError
from ouroboros.files import read_json, regular
from ouroboros.models.weights import WeightSource

__all__ = ["DTYPES", "FileTensors", "ModuleTensors", "Tensors", "stored_dtype"]

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}


class Tensors(WeightSource, Protocol):
    """Stored tensors of a checkpoint."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the embeddings."""

    def shares(self, name: str, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether a model of this dtype and device takes no memory for the tensor."""


def stored_dtype(path: Path) -> torch.dtype:
    """The type of a checkpoint's weights, as its files tell: that of the embeddings, else of the first tensor.

    Raises:
        LoadError: no safetensors files, damaged ones, or of a type that is not computed in.
    """
    return FileTensors(path).dtype


def _shards(path: Path) -> list[Path]:
    """The files that the index names; none without an index."""
    index = read_json(path / "model.safetensors.index.json")
    if index is None:
        return []
    shards = index.get("weight_map")
    if not isinstance(shards, dict):
        raise LoadError("model.safetensors.index.json has no weight_map")
    names = sorted({str(name) for name in shards.values()})
    for name in names:
        if name != Path(name).name or name in ("", ".", ".."):
            raise LoadError(f"model.safetensors.index.json names the file {name!r:.80}; files lie beside it")
    return [path / name for name in names]


class FileTensors:
    """The tensors of all safetensors files of a directory, read when asked for."""

    def __init__(self, path: Path) -> None:
        files = [path / "model.safetensors"]  # goes before an index, as in transformers
        if not regular(files[0]):
            files = _shards(path) or sorted(path.glob("*.safetensors"))
        if not files:
            raise LoadError("it holds no *.safetensors file")
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, Path] = {}
        for file in files:
            try:
                regular(file)
                with safe_open(file, framework="pt") as reader:
                    for name in reader.keys():  # noqa: SIM118 - it is no mapping
                        self._shapes[name], self._files[name] = tuple(reader.get_slice(name).get_shape()), file
            except (SafetensorError, OSError) as error:
                raise LoadError(f"{file.name} is missing, cut short or damaged ({error})") from error

    @property
    def dtype(self) -> torch.dtype:
        name = "model.embed_tokens.weight"
        name = name if name in self._files else next(iter(self._files), "")
        return self.get(name).dtype if name else torch.float32

    def names(self) -> Collection[str]:
        return self._shapes.keys()

    def shape(self, name: str) -> tuple[int, ...] | None:
        return self._shapes.get(name)

    def shares(self, name: str, dtype: torch.dtype, device: torch.device) -> bool:
        return False

    def get(self, name: str) -> Tensor:
        # Opened anew each time: the pages of a file that stays open count as this process's memory until its end.
        with safe_open(self._files[name], framework="pt") as reader:
            return _checked(name, reader.get_tensor(name))


class ModuleTensors:
    """The tensors of a loaded module."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self._tensors.values())).dtype

    def names(self) -> Collection[str]:
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...] | None:
        return tuple(self._tensors[name].shape) if name in self._tensors else None

    def shares(self, name: str, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether the decoder can use the tensor as it lies there: those that it stacks are copied in any case."""
        stacked = any(part in name for part in (".q_proj.", ".k_proj.", ".v_proj.", ".gate_proj.", ".up_proj."))
        tensor = self._tensors[name]
        here = tensor.device.type == device.type and device.index in (None, tensor.device.index)
        return here and not stacked and tensor.dtype == dtype

    def get(self, name: str) -> Tensor:
        return _checked(name, self._tensors[name].detach())


def _checked(name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype not in DTYPES.values():
        raise LoadError(f"tensor {name!r} is stored as {tensor.dtype}; supported are {', '.join(DTYPES)}")
    if tensor.is_meta:
        raise LoadError(f"tensor {name!r} is not in memory (device meta)")
    return tensor
