"""Random matrices in the blocks of GGUF files, and a model's tensors made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ouroboros.models.stored import BLOCKS, HALVES, StoredWeights

# Numbers of this size come of random bits with a float16 of 1: |number - middle| times a scale within the block.
SPREAD = {"Q4_0": 4.6, "Q5_0": 9.2, "Q8_0": 74, "Q4_K": 260, "Q5_K": 540, "Q6_K": 1370}


def random_blocks(kind: str, rows: int, columns: int, seed: int = 0, size: float = 0.1) -> StoredWeights:
    """Any bits, about ``size`` large; blocks of nothing but zeros and of the largest numbers among them."""
    source = np.random.default_rng(seed)
    block = BLOCKS[kind]
    if kind in ("F32", "F16", "BF16"):
        values = torch.from_numpy(source.standard_normal((rows, columns), dtype=np.float32) * size)
        dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
        return StoredWeights(kind, values.to(dtype).view(torch.uint8), columns)
    count = columns // block.numbers
    found = source.integers(0, 256, (rows, count, block.bytes), dtype=np.uint8)
    found[source.random((rows, count)) < 0.05] = 0
    found[source.random((rows, count)) < 0.05] = 255
    for i, at in enumerate(HALVES[kind]):
        sign = source.choice([-1.0, 1.0], (rows, count)) if not i and len(HALVES[kind]) == 1 else np.ones((rows, count))
        scale = size / SPREAD[kind] * (8 if kind == "Q4_K" and i else 16 if i else 1)
        halves = (source.random((rows, count)) + 0.5) * scale * sign
        found[:, :, at : at + 2] = halves.astype(np.float16)[..., None].view(np.uint8)
    return StoredWeights(kind, torch.from_numpy(found.reshape(rows, -1)), columns)


class StoredTensors:
    """A model's tensors: matrices in the kinds given, in turn, or by the end of their names; vectors in float32."""

    dtype = torch.float32

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], kinds: Sequence[str] | Mapping[str, str], seed: int = 0
    ) -> None:
        self.matrices: dict[str, StoredWeights] = {}
        self.vectors: dict[str, Tensor] = {}
        source = torch.Generator().manual_seed(seed)
        for i, (name, shape) in enumerate(shapes.items()):
            if len(shape) == 1:
                noise = torch.randn(shape, generator=source)
                self.vectors[name] = 1 + 0.1 * noise if "norm" in name else 0.1 * noise
                continue
            if isinstance(kinds, Mapping):
                kind = next(kind for end, kind in kinds.items() if name.removesuffix(".weight").endswith(end))
            else:
                kind = kinds[i % len(kinds)]
            self.matrices[name] = random_blocks(kind, shape[0], shape[1], seed + i, shape[1] ** -0.5)

    def shape(self, name: str) -> tuple[int, ...] | None:
        if name in self.vectors:
            return tuple(self.vectors[name].shape)
        return self.matrices[name].shape if name in self.matrices else None

    def get(self, name: str) -> Tensor:
        return self.vectors[name] if name in self.vectors else self.matrices[name].dequantised()

    def stored(self, name: str) -> StoredWeights:
        return self.matrices[name]

    def release(self, name: str) -> None:
        pass
