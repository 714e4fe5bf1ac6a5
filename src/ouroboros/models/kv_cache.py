"""KVCache: keys and values of one sequence in buffers that are allocated ahead and grow in steps.

Layout: [layers, 2, kv_heads, capacity, head_size]; rows 0 … length-1 are committed, the next ``pending`` rows are the
nodes of a tree in their order. Invariant: nobody else writes to the buffer; ``rewind`` moves no row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ouroboros.models.buffers import Buffers
from ouroboros.models.rows import grown, keep

__all__ = ["KVCache"]


class KVCache:
    """A slot of the native decoder (see base.Slot).

    Args:
        shape: (layers, kv_heads, head_size). step: rows by which the buffer grows at least.
        buffers: lends buffers, and gets them back; None: they are made and let go.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        device: torch.device,
        step: int = 256,
        buffers: Buffers | None = None,
    ) -> None:
        layers, kv_heads, head_size = shape
        self._step = step
        self._buffers = buffers
        self._length = 0
        self._pending = 0
        self._buffer = torch.empty((layers, 2, kv_heads, 0, head_size), dtype=dtype, device=device)

    @property
    def length(self) -> int:
        return self._length

    @property
    def pending(self) -> int:
        return self._pending

    @property
    def capacity(self) -> int:
        return self._buffer.shape[3]

    @property
    def buffer(self) -> Tensor:
        """For kernels that read and write it themselves; ``reserve`` may replace it."""
        return self._buffer

    def reserve(self, rows: int) -> None:
        """Makes room for ``rows`` more rows behind the pending ones; copies what is there when the buffer grows."""
        used = self._length + self._pending
        old = self._buffer
        lend = None if self._buffers is None else self._buffers.take
        self._buffer = grown(old, used, used + rows, self._step, lend)
        if self._buffers is not None and self._buffer is not old:
            self._buffers.give(old)

    def __del__(self) -> None:
        if self._buffers is not None:
            self._buffers.give(self._buffer)

    def write(self, layer: int, keys_HND: Tensor, values_HND: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
        """Puts N rows of one layer behind the pending ones. Returns that layer's keys and values from row ``first`` on,
        up to and with the new ones.

        ``reserve`` must have made room; ``advance`` makes the rows count once every layer is written.
        """
        start = self._length + self._pending
        end = start + keys_HND.shape[1]
        keys, values = self._buffer[layer]
        keys[:, start:end] = keys_HND
        values[:, start:end] = values_HND
        return keys[:, first:end], values[:, first:end]

    def advance(self, committed: int, pending: int) -> None:
        """Counts rows that every layer has written: ``committed`` of them first, then ``pending``."""
        assert committed == 0 or self._pending == 0, "rows cannot be committed behind pending ones"
        self._length += committed
        self._pending += pending

    def commit(self, path: Sequence[int]) -> None:
        assert not path or path[-1] < self._pending
        keep([self._buffer], self._length, path)
        self._length += len(path)
        self._pending = 0

    def truncate(self, pending: int) -> None:
        assert 0 <= pending <= self._pending
        self._pending = pending

    def rewind(self, length: int) -> None:
        assert 0 <= length <= self._length, f"cannot rewind from {self._length} to {length}"
        self._length = length
        self._pending = 0

    @torch.inference_mode()
    def fork(self, length: int) -> KVCache:
        assert 0 <= length <= self._length, f"cannot copy {length} rows of {self._length}"
        layers, _, kv_heads, _, head_size = self._buffer.shape
        copy = KVCache(
            (layers, kv_heads, head_size), self._buffer.dtype, self._buffer.device, self._step, self._buffers
        )
        copy.reserve(length)
        copy.buffer[..., :length, :] = self._buffer[..., :length, :]
        copy.advance(length, 0)
        return copy
