"""What transformers' ``generate`` hands to a callable, in our terms: padding, guidance, processors, what we refuse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor

from ouroboros.errors import InputError

__all__ = ["Guidance", "Padded", "count_padding", "refuse", "split_guidance"]


@dataclass(frozen=True, slots=True)
class Guidance:
    """``negative``: token ids of the second context."""

    scale: float
    negative: list[int]


def split_guidance(
    processors: LogitsProcessorList, number: int, prompt: Sequence[int]
) -> tuple[Guidance | None, LogitsProcessorList]:
    """transformers' guidance is a processor that runs the model and remembers its calls: we decode its two contexts."""
    places = [i for i, p in enumerate(processors) if isinstance(p, UnbatchedClassifierFreeGuidanceLogitsProcessor)]
    if not places:
        return None, processors
    if places != [0]:
        raise InputError("guidance_scale must come before all other processors, as transformers puts it")
    found = processors[0]
    ids, mask = found.unconditional_context["input_ids"], found.unconditional_context["attention_mask"]
    negative = list(prompt[-1:])
    if ids is not None:
        row = ids[number if len(ids) > 1 else 0]
        kept = row if mask is None else row[mask[number if len(mask) > 1 else 0].bool()]
        negative = kept.tolist() or negative
    return Guidance(float(found.guidance_scale), negative), LogitsProcessorList(processors[1:])


class Padded:
    """A processor that sees the row as transformers shows it, padding included."""

    def __init__(self, processor: Any, padding: Tensor) -> None:
        self._processor = processor
        self._padding = padding

    def __call__(self, input_ids_BL: Tensor, scores_BV: Tensor) -> Any:
        padding = self._padding.expand(len(input_ids_BL), -1)
        return self._processor(torch.cat((padding, input_ids_BL), dim=-1), scores_BV)


def refuse(config: GenerationConfig, streamer: Any, input_ids: Tensor) -> None:
    """Raises InputError for what cannot be decoded speculatively, or not row by row."""
    if (config.num_beams or 1) > 1:
        raise InputError(f"num_beams must be 1, not {config.num_beams}: beams are not decoded speculatively")
    for name in ("output_attentions", "output_hidden_states"):
        if config.return_dict_in_generate and getattr(config, name, None):
            raise InputError(f"{name} must be False: rejected rows make it meaningless")
    if streamer is not None and len(input_ids) > 1:
        raise InputError(f"a streamer takes one row, not {len(input_ids)}")


def count_padding(mask: Tensor | None, length: int) -> int:
    """How many tokens on the left of a row of this length its mask hides."""
    if mask is None:
        return 0
    kept = int(mask.sum())
    if not bool(mask[length - kept :].all()):
        raise InputError("attention_mask must be 0 on the left alone (padding_side='left')")
    return length - kept
