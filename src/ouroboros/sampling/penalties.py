"""Repetition penalty (Keskar et al. 2019) over prompt and output, presence and frequency penalty (OpenAI) over the
output alone: each row's own history counts. Only the tokens that occur are touched."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ouroboros.config import SamplingParams
from ouroboros.sampling.histories import Histories, Text
from ouroboros.sampling.sparse import Floats, Integers, put, take

__all__ = ["penalise"]


def penalise(scores_RV: Tensor, params: SamplingParams, text: Text, histories: Histories) -> None:
    """Changes the scores (contiguous). ``text`` has followed ``histories.base``."""
    count, size = scores_RV.shape
    base_U = text.seen
    places_N = (size * np.arange(count)[:, None] + base_U).reshape(-1)
    changes = [(places_N, np.concatenate([text.output_V[base_U]] * count))]
    if any(histories.tails):  # over those of the base: its tokens with more occurrences, and others
        more: dict[int, int] = {}
        for row, tail in enumerate(histories.tails):
            for index, token in enumerate(tail, start=len(histories.base)):
                place = size * row + token
                more[place] = more.get(place, 0) + (index >= text.prompt_length)
        places_N = np.array(list(more))
        changes.append((places_N, text.output_V[places_N % size] + np.array(list(more.values()))))
    changed = [_penalised(take(scores_RV, places_N), outputs_N, params) for places_N, outputs_N in changes]
    for (places_N, _), scores_N in zip(changes, changed, strict=True):
        put(scores_RV, places_N, scores_N)


def _penalised(scores_N: Floats, outputs_N: Integers, params: SamplingParams) -> Floats:
    """``outputs_N``: how often each token is output before its row's draw."""
    type_ = scores_N.dtype.type
    if params.repetition_penalty != 1:
        penalty = type_(params.repetition_penalty)
        with np.errstate(over="ignore"):  # of what is beyond the range of floats already, nearly
            scores_N = np.where(scores_N < 0, scores_N * penalty, scores_N / penalty)
    if params.presence_penalty or params.frequency_penalty:
        minus_N = params.presence_penalty * (outputs_N > 0) + params.frequency_penalty * outputs_N
        scores_N = scores_N - minus_N.astype(type_)
    return scores_N
