"""Weights in 8 or 4 bits: what a matrix is rounded to. Every engine computes with these numbers (linear.py, kernels/).

``int8``: whole numbers from -127 to 127 and a scale for each output. ``int4``: from -8 to 7 and a scale for each group
of 32 inputs of an output, 4.5 bits a weight; the output matrix, whose errors nothing mends, is int8 then. ``w8a8``:
weights as int8; the C++ kernels also round what a product takes (kernels/w8a8.h), for draft models. Embeddings stay as
they are. It knows nothing of files or of how a product is computed.

Tensor names: O outputs, I inputs, G groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["GROUP", "QUANTISED", "Precision", "Quantised", "head_format", "quantise", "weight_bytes"]

QUANTISED = ("int8", "int4", "w8a8")
GROUP = 32  # inputs
AT_ONCE = 1 << 20  # weights whose floats are in memory together
# A group's largest weight becomes one of these before rounding: 8 uses all steps on its side, 9 cuts it off, 7 is
# kinder to the other side. The best by squared error, with the best scale for it, has 5 % less error than 8 alone.
TOPS = (7.0, 8.0, 9.0)
TINY = 1e-30  # what is smaller counts as zero
LARGEST = torch.finfo(torch.bfloat16).max  # and what is infinite (a token that is never to be) as this


@dataclass(frozen=True, slots=True)
class Precision:
    """``rows``: the type of activations, caches and logits. ``weights``: the matrices' format, by the name of that type
    or one of QUANTISED."""

    rows: torch.dtype
    weights: str

    @classmethod
    def of(cls, dtype: torch.dtype | str) -> Precision:
        """Rows and weights alike, or bfloat16 rows for a name of QUANTISED."""
        if isinstance(dtype, torch.dtype):
            return cls(dtype, str(dtype).removeprefix("torch."))
        return cls(torch.bfloat16 if dtype in QUANTISED else getattr(torch, dtype), dtype)

    @property
    def rounded(self) -> bool:
        """Whether weights are rounded to another format than the rows'."""
        return self.weights in QUANTISED


@dataclass(frozen=True, slots=True)
class Quantised:
    """A rounded matrix.

    Attributes:
        numbers: int8 [O, I], or for int4 uint8 [O, I], where 0 … 15 stand for -8 … 7.
        scale: fp32 [O], or for int4 bf16 [O, G], the last group filled up if need be.
    """

    numbers: Tensor
    scale: Tensor

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """[O, I]; computed in ``dtype``."""
        if self.scale.dim() == 1:
            return self.numbers.to(dtype) * self.scale.to(dtype)[:, None]
        steps = self.numbers.to(dtype) - 8
        return steps * self.scale.to(dtype).repeat_interleave(GROUP, 1)[:, : steps.shape[1]]


def head_format(weights: str) -> str:
    """The format of the output matrix in a model of this one."""
    return "int8" if weights == "int4" else weights


def weight_bytes(shapes: Mapping[str, Sequence[int]], dtype: str) -> int:
    """Bytes of a checkpoint's tensors in a model of this dtype: a name of torch's, or of QUANTISED."""
    counts = {name: math.prod(shape) for name, shape in shapes.items()}
    if dtype not in QUANTISED:
        return sum(counts.values()) * getattr(torch, dtype).itemsize  # type: ignore[no-any-return]
    return math.ceil(sum(count * _rounded_bytes(name, dtype) for name, count in counts.items()))


def _rounded_bytes(name: str, dtype: str) -> float:
    """Of one number of a tensor."""
    if "norm" in name or name.endswith(".bias"):
        return 4
    if "embed_tokens" in name:
        return 2
    return 1 if dtype != "int4" or "lm_head" in name else 0.5 + 2 / GROUP


def quantise(weight_OI: Tensor, weights: str) -> Quantised:
    """Rounds a matrix of any type, on its device."""
    rows = max(1, AT_ONCE // weight_OI.shape[1])
    round_rows = {"int8": _int8, "int4": _int4, "w8a8": _int8}[weights]
    parts = [round_rows(part.float()) for part in weight_OI.split(rows)]
    return Quantised(torch.cat([numbers for numbers, _ in parts]), torch.cat([scale for _, scale in parts]))


def _int8(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    weight_OI = weight_OI.clamp(-LARGEST, LARGEST)
    top = weight_OI.abs().amax(1)
    inverse = torch.where(top > TINY, top.new_tensor(127) / top, 0)
    return (weight_OI * inverse[:, None]).round_().to(torch.int8), top / 127


def _int4(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    outputs, inputs = weight_OI.shape
    groups = F.pad(weight_OI, (0, -inputs % GROUP)).view(outputs, -1, GROUP)
    low, high = groups.aminmax(dim=-1, keepdim=True)
    top = torch.where(-low >= high, low, high)
    # A number over a tensor would be a product with reciprocals, rounded twice.
    best = torch.zeros_like(groups)
    fit, gain = torch.zeros_like(top, dtype=torch.float64), torch.full_like(top, -1, dtype=torch.float64)
    for steps in TOPS:
        numbers = (groups * torch.where(top.abs() > TINY, top.new_tensor(-steps) / top, 0)).round_().clamp_(-8, 7)
        # In fp64 the sums of bf16 weights are exact, so that the kernels find the same in another order.
        product = (numbers * groups).sum(-1, keepdim=True, dtype=torch.float64)
        found = product / numbers.square().sum(-1, keepdim=True, dtype=torch.float64).clamp_min_(1)
        better = product * found > gain  # the squared error is the weights' own, less this
        best, fit = torch.where(better, numbers, best), torch.where(better, found, fit)
        gain = torch.where(better, product * found, gain)
    return (best + 8).to(torch.uint8).flatten(1)[:, :inputs], fit.squeeze(-1).float().bfloat16()
