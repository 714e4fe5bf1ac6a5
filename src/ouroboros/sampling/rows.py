"""What rows of logits on the host yield, in one call of C++ (kernels/rows.h): draws, choices, noise.

It saves a step some millisecond of PyTorch's and NumPy's operators, each of which goes over the vocabulary once. Where
it cannot be had all of these return None.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ouroboros.kernels.library import library

__all__ = ["Chosen", "choose", "guess", "noise"]

FORMATS = {torch.float32: 0, torch.bfloat16: 1}
MOST = 16  # choices of a row: they are kept in a list


@dataclass(frozen=True, slots=True)
class Chosen:
    """``ids``, ``scores``: for each row, best first. ``sums``: of exp(score - the best one's) over each row. ``asked``:
    scores of the pairs that were asked for."""

    ids: list[list[int]]
    scores: list[list[float]]
    sums: list[float]
    asked: list[float]


def noise(seed: int, position: int, size: int) -> Tensor | None:
    """``gumbel_noise`` of tokens 0 … size - 1, in fp32."""
    found = library()
    if isinstance(found, str):
        return None
    row_V = torch.empty(size)
    found.ouroboros_noise(seed, position, size, row_V.data_ptr())
    return row_V


def guess(
    seed: int, position: int, temperature: float, ids: array[int], logs: array[float], count: int
) -> tuple[list[int], list[float]] | None:
    """See ``Sampler.guess``. At most 64 ids."""
    found = library()
    if isinstance(found, str):
        return None
    count = min(count, len(ids))
    best, chances = array("i", bytes(4 * count)), array("f", bytes(4 * count))
    sizes = len(ids), _at(ids), _at(logs)
    if not found.ouroboros_guess(seed, position, temperature, *sizes, count, _at(best), _at(chances)):
        return None
    return best.tolist(), chances.tolist()


def choose(
    logits_RV: Tensor,
    size: int,
    count: int = 1,
    temperature: float = 1.0,
    noise_RV: Sequence[Tensor] | None = None,
    pairs: Sequence[tuple[int, int]] | None = None,
) -> Chosen | None:
    """The ``count`` best of each row by ``logits / temperature + noise``; equal ones by their id.

    Args:
        logits_RV: fp32 or bf16. size: only the first so many tokens of each row count. noise_RV: fp32, of each row.
        pairs: (row, token) whose scores are asked for; None where sums are not needed either.
    """
    format_ = FORMATS.get(logits_RV.dtype)
    stride, step = logits_RV.stride()
    found = library()
    if format_ is None or isinstance(found, str) or not logits_RV.is_cpu or step != 1:
        return None
    rows, width = logits_RV.shape
    size = min(size, width)
    count = min(count, size)
    if not 0 < count <= MOST:
        return None
    # Arrays of the standard library: ctypes would make a type of each new length, which takes longer than the call.
    ids, scores = array("i", bytes(4 * rows * count)), array("f", bytes(4 * rows * count))
    pointers = None if noise_RV is None else array("Q", [row.data_ptr() for row in noise_RV])
    sums = None if pairs is None else array("f", bytes(4 * rows))
    flat = array("i", chain.from_iterable(pairs or ()))
    asked = array("f", bytes(2 * len(flat)))
    done = found.ouroboros_choose(
        *(format_, logits_RV.data_ptr(), stride, rows, size, temperature),
        *(_at(pointers), count, _at(ids), _at(scores), _at(sums), len(asked), _at(flat), _at(asked)),
    )
    if not done:
        return None
    starts = range(0, rows * count, count)
    each = [ids[at : at + count].tolist() for at in starts], [scores[at : at + count].tolist() for at in starts]
    return Chosen(*each, [] if sums is None else sums.tolist(), asked.tolist())


def _at(numbers: array[Any] | None) -> int | None:
    return None if numbers is None else numbers.buffer_info()[0]
