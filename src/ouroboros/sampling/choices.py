"""The likeliest tokens of rows of scores, with their probabilities: what a draft model proposes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Choices", "choices"]


@dataclass(frozen=True, slots=True)
class Choices:
    """``tokens``, ``probs``: for each row, best first. ``asked``: the probability of each pair that was asked for."""

    tokens: list[list[int]]
    probs: list[list[float]]
    asked: list[float]


def choices(scores_RV: Tensor, count: int, pairs: Sequence[tuple[int, int]] = ()) -> Choices:
    """The ``count`` likeliest tokens of each row, and how likely they are: not at all, in a row with NaN or infinity.

    Args:
        scores_RV: log-probabilities up to a constant of each row, fp32 or fp64; -inf for what cannot be. pairs: (row,
            token) whose probabilities are asked for as well.
    """
    count = min(count, scores_RV.shape[-1])
    if scores_RV.device.type != "cpu":
        probs_RV = scores_RV.softmax(-1).nan_to_num_(nan=0.0)
        top = probs_RV.topk(count, dim=-1)
        asked: list[float] = []
        if pairs:
            index = torch.tensor(pairs, dtype=torch.long, device=probs_RV.device)
            asked = probs_RV[index[:, 0], index[:, 1]].tolist()
        return Choices(top.indices.tolist(), top.values.tolist(), asked)
    host_RV = scores_RV.numpy()
    with np.errstate(invalid="ignore", over="ignore"):
        weights_RV = host_RV - host_RV.max(-1, keepdims=True)
    np.exp(weights_RV, out=weights_RV)
    sums_R = weights_RV.sum(-1)
    broken_R = ~np.isfinite(sums_R)
    weights_RV[broken_R], sums_R[broken_R] = 0.0, 1.0
    asked = [float(weights_RV[row, token] / sums_R[row]) for row, token in pairs]
    rows_R = np.arange(len(weights_RV))
    tokens, probs = [], []
    for _ in range(count):  # as fast as one pass over the row, where a partial sort takes ten
        best_R = weights_RV.argmax(-1)
        tokens.append(best_R)
        probs.append(weights_RV[rows_R, best_R] / sums_R)
        weights_RV[rows_R, best_R] = -1.0
    return Choices(np.stack(tokens, -1).tolist(), np.stack(probs, -1).tolist(), asked)
