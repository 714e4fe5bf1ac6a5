"""Rotary position embeddings: the turn itself, and the frequencies of the rope types that a cache can be kept with.

Tensor names: H heads, N rows, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ouroboros.errors import LoadError, UnsupportedArchitecture

__all__ = ["rotary_frequencies", "rotate"]

GROWING = ("dynamic", "longrope")  # the angles of all tokens change with the length of the text


def rotate(x_HND: Tensor, cos_ND: Tensor, sin_ND: Tensor) -> Tensor:
    """Rotary embedding in the half-split layout of Hugging Face checkpoints (Su et al. 2021)."""
    half = x_HND.shape[-1] // 2
    turned = torch.cat((-x_HND[..., half:], x_HND[..., :half]), dim=-1)
    return x_HND * cos_ND + turned * sin_ND


def _number(scaling: Mapping[str, object], name: str, default: float | None = None, above: float = 0) -> float:
    """A number of the rope scaling; null is as good as nothing."""
    value = scaling.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < math.inf:
        kind = scaling.get("rope_type")
        raise LoadError(f"rope scaling {kind!r} needs a number above {above} as {name!r}, not {value!r}")
    return float(value)


def _factors(scaling: Mapping[str, object], head_size: int) -> Tensor:
    values = scaling.get("factors")
    known = isinstance(values, Sequence) and all(isinstance(x, float) and 0 < x < math.inf for x in values)
    if not known or len(values) < head_size // 2:  # type: ignore[arg-type]
        raise LoadError(f"rope factors must be {head_size // 2} numbers above 0, not {values!r:.80}")
    return torch.tensor(values)[: head_size // 2]


def rotary_frequencies(head_size: int, scaling: Mapping[str, object], max_positions: int) -> tuple[Tensor, float]:
    """Inverse frequencies fp32 [D/2] and the factor on cos and sin, for the rope types whose angles do not depend on
    the length of the input: default, linear (kaiokendev 2023), llama3 (Meta 2024) and yarn (Peng et al. 2023); and
    ``factors``, which are the divisors themselves, one for each frequency, as GGUF files have them.

    Raises:
        UnsupportedArchitecture: another rope type. LoadError: a number that is missing or makes no sense.
    """
    kind = scaling.get("rope_type", "default")
    theta = _number(scaling, "rope_theta", 10000.0, above=1)
    inverse = 1.0 / theta ** (torch.arange(0, head_size, 2, dtype=torch.int64).float() / head_size)
    if kind == "default":
        return inverse, 1.0
    if kind == "factors":
        return inverse / _factors(scaling, head_size), _number(scaling, "attention_factor", 1.0)
    if kind not in ("linear", "llama3", "yarn"):
        reason = (
            ": it changes earlier tokens' keys as the text grows, and a cache keeps them" if kind in GROWING else ""
        )
        refusal = UnsupportedArchitecture if isinstance(kind, str) else LoadError
        raise refusal(f"rope scaling {kind!r} is not supported{reason} (supported: default, linear, llama3, yarn)")
    factor = _number(scaling, "factor")
    if kind == "linear":
        return inverse / factor, 1.0
    original = _number(scaling, "original_max_position_embeddings", float(max_positions))
    if kind == "llama3":
        low, high = _number(scaling, "low_freq_factor"), _number(scaling, "high_freq_factor")
        wavelength = 2 * math.pi / inverse
        smooth = (original / wavelength - low) / (high - low)
        blended = (1 - smooth) * inverse / factor + smooth * inverse
        scaled = torch.where(wavelength > original / low, inverse / factor, inverse)
        middle = (wavelength <= original / low) & (wavelength >= original / high)
        return torch.where(middle, blended, scaled), 1.0

    def turns(count: float) -> float:  # the dimension whose wave turns ``count`` times in the original context
        return head_size * math.log(original / (count * 2 * math.pi)) / (2 * math.log(theta))

    low, high = turns(_number(scaling, "beta_fast", 32.0)), turns(_number(scaling, "beta_slow", 1.0))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_size - 1)
    ramp = ((torch.arange(head_size // 2).float() - low) / (high - low or 0.001)).clamp(0, 1)
    return inverse / factor * ramp + inverse * (1 - ramp), _yarn_magnitude(scaling, factor)


def _yarn_magnitude(scaling: Mapping[str, object], factor: float) -> float:
    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if scaling.get("attention_factor") is not None:
        return _number(scaling, "attention_factor")
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return magnitude(_number(scaling, "mscale")) / magnitude(_number(scaling, "mscale_all_dim"))
    return magnitude(1.0)
