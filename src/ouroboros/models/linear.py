"""Linear layers of PyTorch's operators, in the weight format that is fastest for them.

``plain``: the checkpoint's matrix, any type and device. ``packed``: bfloat16 on a CPU in oneDNN's own blocked layout,
made once; several times as fast for a few rows, where ``plain`` lays it out anew in every call.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Linear", "linear", "packs"]

Linear = Callable[[Tensor], Tensor]


def linear(weight: Tensor, bias: Tensor | None, packed: bool) -> Linear:
    """x [N, inputs] to [N, outputs]; keeps the weight or its packed copy."""
    if not packed:
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
        return torch.equal(linear(weight, None, True)(x), F.linear(x, weight))
    except (RuntimeError, AttributeError):  # operators without a promise: another PyTorch may lack them
        return False
