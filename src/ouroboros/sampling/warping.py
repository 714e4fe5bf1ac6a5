"""Top-k, top-p and min-p, in this order: exactly what full sorts of the vocabulary would keep, without one.

Over the whole vocabulary go a softmax and one comparison with a floor that no survivor lies below; what passes, mostly
some hundred tokens, is ranked on the host. Exact ties go to the lowest id.

Tensor names: R rows, V vocabulary, K as many as pass in any row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ouroboros.config import SamplingParams
from ouroboros.sampling.sparse import Floats, Integers, places_above, put, take

__all__ = ["Survivors", "survivors"]

Mask = npt.NDArray[np.bool_]
Array = TypeVar("Array", Floats, Integers)


@dataclass(frozen=True, slots=True)
class Survivors:
    """Tokens that may be drawn, and others with a score of -inf.

    Attributes:
        ids_RK: token ids, ascending in each row; 0 behind a row's end. scores_RK: their scores, fp32 or fp64.
    """

    ids_RK: Integers
    scores_RK: Floats

    def keep(self, mask_RK: Mask) -> Survivors:
        return Survivors(
            self.ids_RK, np.where(mask_RK, self.scores_RK, -math.inf).astype(self.scores_RK.dtype, copy=False)
        )

    def spread(self, like_RV: Tensor) -> Tensor:
        """The scores over the whole vocabulary, on the device of ``like_RV`` and of its type."""
        alive = np.nonzero(self.scores_RK > -math.inf)
        spread_RV = torch.full_like(like_RV, -math.inf, memory_format=torch.contiguous_format)
        put(spread_RV, like_RV.shape[-1] * alive[0] + self.ids_RK[alive], self.scores_RK[alive])
        return spread_RV


def survivors(scores_RV: Tensor, params: SamplingParams) -> Survivors:
    """What is left of each row. ``scores_RV``: behind temperature, fp32 or fp64; they are not changed."""
    kept = None
    if 0 < params.top_k < scores_RV.shape[-1]:
        kept = _top_k(scores_RV, params.top_k)
        scores_RV = kept.spread(scores_RV)
    if params.top_p < 1:
        kept = _top_p(scores_RV, params.top_p)
    if params.min_p:
        if kept is None:
            kept = _gather(scores_RV, scores_RV.amax(-1, keepdim=True) + math.log(params.min_p))
        type_ = kept.scores_RK.dtype.type
        floor_R1 = kept.scores_RK.max(-1, keepdims=True) + type_(math.log(params.min_p))
        kept = kept.keep(kept.scores_RK >= floor_R1)
    return _gather(scores_RV, scores_RV.new_tensor(-math.inf)) if kept is None else kept


def _top_k(scores_RV: Tensor, count: int) -> Survivors:
    found = _gather(scores_RV, scores_RV.topk(count, dim=-1).values[:, -1:])
    ordered_RK = np.sort(found.scores_RK, axis=-1)[:, ::-1]
    counts_R = np.full(len(ordered_RK), min(count, ordered_RK.shape[-1]))
    return found.keep(_first(found.scores_RK, ordered_RK, counts_R))


def _top_p(scores_RV: Tensor, top_p: float) -> Survivors:
    """The likeliest tokens, as long as the probability before each is below ``top_p``; at least one."""
    probs_RV = scores_RV.softmax(-1)
    slack = 4 * torch.finfo(probs_RV.dtype).eps
    # All tokens below the floor together have less than half of what top_p leaves out. If rounding makes that doubtful,
    # where top_p is next to 1, all tokens are ranked.
    for floor in ((1 - top_p) / (2 * probs_RV.shape[-1]), -1.0):
        places = _Places(probs_RV, probs_RV.new_tensor(floor))
        probs_RK = places.take(probs_RV, 0.0)
        ordered_RK = np.sort(probs_RK, axis=-1)[:, ::-1]
        sums_RK = ordered_RK.cumsum(-1, dtype=np.float64)
        if (sums_RK[:, -1] >= top_p + slack).all():
            break
    before_RK = sums_RK.astype(probs_RK.dtype) - ordered_RK
    counts_R = np.maximum(1, (before_RK < probs_RK.dtype.type(top_p)).sum(-1))
    found = Survivors(places.ids_RK, places.take(scores_RV, -math.inf))
    return found.keep(_first(probs_RK, ordered_RK, counts_R))


def _first(values_RK: Floats, ordered_RK: Floats, counts_R: Integers) -> Mask:
    """The ``counts`` largest of each row; of equal ones the first. ``ordered_RK``: the values, sorted down."""
    edge_R1 = ordered_RK[np.arange(len(counts_R)), counts_R - 1][:, None]
    mask_RK = values_RK >= edge_R1
    surplus_R = mask_RK.sum(-1) - counts_R
    for row in np.flatnonzero(surplus_R > 0):
        tied = np.flatnonzero(values_RK[row] == edge_R1[row])
        mask_RK[row, tied[-surplus_R[row] :]] = False
    return mask_RK


def _gather(scores_RV: Tensor, floor: Tensor) -> Survivors:
    places = _Places(scores_RV, floor.clamp(min=torch.finfo(scores_RV.dtype).min))  # what is cut already stays so
    return Survivors(places.ids_RK, places.take(scores_RV, -math.inf))


class _Places:
    """Where a matrix is not below a floor, as a matrix [R, K] on the host; K is at least 1."""

    def __init__(self, values_RV: Tensor, floor: Tensor) -> None:
        count, size = values_RV.shape
        self._flat = places_above(values_RV, floor)
        self._at: tuple[Any, Any]
        if count == 1:
            self._shape, self._at = (1, max(1, len(self._flat))), (0, slice(len(self._flat)))
        else:
            rows = self._flat // size
            passed_R = np.bincount(rows, minlength=count)
            self._shape = count, max(1, int(passed_R.max()))
            self._at = rows, np.arange(len(rows)) - (passed_R.cumsum() - passed_R)[rows]
        self.ids_RK = self._fill(self._flat % size, 0)

    def take(self, values_RV: Tensor, fill: float) -> Floats:
        """The values there; ``fill`` behind a row's end."""
        return self._fill(take(values_RV, self._flat), fill)

    def _fill(self, values_N: Array, fill: float) -> Array:
        filled_RK = np.full(self._shape, fill, dtype=values_N.dtype)
        filled_RK[self._at] = values_N
        return filled_RK
