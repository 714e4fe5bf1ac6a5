"""Scores that are no numbers: NaN, infinite. What is drawn from them is some token; how likely, nobody can say."""

from __future__ import annotations

import math

from torch import Tensor

from ouroboros.config import Processor
from ouroboros.errors import InputError

__all__ = ["check_processed", "share"]


def share(score: float, best: float, total: float) -> float:
    """exp(score - best) / total; 0 where these are no numbers."""
    return math.exp(score - best) / total if score <= best < math.inf and 0 < total < math.inf else 0.0


def check_processed(processor: Processor, before_BV: Tensor, after_BV: Tensor) -> None:
    """
    Raises:
        InputError: a processor makes of numbers what is none. (It may force one token, by +inf.)
    """
    largest_B = after_BV.amax(-1)  # NaN, if there is one
    broken_B = largest_B.isnan() | (largest_B == math.inf)
    if bool(broken_B.any()):
        forced_B = ~largest_B.isnan() & ((after_BV == math.inf).sum(-1) == 1)
        if bool((broken_B & ~forced_B & before_BV.amax(-1).isfinite()).any()):
            name = getattr(processor, "__name__", type(processor).__name__)
            raise InputError(f"the processor {name} makes scores that are no numbers: NaN, or several infinite")
