"""Operators over a few rows of logits on the calling thread alone.

PyTorch shares anything above 32,768 elements among its threads. For a step's logits that wins microseconds at best, and
loses milliseconds where another program, or the kernels' own phases, keep one of these threads off its core.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

__all__ = ["on_this_thread"]

FEW = 1 << 20  # elements; above, sharing pays

Self = TypeVar("Self")
Rest = ParamSpec("Rest")
Result = TypeVar("Result")
Method = Callable[Concatenate[Self, Tensor, Rest], Result]


def on_this_thread(method: Method[Self, Rest, Result]) -> Method[Self, Rest, Result]:
    """A method whose first argument is a matrix of logits, without gradients and, for few elements, without threads."""

    @functools.wraps(method)
    def call(self: Self, logits_RV: Tensor, /, *rest: Rest.args, **named: Rest.kwargs) -> Result:
        threads = torch.get_num_threads()
        alone = threads > 1 and logits_RV.device.type == "cpu" and logits_RV.numel() <= FEW
        if alone:
            torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                return method(self, logits_RV, *rest, **named)
        finally:
            if alone:
                torch.set_num_threads(threads)

    return call
