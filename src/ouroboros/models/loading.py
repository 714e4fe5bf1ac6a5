"""From a directory or a loaded module to a model: where it computes, in which type, and whether it fits.

It knows nothing of files (see checkpoint.py) or of decoding.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from ouroboros.errors import InputError, LoadError
from ouroboros.models.checkpoint import Checkpoint, module_checkpoint, read_directory, resolve
from ouroboros.models.families import parse_config
from ouroboros.models.gguf import GGUFTensors, read_gguf
from ouroboros.models.kernels import unsupported
from ouroboros.models.linear import packs
from ouroboros.models.llama import LlamaModel
from ouroboros.models.memory import available_memory, check_memory
from ouroboros.models.packed import STORED, stored_bytes
from ouroboros.models.quantised import QUANTISED, Precision, weight_bytes
from ouroboros.models.sound import EMBEDDING, check_model, check_tensors
from ouroboros.models.tensors import DTYPES, Tensors, stored_dtype

__all__ = [
    "build",
    "load_directory",
    "load_module",
    "parse_config",
    "pick_device",
    "pick_dtype",
    "read_directory",
    "resolve",
    "stored_dtype",
]

FP32 = torch.float32
SMALL = 64_000_000  # parameters: below this a CPU loses nothing by computing in float32, and rounds less


def pick_device(device: str) -> torch.device:
    """``auto`` is the first CUDA device, else the CPU.

    Raises:
        InputError: unknown, or not on this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except (RuntimeError, TypeError):
        raise InputError(f"device must be auto, cpu, cuda or cuda:N, not {device!r}") from None
    if picked.type not in ("cpu", "cuda") or str(picked) != str(device):  # torch reads cuda:256 as cuda:0
        raise InputError(f"device must be auto, cpu, cuda or cuda:N, not {device!r}")
    if picked.type == "cuda" and (picked.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {device!r} is not on this machine ({torch.cuda.device_count()} CUDA devices)")
    return picked


_SHORT = {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp64": "float64"}


def pick_dtype(dtype: str | torch.dtype, stored: torch.dtype, parameters: int, device: torch.device) -> torch.dtype:
    """``auto`` keeps the checkpoint's own type, but float32 on a CPU for small models and for float16 files.

    Raises:
        InputError: unknown dtype.
    """
    if dtype == "auto":
        if device.type == "cpu" and (stored == torch.float16 or parameters < SMALL):
            return torch.float32
        return stored
    found = dtype if isinstance(dtype, torch.dtype) else DTYPES.get(str(dtype))
    if found not in DTYPES.values():
        kinds, rounded = ", ".join(DTYPES), " or ".join(QUANTISED)
        hint = f": did you mean {_SHORT[str(dtype)]}?" if str(dtype) in _SHORT else ""
        allowed = f"auto or one of {kinds} (of the native decoder also {rounded})"
        raise InputError(f"dtype must be {allowed}, not {dtype!r}{hint}")
    assert isinstance(found, torch.dtype)
    return found


def load_directory(path: Path, dtype: str | torch.dtype, device: torch.device, engine: str = "auto") -> LlamaModel:
    """Loads a checkpoint in Hugging Face layout, or a GGUF file.

    ``dtype``: of DTYPES, or QUANTISED (weights alone); ``engine``: see LlamaModel.

    Raises:
        UnsupportedArchitecture: the native decoder does not compute this model.
        LoadError: config or tensors are missing, damaged or of wrong shapes, or the weights do not fit into memory.
        InputError: unknown dtype or engine.
    """
    checkpoint = read_gguf(path) if path.is_file() else read_directory(path)
    try:
        return build(checkpoint, checkpoint.weights, dtype, device, engine)
    except LoadError as error:
        raise type(error)(f"cannot load {str(path)!r}: {error}") from error


def load_module(module: torch.nn.Module, dtype: str | torch.dtype, device: str, engine: str = "auto") -> LlamaModel:
    """Takes over a loaded Hugging Face module of the Llama kind (its ``config`` and ``state_dict``).

    Raises:
        UnsupportedArchitecture: the native decoder does not compute this model.
        LoadError: no such module, or it does not fit into memory. InputError: unknown dtype or engine.
    """
    try:
        checkpoint = module_checkpoint(module)
        first = next(module.parameters())
        place = first.device if device == "auto" else pick_device(device)
        return build(checkpoint, checkpoint.weights, first.dtype if dtype == "auto" else dtype, place, engine)
    except LoadError as error:
        raise type(error)(f"cannot use the loaded {type(module).__name__}: {error}") from error


def build(
    checkpoint: Checkpoint, weights: Tensors, dtype: str | torch.dtype, device: torch.device, engine: str = "auto"
) -> LlamaModel:
    """The model of a checkpoint's config and these tensors, after a look at the memory that it needs.

    With the kernels if they can be had; a loaded module's weights are copied for them only where there is room.

    Raises:
        LoadError: a tensor is missing, has the wrong shape or holds what is no number, or they do not fit.
        InputError: unknown dtype.
    """
    config = checkpoint.config
    if isinstance(weights, GGUFTensors) and dtype in ("auto", STORED) and engine in ("auto", "kernels"):
        reason = unsupported(config, FP32, device, STORED)
        if reason is None:
            return _as_stored(checkpoint, weights, device)
        if dtype == STORED:
            raise InputError(f"dtype {STORED} cannot be had here: {reason}")
    shapes = {name: shape for name, shape in config.shapes().items() if weights.shape(name) == shape}
    rounded = dtype in QUANTISED
    parameters = sum(math.prod(shape) for shape in shapes.values())
    kind = pick_dtype("bfloat16" if rounded else dtype, weights.dtype, parameters, device)
    precision = Precision.of(str(dtype) if rounded else kind)
    if isinstance(weights, GGUFTensors):
        weights = weights.rounded(kind)
    available = available_memory(device)
    needed = weight_bytes(shapes, precision.weights)
    if not rounded:
        here = {name: shape for name, shape in shapes.items() if weights.shares(name, kind, device)}
        shared = weight_bytes(here, precision.weights)
        repacks = packs(kind, device) or unsupported(config, kind, device) is None
        copies = engine in ("kernels", "packed") or (engine == "auto" and repacks)
        if engine == "auto" and copies and shared and available is not None and needed > available:
            engine, copies = "plain", False
        needed -= 0 if copies else shared
    check_memory(needed, available, device, precision.weights)
    eos = checkpoint.eos_token_ids
    model = LlamaModel(config, weights, eos, precision, device, engine, checkpoint.grown, checkpoint.stored)
    embedding = None if config.tie_word_embeddings else EMBEDDING
    check_model(model, shapes, weights.get, checkpoint.grown is not None, rounded, embedding)
    return model


def _as_stored(checkpoint: Checkpoint, weights: GGUFTensors, device: torch.device) -> LlamaModel:
    """With weights as the file holds them."""
    config = checkpoint.config
    shapes = config.shapes()
    needed = sum(stored_bytes(weights, name) for name, shape in shapes.items() if len(shape) == 2)
    check_memory(needed, available_memory(device), device, STORED)
    precision = Precision(FP32, STORED)
    model = LlamaModel(
        config, weights, checkpoint.eos_token_ids, precision, device, "kernels", checkpoint.grown, checkpoint.stored
    )
    check_model(model, shapes, weights.get, embedding=None)
    if not config.tie_word_embeddings and not weights.stored(EMBEDDING).finite():
        check_tensors([EMBEDDING], weights.get)  # which says what it found
    return model
