"""Matrices as GGUF files hold them: rows of blocks, and the float32 numbers that these stand for.

A block is some numbers in a row with what scales them (ggml-common.h of llama.cpp has the layouts). Numbers come out
with the bits of llama.cpp's own Python reference, ``gguf.quants``: products and differences in float32, in its order.
It knows nothing of files or of how a product is computed.

Tensor names: R rows, B bytes of a row, N blocks, C columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["BLOCKS", "HALVES", "BlockSize", "StoredWeights"]

AT_ONCE = 1 << 18  # numbers whose steps are in memory together


class BlockSize(NamedTuple):
    """``numbers`` of a row make one block of ``bytes``."""

    numbers: int
    bytes: int


# By ggml's names of types. Those of one number to a block are plain little-endian floats.
BLOCKS: Mapping[str, BlockSize] = {
    "F32": BlockSize(1, 4),
    "F16": BlockSize(1, 2),
    "BF16": BlockSize(1, 2),
    "Q4_0": BlockSize(32, 18),
    "Q5_0": BlockSize(32, 22),
    "Q8_0": BlockSize(32, 34),
    "Q4_K": BlockSize(256, 144),
    "Q5_K": BlockSize(256, 176),
    "Q6_K": BlockSize(256, 210),
}
# Where a block's float16 lie: of its numbers, and of what each has less.
HALVES: Mapping[str, tuple[int, ...]] = {
    "Q4_0": (0,),
    "Q5_0": (0,),
    "Q8_0": (0,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}


@dataclass(frozen=True)
class StoredWeights:
    """A matrix in one of the types of BLOCKS.

    Attributes:
        kind: ggml's name of the type. bytes_RB: uint8 [rows, bytes of a row], where they lie in the file, mapped into
            memory and not copied (but for matrices whose rows a file keeps in another order). columns: numbers of a
            row, a multiple of the block's.
    """

    kind: str
    bytes_RB: Tensor
    columns: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.bytes_RB.shape[0], self.columns

    def finite(self) -> bool:
        """Whether all numbers are: a block's are, where its float16 are."""
        if self.kind not in HALVES:
            return all(bool(part.isfinite().all()) for part in self.dequantised().split(1024))
        blocks_NB = self.bytes_RB.reshape(-1, BLOCKS[self.kind].bytes)
        return all(bool(_half(blocks_NB, at).isfinite().all()) for at in HALVES[self.kind])

    def dequantised(self, rows: slice | Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """The numbers [rows, columns]: of a slice of the rows, of those that an int64 tensor lists, or all. They are
        computed in float32, then rounded to ``dtype``."""
        chosen_RB = self.bytes_RB if rows is None else self.bytes_RB[rows]
        out_RC = torch.empty((chosen_RB.shape[0], self.columns), dtype=dtype)
        size = BLOCKS[self.kind].bytes
        step = max(1, AT_ONCE // max(1, self.columns))
        for start in range(0, chosen_RB.shape[0], step):
            part_RB = chosen_RB[start : start + step]
            blocks_NB = part_RB.reshape(-1, size) if size > 4 else part_RB
            out_RC[start : start + step] = _NUMBERS[self.kind](blocks_NB).reshape(part_RB.shape[0], self.columns)
        return out_RC


def _floats(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda bytes_RB: bytes_RB.contiguous().view(dtype).float()


def _half(blocks_NB: Tensor, at: int) -> Tensor:
    """[N, 1]: the float16 that lies there."""
    return blocks_NB[:, at : at + 2].contiguous().view(torch.float16).float()


def _wide(whole: Tensor) -> Tensor:
    """Whole numbers of 8 bits as float32; NumPy takes a tenth of PyTorch's time."""
    return torch.from_numpy(whole.numpy().astype(np.float32))


def _bits(bytes_NB: Tensor, width: int, shifts: range, mask: int) -> Tensor:
    """For every ``width`` bytes: these bits of them all at the first shift, at the second, and so on; [N, …]."""
    # A view's only row is contiguous, and may begin anywhere.
    own_NB = bytes_NB.clone(memory_format=torch.contiguous_format)
    words = own_NB.view(torch.int32).view(bytes_NB.shape[0], -1, 1, width // 4)  # four bytes at once
    mask *= 0x01010101
    return torch.cat([words >> shift & mask for shift in shifts], 2).flatten(1).view(torch.uint8)


def _nibbles(bytes_NB: Tensor, width: int) -> Tensor:
    return _bits(bytes_NB, width, range(0, 8, 4), 15)


def _q4_0(blocks_NB: Tensor) -> Tensor:
    return _wide(_nibbles(blocks_NB[:, 2:], 16)).sub_(8).mul_(_half(blocks_NB, 0))


def _q5_0(blocks_NB: Tensor) -> Tensor:
    shifts = torch.arange(8, dtype=torch.uint8)
    high = (blocks_NB[:, 2:6, None] >> shifts & 1).flatten(1)  # bit i of four bytes is number i's
    numbers = _nibbles(blocks_NB[:, 6:], 16) | high << 4
    return _wide(numbers).sub_(16).mul_(_half(blocks_NB, 0))


def _q8_0(blocks_NB: Tensor) -> Tensor:
    return _wide(blocks_NB[:, 2:].contiguous().view(torch.int8)).mul_(_half(blocks_NB, 0))


def _scales_and_minima(blocks_NB: Tensor) -> tuple[Tensor, Tensor]:
    """[N, 8, 1] each, of groups of 32 numbers: 6-bit whole numbers in 12 bytes, times the block's two float16."""
    low, middle, high = blocks_NB[:, 4:16].split(4, 1)
    scales = torch.cat((low & 63, high & 15 | low >> 2 & 48), 1)
    minima = torch.cat((middle & 63, high >> 4 | middle >> 2 & 48), 1)
    return (_half(blocks_NB, 0) * _wide(scales))[..., None], (_half(blocks_NB, 2) * _wide(minima))[..., None]


def _q4_k(blocks_NB: Tensor) -> Tensor:
    scales, minima = _scales_and_minima(blocks_NB)
    return _wide(_nibbles(blocks_NB[:, 16:], 32)).view(-1, 8, 32).mul_(scales).sub_(minima)


def _q5_k(blocks_NB: Tensor) -> Tensor:
    scales, minima = _scales_and_minima(blocks_NB)
    numbers = _nibbles(blocks_NB[:, 48:], 32) | _bits(blocks_NB[:, 16:48], 32, range(8), 1) << 4
    return _wide(numbers).view(-1, 8, 32).mul_(scales).sub_(minima)


def _q6_k(blocks_NB: Tensor) -> Tensor:
    low = _bits(blocks_NB[:, :128], 64, range(0, 8, 4), 15)
    high = _bits(blocks_NB[:, 128:192], 32, range(0, 8, 2), 3)
    scales = _wide(blocks_NB[:, 192:208].contiguous().view(torch.int8)) * _half(blocks_NB, 208)
    return _wide(low | high << 4).sub_(32).view(-1, 16, 16).mul_(scales[..., None])


_NUMBERS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "F32": _floats(torch.float32),
    "F16": _floats(torch.float16),
    "BF16": _floats(torch.bfloat16),
    "Q4_0": _q4_0,
    "Q5_0": _q5_0,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
