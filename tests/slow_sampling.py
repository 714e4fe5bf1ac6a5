"""The slow twin of ``ouroboros.sampling``: full sorts of the vocabulary, every history read afresh for every row."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from ouroboros.config import SamplingParams
from ouroboros.sampling import gumbel_noise


def keep_largest(scores_RV: Tensor, counts_R1: Tensor | int) -> Tensor:
    """bool [R, V]: the ``counts`` largest entries of each row; of equal ones those with the lowest index."""
    if isinstance(counts_R1, int):
        edge_R1 = scores_RV.topk(counts_R1, dim=-1).values[:, -1:]
    else:
        edge_R1 = scores_RV.topk(int(counts_R1.max()), dim=-1).values.gather(-1, counts_R1 - 1)
    above_RV = scores_RV > edge_R1
    tied_RV = scores_RV == edge_R1
    room_R1 = counts_R1 - above_RV.sum(-1, keepdim=True)
    return above_RV | (tied_RV & (tied_RV.cumsum(-1) <= room_R1))


def penalise(
    scores_RV: Tensor, params: SamplingParams, histories: Sequence[Sequence[int]], prompt_length: int
) -> Tensor:
    scores_RV = scores_RV.clone()
    for row, history in enumerate(histories):
        if params.repetition_penalty != 1:
            seen = torch.tensor(sorted(set(history)), dtype=torch.long)
            old, penalty = scores_RV[row, seen], params.repetition_penalty
            scores_RV[row, seen] = torch.where(old < 0, old * penalty, old / penalty)
        if params.presence_penalty or params.frequency_penalty:
            counts = Counter(history[prompt_length:])
            seen = torch.tensor(list(counts), dtype=torch.long)
            minus = [params.presence_penalty + params.frequency_penalty * count for count in counts.values()]
            scores_RV[row, seen] -= torch.tensor(minus, dtype=scores_RV.dtype)
    return scores_RV


def warp(
    logits_RV: Tensor, params: SamplingParams, histories: Sequence[Sequence[int]], prompt_length: int = 0
) -> Tensor:
    """Scores [R, V], -inf for what is cut away."""
    scores_RV = logits_RV if logits_RV.dtype == torch.float64 else logits_RV.float()
    scores_RV = penalise(scores_RV, params, histories, prompt_length)
    for processor in params.processors:
        rows = [processor(torch.tensor([list(h)]), row[None]) for h, row in zip(histories, scores_RV, strict=True)]
        scores_RV = torch.cat(rows)
    if params.greedy:
        return scores_RV
    scores_RV = scores_RV / params.temperature
    if 0 < params.top_k < scores_RV.shape[-1]:
        scores_RV = scores_RV.masked_fill(~keep_largest(scores_RV, params.top_k), -math.inf)
    if params.top_p < 1:
        probs_RV = scores_RV.softmax(-1)
        ordered_RV = probs_RV.sort(-1, descending=True).values
        before_RV = ordered_RV.cumsum(-1) - ordered_RV
        counts_R1 = (before_RV < params.top_p).sum(-1, keepdim=True).clamp(min=1)
        scores_RV = scores_RV.masked_fill(~keep_largest(probs_RV, counts_R1), -math.inf)
    if params.min_p:
        floor_R1 = scores_RV.amax(-1, keepdim=True) + math.log(params.min_p)
        scores_RV = scores_RV.masked_fill(scores_RV < floor_R1, -math.inf)
    return scores_RV


def perturbed(
    logits_RV: Tensor,
    params: SamplingParams,
    seed: int,
    positions: Sequence[int],
    histories: Sequence[Sequence[int]],
    prompt_length: int = 0,
) -> Tensor:
    """Scores and noise."""
    scores_RV = warp(logits_RV, params, histories, prompt_length)
    if params.greedy:
        return scores_RV
    ids_V = torch.arange(logits_RV.shape[-1])
    return scores_RV + gumbel_noise(seed, torch.tensor(positions)[:, None], ids_V).to(scores_RV.dtype)
