"""Weights as GGUF files hold them, in the C++ kernels: against the same arithmetic written out in float64."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from ouroboros import Decoder
from ouroboros.config import METHODS, options_for
from ouroboros.drafting.factory import NEEDS_DRAFT
from ouroboros.kernels import library
from ouroboros.models.llama import LlamaModel
from ouroboros.models.loading import parse_config
from ouroboros.models.packed import KINDS, STORED, Arena, Matrix, Part
from ouroboros.models.quantised import Precision
from ouroboros.models.stored import BLOCKS, HALVES, StoredWeights
from tests.blocks import StoredTensors, random_blocks
from tests.test_kernels import (
    CPU,
    filled,
    life,
    needed,
    one_by_one,
    random_tree,
    same_bits_in_pieces,
    score,
    text,
)

pytestmark = needed
GROUP = 32  # inputs that are rounded together
MIXED = ("Q4_K", "Q6_K", "Q5_0", "F16", "Q8_0", "Q5_K", "Q4_0", "BF16", "F32")


class Packed:
    """A packed matrix of these parts; keeps its memory."""

    def __init__(self, *stored: StoredWeights, paired: bool = False) -> None:
        found = library.library()
        assert not isinstance(found, str)
        self.library, arena = found, Arena(1 << 16)
        self.held: list[object] = [arena]
        parts = []
        for each in stored:
            shape = KINDS[each.kind], *each.shape
            size = found.ouroboros_stored_size(*shape)
            assert size == -(-each.shape[0] // 16) * 16 * each.bytes_RB.shape[1]
            to = arena.take(size)
            found.ouroboros_stored_pack(shape[0], each.bytes_RB.data_ptr(), *shape[1:], to)
            parts.append(Part(to, KINDS[each.kind], each.shape[0]))
        array = (Part * len(parts))(*parts)
        self.held.append(array)
        outputs = sum(part.outputs for part in parts)
        self.matrix = Matrix(
            None, None, None, outputs, stored[0].columns, ctypes.addressof(array), len(parts), int(paired)
        )
        self.width = -(-parts[0].outputs // 16) * 32 if paired else outputs

    def product(self, rows: Tensor) -> Tensor:
        out = torch.full((len(rows), self.width), torch.nan)
        x = rows.contiguous()
        self.library.ouroboros_stored_product(ctypes.addressof(self.matrix), x.data_ptr(), len(rows), out.data_ptr())
        return out


def rounded(rows: Tensor) -> Tensor:
    """As the kernels round rows: to 8 bits, each 32 inputs with a scale of their own; float64."""
    groups = rows.view(len(rows), -1, GROUP)
    top = groups.abs().amax(-1, keepdim=True)
    numbers = (groups * torch.where(top > 1e-30, 127 / top, 0)).round()
    return (numbers.double() * (top / 127).double()).view(rows.shape)


def expected(stored: StoredWeights, rows: Tensor) -> Tensor:
    x = rounded(rows) if stored.kind in HALVES else rows.double()
    return x @ stored.dequantised().double().T


def activations(count: int, inputs: int, seed: int = 0) -> Tensor:
    """Rows with outliers, a group of zeros and one of tiny numbers."""
    x = torch.randn(count, inputs, generator=torch.Generator().manual_seed(seed))
    x[:, ::37] *= 30
    x[:, :GROUP] = 0
    x[:, -GROUP:] *= 1e-20
    return x


def near(got: Tensor, want: Tensor, sizes: Tensor) -> None:
    """``sizes``: of what was added up."""
    assert ((got.double() - want).abs() <= 2e-6 * sizes + 1e-30).all()


@pytest.mark.parametrize("outputs", [1, 16, 17, 50])
@pytest.mark.parametrize("kind", BLOCKS)
def test_products(kind: str, outputs: int) -> None:
    """Every kind, for any number of outputs, inputs and rows; a row's bits are those that it has alone."""
    block = BLOCKS[kind].numbers
    for inputs in {1: (32, 256, 7, 130, 300), 32: (32, 96, 256, 544), 256: (256, 768)}[block]:
        stored = random_blocks(kind, outputs, inputs, seed=inputs)
        packed = Packed(stored)
        x = activations(17, inputs, seed=outputs)
        alone = torch.cat([packed.product(row[None]) for row in x])
        want = expected(stored, x)
        used = rounded(x) if kind in HALVES else x.double()
        near(alone, want, used.abs() @ stored.dequantised().double().abs().T)
        for count in range(1, 18):
            assert torch.equal(packed.product(x[17 - count :]), alone[17 - count :])
        many = x.repeat(6, 1)  # more rows than a panel is read once for
        assert torch.equal(packed.product(many), alone.repeat(6, 1))


