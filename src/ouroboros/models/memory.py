"""How much memory a device has left, and the refusal of weights that do not fit. It knows nothing of models."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ouroboros.errors import LoadError

__all__ = ["available_memory", "check_memory"]


def check_memory(needed: int, available: int | None, device: torch.device, dtype: torch.dtype | str) -> None:
    """Refuses weights of ``needed`` bytes where less is available; None: nobody knows.

    Raises:
        LoadError: they do not fit.
    """
    if available is not None and needed > available:
        kind = str(dtype).removeprefix("torch.")
        numbers = f"need {needed / 1e9:.2f} GB of memory, where {str(device)!r} has {available / 1e9:.2f} GB available"
        raise LoadError(f"the weights in {kind} {numbers}")


def available_memory(
    device: torch.device, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Bytes that can be had on this device now. On a CPU file pages count as free: the kernel gives them up.

    ``proc``, ``cgroups``: where Linux tells of itself.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    found = [bytes for bytes in (_system(proc), *_limits(proc, cgroups)) if bytes is not None]
    return min(found, default=None)


def _system(proc: Path) -> int | None:
    available = _table(proc / "meminfo").get("MemAvailable:")
    if available is not None:
        return available * 1024
    try:  # no Linux: all there is, for what is free is not said
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _limits(proc: Path, cgroups: Path) -> list[int]:
    """What is left below the limit of each control group above this process (version 2, then version 1)."""
    own = [line.split(":", 2) for line in _text(proc / "self/cgroup").splitlines()]
    left = []
    for number, controllers, group in (entry for entry in own if len(entry) == 3):
        if number == "0":
            root, names, stats = cgroups, ("memory.max", "memory.current"), ("inactive_file", "active_file")
        elif "memory" in controllers.split(","):
            root, names = cgroups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
            stats = ("total_inactive_file", "total_active_file")
        else:
            continue
        place = root / group.lstrip("/")
        # In a container the path may be the host's, and only the root is there to be read.
        for folder in (place, *(parent for parent in place.parents if parent == root or root in parent.parents)):
            limit, used = (_text(folder / name).strip() for name in names)
            if limit.isdigit() and used.isdigit():
                cached = _table(folder / "memory.stat")
                left.append(max(int(limit) - int(used) + sum(cached.get(name, 0) for name in stats), 0))
    return left


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _table(file: Path) -> dict[str, int]:
    """Lines of a name, a number and perhaps a unit."""
    words = [line.split() for line in _text(file).splitlines()]
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdigit()}
