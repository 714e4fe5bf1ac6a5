"""Gumbel noise as a stateless hash of (seed, position, token id): the same wherever and in whatever order it is asked
for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["gumbel_noise"]

_GOLDEN = 0x9E3779B97F4A7C15
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # splitmix64's finaliser (Steele, Lea, Flood 2014)


def gumbel_noise(seed: int, positions: Tensor, ids: Tensor) -> Tensor:
    """Standard Gumbel noise, float64, for each pair of (position, token id); the shapes broadcast.

    Args:
        seed: 0 … 2**63-1. positions, ids: int64. The result depends on these three numbers alone, on every device
            (up to the last bit of its logarithms).
    """
    if positions.device.type != "cpu":
        return _on_device(seed, positions, ids)
    noise = torch.from_numpy(_on_host(seed, np.atleast_1d(positions.numpy()), ids.numpy()))
    return noise if positions.dim() or ids.dim() else noise[0]


def _on_host(seed: int, positions: npt.NDArray[np.int64], ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """NumPy has unsigned integers and works in place: a third of the time that PyTorch takes."""
    step = np.uint64(_GOLDEN)

    def mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        x ^= x >> np.uint64(30)
        x *= np.uint64(_MIX[0])
        x ^= x >> np.uint64(27)
        x *= np.uint64(_MIX[1])
        x ^= x >> np.uint64(31)
        return x

    state = mix(np.array([(seed + _GOLDEN) % 2**64], dtype=np.uint64))
    state = mix(mix(state + positions.astype(np.uint64) * step) + ids.astype(np.uint64) * step)
    state >>= np.uint64(12)
    uniform = state.astype(np.float64)
    uniform += 0.5
    uniform *= 2.0**-52  # exact, and in (0, 1) without its ends
    for _ in range(2):
        np.negative(np.log(uniform, out=uniform), out=uniform)
    return uniform


def _on_device(seed: int, positions: Tensor, ids: Tensor) -> Tensor:
    step = _signed(_GOLDEN)
    state = _mix(torch.tensor(_signed(seed + _GOLDEN), device=positions.device))
    state = _mix(_mix(state + positions * step) + ids * step)
    uniform = (_shift_right(state, 12).double() + 0.5) * 2.0**-52
    return -torch.log(-torch.log(uniform))


def _signed(value: int) -> int:
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # logical shift: int64 shifts in copies of the sign


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _signed(_MIX[0])
    x = (x ^ _shift_right(x, 27)) * _signed(_MIX[1])
    return x ^ _shift_right(x, 31)
