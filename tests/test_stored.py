"""Blocks as numbers: to the bit what llama.cpp's own Python reference makes of them."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from ouroboros.models.stored import BLOCKS, StoredWeights
from tests.gguf_files import numbers_of, random_blocks


def stored(kind: str, rows: int = 37, columns: int = 512, seed: int = 0) -> tuple[StoredWeights, np.ndarray]:
    """Random blocks and their numbers."""
    blocks = random_blocks(kind, (rows, columns), seed)
    data = torch.frombuffer(bytearray(blocks.data), dtype=torch.uint8).view(rows, -1)
    return StoredWeights(kind, data, columns), numbers_of(blocks)


@pytest.mark.parametrize("kind", BLOCKS)
def test_bits(kind: str) -> None:
    for seed in range(5):
        mine, theirs = stored(kind, seed=seed)
        assert mine.shape == theirs.shape
        assert np.array_equal(mine.dequantised().numpy().view(np.uint32), theirs.view(np.uint32))
        assert np.abs(theirs).max() > 0.1


@pytest.mark.parametrize("kind", BLOCKS)
def test_any_bytes(kind: str) -> None:
    """Scales that are infinite or no numbers, too."""
    data = np.random.default_rng(1).integers(0, 256, (50, 512 // BLOCKS[kind].numbers * BLOCKS[kind].bytes), np.uint8)
    with np.errstate(all="ignore"):
        theirs = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
    mine = StoredWeights(kind, torch.from_numpy(data), 512).dequantised().numpy()
    assert np.array_equal(mine, theirs, equal_nan=True)


@pytest.mark.parametrize("kind", BLOCKS)
def test_sizes_are_those_of_ggml(kind: str) -> None:
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]] == BLOCKS[kind]


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q4_K", "Q6_K", "Q5_0"])
def test_rows_and_types(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, theirs = stored(kind)
    chosen = torch.tensor([5, 0, 36, 5])
    assert np.array_equal(mine.dequantised(chosen).numpy(), theirs[chosen.numpy()])
    assert np.array_equal(mine.dequantised(slice(3, 9)).numpy(), theirs[3:9])
    assert torch.equal(mine.dequantised(dtype=torch.bfloat16), torch.from_numpy(theirs).bfloat16())
    monkeypatch.setattr("ouroboros.models.stored.AT_ONCE", 1200)  # two rows at a time
    assert np.array_equal(mine.dequantised().numpy(), theirs)
    assert mine.dequantised(slice(0, 0)).shape == (0, 512)
