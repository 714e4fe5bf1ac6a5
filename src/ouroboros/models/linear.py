"""Linear layers of PyTorch's operators, by weight format.

``plain``: the checkpoint's matrix, any type and device. ``packed``: bfloat16 on a CPU in oneDNN's own blocked layout,
made once; several times as fast for a few rows, where ``plain`` lays it out anew in every call. ``int8``, ``int4``,
``w8a8``: rounded weights (quantised.py), with PyTorch's operators for them where these take the shape and give the
right numbers on the device; else the matrix is written out in the rows' type for each product.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ouroboros.models.quantised import GROUP, QUANTISED, Quantised, quantise

__all__ = ["Linear", "linear", "packs"]

Linear = Callable[[Tensor], Tensor]
FEW = 6  # rows up to which PyTorch's operator for int8 beats writing the matrix out, on two cores of a Zen 4
INNER_TILES = 8  # of 16 inputs, in CUDA's layout of 4-bit weights


def linear(weight: Tensor, bias: Tensor | None, how: str) -> Linear:
    """x [N, inputs] to [N, outputs]; keeps the weight, or its packed or rounded copy. ``how``: a format above."""
    if how in QUANTISED:
        run = {"int8": _int8, "int4": _int4, "w8a8": _int8}[how](quantise(weight, how), weight.dtype)
        return run if bias is None else lambda x: run(x) + bias
    if how == "plain":
        return lambda x: F.linear(x, weight, bias)
    laid_out = torch.ops.mkldnn._reorder_linear_weight(weight)
    run = torch.ops.mkldnn._linear_pointwise
    return lambda x: run(x.contiguous(), laid_out, bias, "none", [], "")


@cache
def packs(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether oneDNN packs such weights here and computes with them."""
    if device.type != "cpu" or dtype != torch.bfloat16:
        return False
    try:
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        x, weight = torch.ones(2, 32, dtype=dtype), torch.ones(16, 32, dtype=dtype)
        return torch.equal(linear(weight, None, "packed")(x), F.linear(x, weight))
    except (RuntimeError, AttributeError):  # operators without a promise: another PyTorch may lack them
        return False


def _int8(matrix: Quantised, dtype: torch.dtype) -> Linear:
    few = FEW if _takes("int8", matrix) and _computes("int8", dtype, matrix.numbers.device) else 0
    run, scale = _int8_operator(matrix, dtype), matrix.scale.to(dtype)
    return lambda x: run(x) if len(x) <= few else F.linear(x, matrix.numbers.to(dtype)) * scale


def _int4(matrix: Quantised, dtype: torch.dtype) -> Linear:
    if _takes("int4", matrix) and _computes("int4", dtype, matrix.numbers.device):
        return _int4_operator(matrix, dtype)
    inputs, scale = matrix.numbers.shape[1], matrix.scale
    even = F.pad(matrix.numbers, (0, inputs % 2))
    pairs = even[:, ::2] | even[:, 1::2] << 4

    def run(x: Tensor) -> Tensor:
        numbers = torch.stack((pairs & 15, pairs >> 4), -1).flatten(1)[:, :inputs]
        return F.linear(x, Quantised(numbers, scale).dequantised(dtype))

    return run


def _takes(how: str, matrix: Quantised) -> bool:
    """Whether PyTorch's operators take such a shape; some read beyond others."""
    outputs, inputs = matrix.numbers.shape
    cuda = matrix.numbers.device.type == "cuda"
    return outputs % 32 == 0 and inputs % (16 * INNER_TILES if cuda and how == "int4" else 32) == 0


@cache
def _computes(how: str, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether PyTorch's operator for such weights is there, and right."""
    weight = torch.linspace(-1, 1, 64 * 128, device=device).sin().view(64, 128).to(dtype)
    x = torch.linspace(0, 3, 2 * 128, device=device).cos().view(2, 128).to(dtype)
    matrix = quantise(weight, how)
    expected = F.linear(x.float(), matrix.dequantised(torch.float32))
    try:
        got = (_int8_operator if how == "int8" else _int4_operator)(matrix, dtype)(x)
    except (RuntimeError, AttributeError):  # no promise here either
        return False
    return bool((got.float() - expected).abs().max() <= 0.02 * expected.abs().max())


def _int8_operator(matrix: Quantised, dtype: torch.dtype) -> Linear:
    scale = matrix.scale.to(dtype)
    return lambda x: torch.ops.aten._weight_int8pack_mm(x.contiguous(), matrix.numbers, scale)


def _int4_operator(matrix: Quantised, dtype: torch.dtype) -> Linear:
    """Offsets, which these operators add, are zero here: their 0 … 15 stand for -8 … 7 as well."""
    operators, numbers = torch.ops.aten, matrix.numbers
    scale = torch.stack((matrix.scale, torch.zeros_like(matrix.scale)), -1).transpose(0, 1).contiguous().to(dtype)
    if numbers.device.type == "cuda":
        packed = operators._convert_weight_to_int4pack(numbers[:, ::2] << 4 | numbers[:, 1::2], INNER_TILES)
        run = operators._weight_int4pack_mm
    else:
        packed = operators._convert_weight_to_int4pack_for_cpu(numbers.int(), 1)
        run = operators._weight_int4pack_mm_for_cpu
    return lambda x: run(x.contiguous(), packed, GROUP, scale)
