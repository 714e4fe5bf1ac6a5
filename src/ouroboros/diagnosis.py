"""What a report of a fault needs to know of a machine: what computes and why, how fast, and where things are kept.

Values only, as JSON has them; commands/doctor.py shows them. It needs no model, no compiler, and no place to write.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ouroboros._version import __version__
from ouroboros.control.machine import processor_name, sample_info, speeds_of
from ouroboros.cores import Cores
from ouroboros.directories import cache_directory
from ouroboros.errors import OuroborosError
from ouroboros.kernels.building import NEEDED, UnavailableError, find_compiler
from ouroboros.kernels.library import abilities, built_ahead, instructions, library, library_file
from ouroboros.models.memory import available_memory
from ouroboros.models.packed import STORED
from ouroboros.models.quantised import QUANTISED

__all__ = ["diagnose"]

FORMATS = ("float32", "bfloat16", *QUANTISED, STORED)
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "numpy", "rich", "click")
EXTRAS = ("llguidance", "gguf", "llama-cpp-python", "matplotlib")
CPU = torch.device("cpu")

Values = dict[str, Any]


def diagnose(measure: bool = True, progress: Callable[[str], None] = lambda text: None) -> Values:
    """All of it. ``measure``: the speeds too, about a second for each format that was never measured here.

    ``progress`` is told what is being looked at.
    """
    progress("looking at the kernels")
    report: Values = {
        "versions": _versions(),
        "processor": _processor(),
        "threads": _threads(),
        "memory": _memory(),
        "engine": _engine(),
        "gpus": _gpus(),
        "caches": _caches(),
    }
    report["formats"] = _formats(measure, progress)
    speeds = [found for found in report["formats"].values() if "bytes_per_second" in found]
    report["measured"] = {
        name: max((found[name] for found in speeds), default=None)
        for name in ("bytes_per_second", "multiplications_per_second")
    }
    return report


def _versions() -> Values:
    found: Values = {"ouroboros": __version__, "python": platform.python_version(), "system": platform.platform()}
    for name in PACKAGES + EXTRAS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _processor() -> Values:
    """``instructions``: of those that the kernels ask for, what it has, and for each set what it lacks."""
    flags = abilities()
    asked = {flag: None for needed in NEEDED.values() for flag in needed}
    return {
        "name": processor_name(),
        "architecture": platform.machine(),
        "instructions": [flag for flag in asked if flag in flags],
        "lacks": {name: [flag for flag in needed if flag not in flags] for name, needed in NEEDED.items()},
    }


def _threads() -> Values:
    cores = Cores.here()
    return {
        "processors": cores.processors,
        "allowed": cores.allowed,
        "physical_cores": cores.physical,
        "container_limit": cores.quota,
        "default": cores.threads,
        "in_use": torch.get_num_threads(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
    }


def _memory() -> Values:
    total = None
    with suppress(AttributeError, ValueError, OSError):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"bytes": total, "available": available_memory(CPU)}


def _engine() -> Values:
    """Whether the kernels compute or PyTorch, and why; what was looked for."""
    found, file, ahead = library(), library_file(), built_ahead()
    compiler: str | None
    try:
        compiler = find_compiler()
    except UnavailableError:
        compiler = None
    if isinstance(found, str):
        why = found
    elif file in ahead.values():
        why = "built ahead, in this installation"
    else:
        why = "compiled on this machine"
    return {
        "name": "pytorch" if isinstance(found, str) else "kernels",
        "why": why,
        "instructions": instructions(),
        "library": None if file is None else str(file),
        "built_ahead": sorted(ahead),
        "compiler": compiler,
    }


def _formats(measure: bool, progress: Callable[[str], None]) -> Values:
    """Of each format of weights what computes it, and how fast."""
    return {name: _format(name, measure, progress) for name in FORMATS}


def _format(name: str, measure: bool, progress: Callable[[str], None]) -> Values:
    try:
        info = sample_info(name)
        if not measure:
            return {"engine": info.engine}
        progress(f"measuring {name}")
        speeds = speeds_of(info)
    except (OuroborosError, RuntimeError) as error:
        return {"engine": None, "why": str(error)}
    return {
        "engine": info.engine,
        "bytes_per_second": speeds.bytes,
        "multiplications_per_second": speeds.products,
        "seconds_per_layer": speeds.layer,
    }


def _gpus() -> list[Values]:
    try:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        found = [torch.cuda.get_device_properties(i) for i in range(count)]
    except RuntimeError as error:
        return [{"error": str(error)}]
    return [
        {
            "name": gpu.name,
            "bytes": gpu.total_memory,
            "capability": f"{gpu.major}.{gpu.minor}",
            "cuda": torch.version.cuda,
        }
        for gpu in found
    ]


def _caches() -> Mapping[str, Values]:
    from huggingface_hub.constants import HF_HUB_CACHE

    own = cache_directory()
    places = {"kernels": own / "kernels", "machine": own / "machine", "all": own, "hub": Path(HF_HUB_CACHE)}
    return {name: _cache(path) for name, path in places.items()}


def _cache(path: Path) -> Values:
    """A directory's files and their bytes, links not followed; whether something can be kept there."""
    files = total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
                files += 1
    existing = next((place for place in (path, *path.parents) if place.exists()), None)
    writable = existing is not None and existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    return {"path": str(path), "files": files, "bytes": total, "writable": writable}
