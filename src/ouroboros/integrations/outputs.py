"""What ``generate`` returns: rows that ended at different lengths as one tensor, or as transformers' dictionary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig
from transformers.generation.utils import GenerateDecoderOnlyOutput

from ouroboros.stats import Stats

__all__ = ["OuroborosOutput", "Row", "join_rows"]


@dataclass
class OuroborosOutput(GenerateDecoderOnlyOutput):
    """What ``return_dict_in_generate=True`` returns; ``stats``: one entry a row. Past the end of a row that ended
    before others, its scores and logits are zero; ``past_key_values``: of one row alone, None of several."""

    stats: tuple[Stats, ...] | None = None


@dataclass(frozen=True)
class Row:
    """One row's new tokens; scores and logits, [1, vocabulary] each, where they were asked for. ``ended``: by a stop
    token or a criterion."""

    tokens: list[int]
    scores: list[Tensor]
    logits: list[Tensor]
    stats: Stats
    ended: bool = True


def join_rows(
    rows: Sequence[Row], input_ids: Tensor, config: GenerationConfig, cache: Cache | None
) -> Tensor | OuroborosOutput:
    """Prompts and new tokens, filled up on the right with the padding token; or the dictionary that holds them, with
    ``cache``."""
    longest = max(len(row.tokens) for row in rows)
    pad = config.pad_token_id if config.pad_token_id is not None else 0
    new = torch.full((len(rows), longest), int(pad), dtype=input_ids.dtype, device=input_ids.device)
    for number, row in enumerate(rows):
        new[number, : len(row.tokens)] = torch.tensor(row.tokens, device=input_ids.device)
    sequences = torch.cat((input_ids, new), dim=-1)
    if not config.return_dict_in_generate:
        return sequences

    def stacked(parts: Sequence[list[Tensor]]) -> Any:
        if not parts[0]:
            return None
        empty = torch.zeros_like(parts[0][0])
        return tuple(torch.cat([part[i] if i < len(part) else empty for part in parts]) for i in range(longest))

    return OuroborosOutput(
        sequences=sequences,  # type: ignore[arg-type]  # a LongTensor by its dtype
        scores=stacked([row.scores for row in rows]),
        logits=stacked([row.logits for row in rows]),
        stats=tuple(row.stats for row in rows),
        past_key_values=cache,
    )