@pytest.mark.parametrize("kind", HALVES)
def test_extremes(kind: str) -> None:
    """The largest numbers times the largest: sums of 16 bits do not run over."""
    columns = BLOCKS[kind].numbers
    for byte in (0, 255, 0x0F, 0xF0, 0x80, 0x7F):
        found = torch.full((16, BLOCKS[kind].bytes), byte, dtype=torch.uint8)
        for at in HALVES[kind]:
            found[:, at : at + 2] = torch.tensor([1.0], dtype=torch.float16).view(torch.uint8)
        stored = StoredWeights(kind, found, columns)
        ones, signs = torch.ones(3, columns), torch.tensor([1.0, -1]).repeat(columns // 2)
        for x in (ones, -ones, ones * signs):
            weights = stored.dequantised().double()
            near(Packed(stored).product(x), x.double() @ weights.T, weights.abs().sum(1)[None])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("kind", BLOCKS)
def test_what_is_no_number_stays_none(kind: str, value: float) -> None:
    packed = Packed(random_blocks(kind, 20, 256))
    x = activations(3, 256)
    x[1, 100] = value
    got = packed.product(x)
    assert not got[1].isfinite().any()
    assert got[[0, 2]].isfinite().all()


def test_parts() -> None:
    """Of unlike kinds: one behind the other, or in pairs of 16 outputs of each."""
    x = activations(7, 512)
    kinds = ("Q4_K", "Q6_K", "F16", "Q5_0")
    parts = [random_blocks(kind, rows, 512, rows) for kind, rows in zip(kinds, (40, 3, 32, 70), strict=True)]
    assert torch.equal(Packed(*parts).product(x), torch.cat([Packed(part).product(x) for part in parts], 1))
    gate, up = random_blocks("Q4_K", 40, 512, 1), random_blocks("Q8_0", 40, 512, 2)
    both = Packed(gate, up, paired=True).product(x).view(7, 3, 2, 16)
    for i, part in enumerate((gate, up)):
        assert torch.equal(both[:, :, i].reshape(7, 48)[:, :40], Packed(part).product(x))


BASE: Mapping[str, Any] = {
    "model_type": "llama",
    "vocab_size": 75,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": True},
    "fused": {"model_type": "phi3"},
    "window": {"model_type": "mistral", "sliding_window": 5},
    "multipliers": {
        "model_type": "granite",
        "attention_multiplier": 0.1,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.6,
        "logits_scaling": 7.0,
    },
    "gemma3": {"model_type": "gemma3_text", "sliding_window": 5, "sliding_window_pattern": 2},
}


def pair(kinds: Sequence[str], variant: str = "plain", **more: Any) -> tuple[LlamaModel, LlamaModel]:
    """With weights as they are stored, and the same weights in float64."""
    config = parse_config({**BASE, **VARIANTS[variant], **more})
    tensors = StoredTensors(config.shapes(), kinds, 3)
    precisions = (Precision(torch.float32, STORED), "kernels"), (Precision.of(torch.float64), "plain")
    mine, exact = (LlamaModel(config, tensors, frozenset(), p, CPU, engine) for p, engine in precisions)
    assert (mine.info.dtype, mine.info.engine) == (STORED, "kernels")
    return mine, exact


@pytest.mark.parametrize("variant", VARIANTS)
def test_models(variant: str) -> None:
    """Mixed as files mix them; and as exact as float32 where nothing is rounded."""
    mine, exact = pair(MIXED, variant)
    want = life(exact)
    assert 1e-5 < (life(mine) - want).abs().mean() / want.abs().mean() < 0.04
    for kind in ("F32", "F16", "BF16"):
        mine, exact = pair([kind], variant)
        want = life(exact)
        assert (life(mine) - want).abs().max() <= 2e-5 * want.abs().max()


@pytest.mark.parametrize("kind", HALVES)
def test_rounding_of_rows(kind: str) -> None:
    """What rows of 8 bits cost, against the same weights in float64."""
    mine, exact = pair([kind])
    want = life(exact)
    assert (life(mine) - want).abs().mean() <= 0.03 * want.abs().mean()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kinds", [["Q4_K", "Q6_K", "Q4_K"], MIXED, ["Q5_0", "Q8_0"]], ids=str)
def test_trees_have_the_bits_of_plain_decoding(variant: str, kinds: Sequence[str]) -> None:
    mine, _ = pair(kinds, variant)
    written = text(37)
    same_bits_in_pieces(mine, written, ([37], [1, 36], [17, 20], [20, 4, 13]))
    tree = random_tree(33, 4)
    got = score(mine, filled(mine, written), tree)
    for node in (0, 7, 32):
        assert torch.equal(got[node], one_by_one(mine, [*written, tree.tokens[0], *tree.path_tokens(node)])[-1])


@pytest.mark.parametrize("method", METHODS)
def test_methods_write_what_plain_decoding_writes(method: str) -> None:
    target, _ = pair(["Q4_K", "Q6_K", "Q4_K"])
    draft = pair(["Q5_0", "Q8_0"], "window")[0] if method in NEEDS_DRAFT else None
    chosen: tuple[dict[str, Any], ...] = ({}, {"temperature": 0.8, "top_p": 0.9})
    for settings in chosen:
        texts = [
            Decoder(target, used, None, name, options_for(name, None), None)
            .generate([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 3, 1, 4, 1], max_new_tokens=40, seed=7, **settings)
            .token_ids
            for name, used in (("autoregressive", None), (method, draft))
        ]
        assert texts[0] == texts[1]


def test_sizes() -> None:
    """None for a kind that is not there, or rows that are no whole blocks."""
    found = library.library()
    assert not isinstance(found, str)
    assert found.ouroboros_stored_size(KINDS["Q4_K"], 16, 255) == 0
    assert found.ouroboros_stored_size(KINDS["Q4_0"], 16, 33) == 0
    assert found.ouroboros_stored_size(3, 16, 256) == 0
