"""Rows of a cache in buffers [..., capacity, size] that are allocated ahead: how they grow, how some rows are kept.

It knows nothing of layers, slots or trees; which rows count is the caller's knowledge.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ouroboros.kernels.library import library

__all__ = ["grown", "keep"]


def grown(
    buffer: Tensor, used: int, needed: int, step: int, lend: Callable[[Tensor, int], Tensor] | None = None
) -> Tensor:
    """``buffer`` if it has ``needed`` rows, else a larger one with a copy of its first ``used`` rows.

    ``lend``: makes a buffer like another one, of a capacity or more.
    """
    capacity = buffer.shape[-2]
    if needed <= capacity:
        return buffer
    # A quarter more than is there keeps the copies few for long texts, a step for short ones.
    capacity = -(-max(needed, capacity + capacity // 4) // step) * step
    if lend is None:
        larger = buffer.new_empty((*buffer.shape[:-2], capacity, buffer.shape[-1]))
    else:
        larger = lend(buffer, capacity)
    larger[..., :used, :] = buffer[..., :used, :]
    return larger


def keep(buffers: Iterable[Tensor], base: int, path: Sequence[int]) -> None:
    """Moves the rows ``base`` + ``path`` (ascending) of each buffer to ``base`` and behind; what lay there is lost."""
    assert all(a < b for a, b in pairwise(path))
    first = next((i for i, node in enumerate(path) if i != node), len(path))  # those before lie where they belong
    if first == len(path):
        return
    nodes = array("i", path)
    found = library()
    others = []
    for buffer in buffers:
        if not isinstance(found, str) and buffer.is_cpu and buffer.is_contiguous():
            *blocks, capacity, size = buffer.shape
            row = size * buffer.element_size()
            at = nodes.buffer_info()[0]
            kept = found.ouroboros_keep(buffer.data_ptr(), math.prod(blocks), capacity * row, row, base, at, len(path))
            assert kept, f"rows {base} + {list(path)} do not lie within {capacity}"
        else:
            others.append(buffer)
    if others:
        _keep(others, base + first, [base + node for node in path[first:]])


@torch.inference_mode()
def _keep(buffers: Sequence[Tensor], start: int, rows: Sequence[int]) -> None:
    indices: dict[torch.device, Tensor] = {}  # one a device: a model may lie on several
    for buffer in buffers:
        if buffer.device not in indices:
            indices[buffer.device] = torch.tensor(rows, device=buffer.device)
        buffer[..., start : start + len(rows), :] = buffer.index_select(-2, indices[buffer.device])
