"""Several sequences in one forward of a transformers model: each keeps its own cache, and is padded to the longest.

A sequence's rows stand at the left; what fills up is masked, and nothing that fills up is kept. Layers see the caches
side by side, which costs a copy of their rows in each forward, less than reading the weights once more.

Tensor names: B sequences, N new rows of the longest, T cached rows of the longest, with the new ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from ouroboros.models.transformers_cache import RowSlot

__all__ = ["SideBySide", "padded_masks"]


class SideBySide(Cache):
    """The caches of these slots as one of a batch; ``counts``: how many of the N rows each slot keeps."""

    def __init__(self, slots: Sequence[RowSlot], counts: Sequence[int]) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self._slots, self._counts = slots, counts

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Appends each sequence's rows to its own cache. Returns keys and values [B, heads, T, size]."""
        found = []
        for number, (slot, count) in enumerate(zip(self._slots, self._counts, strict=True)):
            keys, values = (states[number : number + 1, :, :count] for states in (key_states, value_states))
            found.append(slot.cache.update(keys, values, layer_idx))
        longest = max(keys.shape[2] for keys, _ in found)
        batch, heads, _, size = key_states.shape
        all_keys = key_states.new_zeros((batch, heads, longest, size))
        all_values = value_states.new_zeros((batch, value_states.shape[1], longest, value_states.shape[3]))
        for number, (keys, values) in enumerate(found):
            all_keys[number, :, : keys.shape[2]] = keys[0]
            all_values[number, :, : values.shape[2]] = values[0]
        return all_keys, all_values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return max(slot.length + slot.pending for slot in self._slots)


def padded_masks(masks: Sequence[Tensor]) -> Tensor:
    """Additive masks [1, 1, n, t] of each sequence as one, [B, 1, N, T]; rows that fill up see the first one alone."""
    rows, columns = (max(mask.shape[axis] for mask in masks) for axis in (2, 3))
    least = torch.finfo(masks[0].dtype).min
    padded = masks[0].new_full((len(masks), 1, rows, columns), least)
    for number, mask in enumerate(masks):
        padded[number, :, : mask.shape[2], : mask.shape[3]] = mask[0]
        padded[number, :, mask.shape[2] :, 0] = 0
    return padded
