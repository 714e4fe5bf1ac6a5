"""Where cache buffers come from, so that a cache need not be copied as it grows, or is found again at the same place.

Buffers are [layers, 2, kv_heads, capacity, head_size]. It knows nothing of what lies in them.
"""

from __future__ import annotations

import math
import mmap
import sys
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["BufferPool", "Buffers", "ReservedBuffers", "buffers_for"]


class Buffers(Protocol):
    """Lends buffers."""

    def take(self, like: Tensor, capacity: int) -> Tensor:
        """A buffer as ``like`` is, but for its capacity: that, or more."""

    def give(self, buffer: Tensor) -> None:
        """It is no longer used."""


class ReservedBuffers:
    """Address space for a whole context at once, of which the system gives memory page by page as rows are written: a
    long text costs what it needs, and nothing is ever copied.

    Args:
        rows: for which space is reserved.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows

    def take(self, like: Tensor, capacity: int) -> Tensor:
        layers, two, kv_heads, _, head_size = like.shape
        shape = layers, two, kv_heads, max(capacity, self._rows), head_size
        count = math.prod(shape)
        try:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
            memory = mmap.mmap(-1, count * like.element_size(), flags=flags)
            if hasattr(mmap, "MADV_NOHUGEPAGE"):  # each head's rows are far apart: large pages would be mostly empty
                memory.madvise(mmap.MADV_NOHUGEPAGE)
        except (OSError, ValueError):  # less space than that
            return like.new_empty((*shape[:3], capacity, head_size))
        return torch.frombuffer(memory, dtype=like.dtype, count=count).view(shape)

    def give(self, buffer: Tensor) -> None:
        pass


class BufferPool:
    """Buffers that come back when their sequence has ended, so that CUDA graphs find them at the same place again.

    They are filled with zeros when they are made: what masked rows hold is multiplied by zero, and must be finite.
    """

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def take(self, like: Tensor, capacity: int) -> Tensor:
        fitting = [i for i, buffer in enumerate(self._free) if buffer.shape[3] >= capacity]
        if fitting:
            return self._free.pop(min(fitting, key=lambda i: self._free[i].shape[3]))
        layers, two, kv_heads, _, head_size = like.shape
        return like.new_zeros((layers, two, kv_heads, capacity, head_size))

    def give(self, buffer: Tensor) -> None:
        if buffer.shape[3]:
            self._free.append(buffer)


def buffers_for(device: torch.device, rows: int, static: bool) -> Buffers | None:
    """What suits a device; None: buffers that are made and grow by copies."""
    if static:
        return BufferPool()
    return ReservedBuffers(rows) if device.type == "cpu" and sys.platform in ("linux", "darwin") else None
