"""RowSlot: one sequence's rows in transformers' own kind of cache, so that rows can be dropped and moved.

Its layers keep all rows, also those behind a sliding window: the masks hide them. Invariant: every layer that was
written holds the committed rows, then the pending ones, and nobody but the model's forward appends to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer

from ouroboros.models.rows import grown, keep

__all__ = ["RowSlot", "states"]

STEP = 256  # rows by which a layer's buffer grows at least


class _RowLayer(DynamicLayer):
    """Keys and values of one layer, [1, heads, rows, size], in buffers that are allocated ahead and grow in steps."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.buffers: list[Tensor] = []
        self._used = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.buffers = [states[:, :, :0] for states in (key_states, value_states)]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends rows. Returns the keys and values of all rows."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self._used, self._used + key_states.shape[2]
        self.buffers = [grown(buffer, start, end, STEP) for buffer in self.buffers]
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        return self.show(end)

    def get_seq_length(self) -> int:
        return self._used

    def show(self, rows: int) -> tuple[Tensor, Tensor]:
        """From now on the layer has the buffers' first ``rows`` rows."""
        self._used = rows
        keys, values = (buffer[:, :, :rows] for buffer in self.buffers)
        self.keys, self.values = keys, values
        return keys, values


class _RowCache(DynamicCache):
    """Libraries that put rows of their own in a cache ask whether it is of this kind."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_class_to_replicate = _RowLayer


def states(cache: Cache) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The number, keys and values of each layer that was written."""
    for index, layer in enumerate(cache.layers):
        if isinstance(layer, CacheLayerMixin) and layer.is_initialized:
            assert isinstance(layer.keys, Tensor) and isinstance(layer.values, Tensor)
            yield index, layer.keys, layer.values


class RowSlot:
    """See base.Slot. ``cache`` is what the model's forward is given.

    Attributes:
        ahead: how far position ids are ahead of the rows' numbers; [..., 1, 1] where a position is several numbers.
        beside: further inputs of the forward, [1, 1] each, the same for every row.
    """

    def __init__(self) -> None:
        self.cache = _RowCache()
        self.length = 0
        self.pending = 0
        self.ahead: int | Tensor = 0
        self.beside: dict[str, Tensor] = {}

    @property
    def shifted(self) -> bool:
        """Whether its rows have positions or inputs of their own."""
        return bool(self.beside) or isinstance(self.ahead, Tensor) or self.ahead != 0

    @classmethod
    def of(cls, cache: Cache, rows: int, sequence: int | None = None, kept: Tensor | None = None) -> RowSlot:
        """Committed rows from another cache, copied.

        Args:
            cache: its layers hold keys and values [sequences, heads, rows, size]. rows: how many each had; of layers
                that hold the last ones alone the others are zeros, which nobody sees. sequence: one of them; None: all.
            kept: the numbers of those that count, ascending; None: all.
        """
        slot = cls()
        chosen = slice(None) if sequence is None else slice(sequence, sequence + 1)

        def taken(states: Tensor) -> Tensor:
            part = states[chosen]
            lost = part.new_zeros((*part.shape[:2], rows - part.shape[2], part.shape[3]))
            part = torch.cat((lost, part), dim=2)
            return part if kept is None else part.index_select(2, kept.to(part.device))

        for index, keys, values in states(cache):
            slot.cache.update(taken(keys), taken(values), index)
        slot.length = rows if kept is None else len(kept)
        return slot

    def reopen(self) -> None:
        """The last committed row becomes pending: the root of a tree, scored already."""
        assert self.pending == 0 < self.length
        self.length, self.pending = self.length - 1, 1

    @property
    def rows(self) -> set[int]:
        """How many rows the layers hold: one number, unless a model does not write one row a token."""
        return {layer.get_seq_length() for layer in self._layers}

    @property
    def _layers(self) -> list[_RowLayer]:
        return [layer for layer in self.cache.layers if isinstance(layer, _RowLayer) and layer.is_initialized]

    def advance(self, committed: int, pending: int) -> None:
        """Counts rows that a forward has appended."""
        self.length += committed
        self.pending += pending

    @torch.no_grad()
    def commit(self, path: Sequence[int]) -> None:
        assert not path or path[-1] < self.pending
        keep((buffer for layer in self._layers for buffer in layer.buffers), self.length, path)
        self._cut(self.length + len(path), 0)

    def truncate(self, pending: int) -> None:
        assert 0 <= pending <= self.pending
        self._cut(self.length, pending)

    def rewind(self, length: int) -> None:
        assert 0 <= length <= self.length, f"cannot rewind from {self.length} to {length}"
        self._cut(length, 0)

    @torch.no_grad()
    def fork(self, length: int) -> RowSlot:
        assert 0 <= length <= self.length, f"cannot copy {length} rows of {self.length}"
        copy = RowSlot()
        for number, layer in enumerate(self.cache.layers):
            if isinstance(layer, _RowLayer) and layer.is_initialized:
                keys, values = (buffer[:, :, :length] for buffer in layer.buffers)
                copy.cache.update(keys, values, number)
        copy.ahead, copy.beside = self.ahead, dict(self.beside)
        copy.advance(length, 0)
        return copy

    def _cut(self, length: int, pending: int) -> None:
        for layer in self._layers:
            layer.show(length + pending)
        self.length, self.pending = length, pending
