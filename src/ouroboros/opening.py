"""From what a user names (files, a hub id, a loaded model) to a model on its place. Nothing of pairs here."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ouroboros.cores import Cores
from ouroboros.errors import InputError, LoadError, UnsupportedArchitecture
from ouroboros.models.base import CausalModel, ModelInfo
from ouroboros.models.llama import LlamaModel, check_engine
from ouroboros.models.loading import load_directory, load_module, pick_device, resolve
from ouroboros.models.packed import STORED
from ouroboros.models.ranks import Ranks, is_spread
from ouroboros.text import Tokenizer

__all__ = ["BACKENDS", "Placement", "name_of", "open_draft", "open_model", "use_threads"]

BACKENDS = ("auto", "native", "transformers")
MOST_THREADS = 1024
CHOSEN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # by whoever set one of these in the environment


@dataclass(frozen=True, slots=True)
class Placement:
    """How and where a model computes; each field as in ``load``.

    Raises:
        InputError: an unknown backend or engine, or fields that do not go together.
    """

    dtype: str | torch.dtype = "auto"
    device: str = "auto"
    backend: str = "auto"
    engine: str = "auto"
    device_map: Any = None

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise InputError(f"backend must be one of {', '.join(BACKENDS)}, not {self.backend!r}")
        check_engine(self.engine)
        if self.engine != "auto" and (self.backend == "transformers" or self.device_map is not None):
            raise InputError(f"engine {self.engine!r} is the native decoder's; with transformers it must be auto")
        if self.device_map is not None and (self.backend == "native" or self.device != "auto"):
            raise InputError("device_map needs the backend auto or transformers, and device must be auto with it")
        pick_device(self.device)

    @property
    def only_native(self) -> bool:
        """Whether nothing but the native decoder will do."""
        return self.backend == "native" or self.engine != "auto"


def use_threads(threads: int | None) -> None:
    """Sets PyTorch's number of threads, which is the kernels' too. None: where it is still PyTorch's own choice, no
    more than there are cores for this process (cores.py): PyTorch does not know of a container's limit.

    Raises:
        InputError: a number of threads that no machine has.
    """
    if threads is not None:
        if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS:
            raise InputError(f"threads must be None or a whole number from 1 to {MOST_THREADS}, not {threads!r}")
        torch.set_num_threads(threads)
    elif not any(name in os.environ for name in CHOSEN):
        cores = Cores.here()
        unchosen = (cores.processors, cores.allowed, cores.physical)
        if torch.get_num_threads() > cores.threads and torch.get_num_threads() in unchosen:
            torch.set_num_threads(cores.threads)


def name_of(model: object) -> str:
    """What messages call it."""
    return repr(str(model)) if isinstance(model, str | os.PathLike) else type(model).__name__


def open_model(
    source: Any,
    placement: Placement,
    revision: str | None = None,
    token: str | None = None,
    with_tokenizer: bool = True,
) -> tuple[CausalModel, Tokenizer | None]:
    """The model, and its tokenizer where it is read from files and wanted.

    Raises:
        InputError: no model, or a loaded one that is not on this place. LoadError: see models/loading.py.
    """
    if isinstance(source, str | os.PathLike):
        path = resolve(os.fspath(source), revision, token)
        model = _from_directory(path, placement)
        return model, Tokenizer.from_directory(path) if with_tokenizer else None
    if isinstance(source, torch.nn.Module):
        return _from_module(source, placement), None
    if all(hasattr(source, name) for name in ("info", "open", "prefill", "score")):
        info: ModelInfo = source.info
        for name in ("dtype", "device", "backend"):  # it is as it is
            has, value = getattr(info, name), getattr(placement, name)
            if str(value).removeprefix("torch.") not in ("auto", has):
                told = f"{name} of the loaded {name_of(source)} is {has}"
                raise InputError(f"{told}; it must be auto or that, not {value!r}")
        return source, None
    raise InputError(f"a model must be a directory, a GGUF file, a hub id or a loaded model, not {name_of(source)}")


def open_draft(
    source: Any, placement: Placement, dtype: str | torch.dtype, target: ModelInfo, token: str | None
) -> tuple[CausalModel, Tokenizer | None]:
    """The same of a draft model. ``dtype``: ``auto`` for what is fastest beside this target."""
    place = replace(placement, device_map=None)
    if isinstance(source, torch.nn.Module) and is_spread(source):
        raise InputError(
            f"the weights of the draft {name_of(source)} lie in several processes; a draft must be whole in each"
        )
    found = None
    if dtype != "auto":
        place = replace(place, dtype=dtype)
    elif isinstance(source, str | os.PathLike) and target.dtype in ("bfloat16", STORED) and target.engine == "kernels":
        with contextlib.suppress(UnsupportedArchitecture, LoadError):  # what is wrong with it is said below
            found = open_model(source, replace(place, dtype="w8a8"), token=token)
    found = found or open_model(source, place, token=token)
    if isinstance(found[0], LlamaModel) and isinstance(source, str | os.PathLike):  # and not somebody's target as well
        found[0].narrow()
    return found


def _from_directory(path: Path, placement: Placement) -> CausalModel:
    if placement.backend != "transformers" and placement.device_map is None:
        try:
            return load_directory(path, placement.dtype, pick_device(placement.device), placement.engine)
        except UnsupportedArchitecture:
            if placement.only_native or path.is_file():
                raise
    if path.is_file():
        raise InputError(f"{str(path)!r} is a GGUF file: backend must be auto or native for it, and device_map None")
    from ouroboros.models.transformers import load_pretrained

    return load_pretrained(path, placement.dtype, pick_device(placement.device), placement.device_map)


def _from_module(module: torch.nn.Module, placement: Placement) -> CausalModel:
    if is_spread(module):
        if placement.only_native:
            raise InputError(
                f"the weights of the loaded {name_of(module)} lie in several processes: backend must be auto or "
                f"transformers for it and engine auto, not {placement.backend!r} and {placement.engine!r}"
            )
        from ouroboros.models.spread import SpreadModel
        from ouroboros.models.transformers import wrap_module

        return SpreadModel(wrap_module(module, placement.dtype, placement.device), Ranks(module))
    if placement.backend != "transformers":
        try:
            return load_module(module, placement.dtype, placement.device, placement.engine)
        except UnsupportedArchitecture:
            if placement.only_native:
                raise
    from ouroboros.models.transformers import wrap_module

    return wrap_module(module, placement.dtype, placement.device)
