"""From a checkpoint, or a loaded model, to the adapter over transformers' own code.

The adapter's ideas have a file each: ``transformers_config`` (what a config says), ``transformers_cache`` (rows that
can be dropped and moved), ``transformers_model`` (trees over them), ``transformers_probe`` (what a model takes, found
by trying). This file knows nothing of caches, masks or decoding.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import logging as hf_logging

from ouroboros.errors import InputError, LoadError
from ouroboros.files import check_directory
from ouroboros.models.checkpoint import check_code
from ouroboros.models.loading import pick_dtype, stored_dtype
from ouroboros.models.memory import available_memory, check_memory
from ouroboros.models.ranks import own_part
from ouroboros.models.sound import check_model, check_tensors, check_zeros
from ouroboros.models.transformers_config import check_config, check_kind, class_name
from ouroboros.models.transformers_model import TransformersModel
from ouroboros.models.transformers_probe import Make, adapt

__all__ = ["load_pretrained", "wrap_module"]

CPU = torch.device("cpu")


def load_pretrained(
    path: Path, dtype: str | torch.dtype, device: torch.device, device_map: Any = None
) -> TransformersModel:
    """Loads a checkpoint with AutoModelForCausalLM; code that comes with it is not run.

    Args:
        device_map: as transformers takes it; None puts the whole model on ``device``.

    Raises:
        LoadError: no causal language model, not loadable, not to be rolled back, or weights that do not fit into
            memory (which is transformers' business with a device_map or quantised weights). InputError: unknown dtype.
    """
    if dtype != "auto":
        dtype = pick_dtype(dtype, torch.float32, 0, device)
    try:
        check_directory(path)
        raw, _ = _call(transformers.PretrainedConfig.get_config_dict, path)
        check_kind(raw.get("model_type"), bool(raw.get("is_encoder_decoder")), "auto_map" in raw)
        check_code(raw, class_name(raw.get("model_type")))
        config = _call(transformers.AutoConfig.from_pretrained, path, trust_remote_code=False)
        check_config(config)
        if device_map is None and getattr(config, "quantization_config", None) is None:
            _check_memory(path, config, dtype, device)
        module, report = _call(
            transformers.AutoModelForCausalLM.from_pretrained,
            path,
            config=config,
            dtype=dtype,
            device_map=device_map,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # they are in the report
            output_loading_info=True,
        )
        absent = sorted({*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])})
        if absent:  # transformers fills them with random numbers
            more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
            raise LoadError(f"the checkpoint lacks the tensor {absent[0]!r}{more}, or holds it in another shape")
        _check_unexpected(module, report["unexpected_keys"])
        if getattr(config, "quantization_config", None) is None:
            parameters = sum(p.numel() for p in module.parameters())
            module.to(pick_dtype(dtype, module.dtype, parameters, device))
        if device_map is None and getattr(module, "hf_device_map", None) is None:
            module.to(device)
        return _sound(module)
    except LoadError as error:
        raise LoadError(f"cannot load {str(path)!r}: {error}") from error


def _check_memory(
    path: Path, config: transformers.PretrainedConfig, dtype: str | torch.dtype, device: torch.device
) -> None:
    """Refuses what does not fit before a weight is read: transformers would be ended by the system in the middle."""
    with torch.device("meta"):  # the modules without their weights
        skeleton = _call(transformers.AutoModelForCausalLM.from_config, copy.deepcopy(config), trust_remote_code=False)
    parameters = sum(p.numel() for p in skeleton.parameters())
    stored = config.dtype if isinstance(config.dtype, torch.dtype) else stored_dtype(path)
    kind = pick_dtype(dtype, stored, parameters, device)
    check_memory(parameters * kind.itemsize, available_memory(device), device, kind)
    if device.type != "cpu":  # on their way they are all on the CPU
        kind = stored if dtype == "auto" else kind
        check_memory(parameters * kind.itemsize, available_memory(CPU), CPU, kind)


def wrap_module(
    module: torch.nn.Module, dtype: str | torch.dtype, device: str, past_end: bool = False
) -> TransformersModel:
    """Serves a loaded transformers model as it is, where it is; it keeps the mode it is in.

    ``past_end``: it may go on past the positions that it was made for, where its forward does.

    Raises:
        LoadError: no causal language model of transformers, or not to be rolled back.
        InputError: another dtype or device than the model has.
    """
    if not isinstance(module, transformers.PreTrainedModel):
        raise LoadError(f"a loaded model must be a transformers model, not {type(module).__name__}")
    name = type(module).__name__
    has = str(module.dtype).removeprefix("torch.")
    if dtype != "auto" and str(dtype).removeprefix("torch.") != has:
        raise InputError(f"dtype of the loaded {name} is {has}; dtype must be auto or that, not {dtype!r}")
    if device != "auto" and torch.device(device) != module.device:
        raise InputError(f"the loaded {name} is on {module.device}; device must be auto or that, not {device!r}")
    try:
        return _sound(module, partial(TransformersModel, past_end=past_end))
    except LoadError as error:
        raise LoadError(f"cannot use the loaded {name}: {error}") from error


def _check_unexpected(module: torch.nn.Module, names: Iterable[str]) -> None:
    """Refuses a tensor that would change what a layer computes, which transformers leaves out with a remark. What
    belongs to no layer of the model (further heads, other modalities) is not missed."""
    layers = {name for name, part in module.named_modules() if not any(True for _ in part.children())} - {""}
    for name in sorted(names):
        parts = name.split(".")
        if any(".".join(parts[:end]) in layers for end in range(1, len(parts))):
            raise LoadError(f"tensor {name!r} is none that the architecture with this config.json has")


def _sound(module: Any, make: Make = TransformersModel) -> TransformersModel:
    """The adapted model, if its weights are numbers (see sound.py)."""
    tensors = {name: own_part(tensor) for name, tensor in module.named_parameters()}
    known = not any(tensor.is_meta for tensor in tensors.values())
    try:
        model = adapt(module, make)
    except LoadError:
        if known:  # two ways to compute what is no number never agree: this is said where it is the reason
            check_tensors(tensors, tensors.__getitem__)
            check_zeros(_embedding(module), tensors.__getitem__)
        raise
    if known:
        check_model(model, tensors, tensors.__getitem__, embedding=_embedding(module)[0])
    return model


def _embedding(module: Any) -> list[str]:
    """The name of the embeddings; the first, where they have several."""
    weight = getattr(module.get_input_embeddings(), "weight", None)
    return [name for name, tensor in module.named_parameters() if tensor is weight][:1]


def _call(function: Any, *args: Any, **settings: Any) -> Any:
    """Calls transformers, which writes nothing to the terminal meanwhile."""
    shows, level = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    try:
        return function(*args, **settings)
    except Exception as error:  # transformers raises dozens of unrelated types
        raise LoadError(_one_line(error)) from error
    finally:
        hf_logging.set_verbosity(level)
        if shows:
            hf_logging.enable_progress_bar()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
