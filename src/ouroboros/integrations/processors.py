"""transformers' logits processors, made for a batch and called for a step, for one row and any of its texts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from ouroboros.config import SamplingParams
from ouroboros.errors import InputError
from ouroboros.integrations.arguments import count_padding

__all__ = ["Guidance", "Shown", "of_row", "split_guidance"]


@dataclass(frozen=True, slots=True)
class Guidance:
    """``negative``: token ids of the second context; ``ahead``: the position of the first."""

    scale: float
    negative: list[int]
    ahead: int = 0


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
    SamplingParams(guidance_scale=float(found.guidance_scale))  # refuses what is beyond 32 bits
    ids, mask = found.unconditional_context["input_ids"], found.unconditional_context["attention_mask"]
    others = LogitsProcessorList(processors[1:])
    if ids is None:
        return Guidance(float(found.guidance_scale), list(prompt[-1:])), others
    row = ids[number if len(ids) > 1 else 0]
    ahead = count_padding(mask, number if mask is not None and len(mask) > 1 else 0, len(row), "negative_prompt_")
    return Guidance(float(found.guidance_scale), row[ahead:].tolist() or list(prompt[-1:]), ahead), others


def of_row(processor: Any, number: int) -> Any:
    """A processor that was made for a batch, as it is for one row of it, whatever is scored together."""
    if isinstance(processor, PrefixConstrainedLogitsProcessor):
        allowed: Callable[[int, Tensor], Any] = processor._prefix_allowed_tokens_fn
        return PrefixConstrainedLogitsProcessor(lambda _, ids: allowed(number, ids), 1)
    if isinstance(processor, RepetitionPenaltyLogitsProcessor):
        ignored = getattr(processor, "prompt_ignore_length", None)
        if isinstance(ignored, Tensor):
            processor = copy.copy(processor)
            processor.prompt_ignore_length = int(ignored[number if len(ignored) > 1 else 0])
    elif isinstance(processor, EncoderRepetitionPenaltyLogitsProcessor):
        processor, ids = copy.copy(processor), processor.encoder_input_ids
        processor.encoder_input_ids = ids[number if len(ids) > 1 else 0][None]
    elif isinstance(processor, EncoderNoRepeatNGramLogitsProcessor):
        processor, ngrams = copy.copy(processor), processor.generated_ngrams
        processor.generated_ngrams = [ngrams[number if len(ngrams) > 1 else 0]]
        processor.batch_size = 1
    return processor


class Shown:
    """A processor that sees a text as transformers shows it: padding included, and none of our placeholders.

    Args:
        before: int64 [P], put before each text. hidden: tokens at its beginning that are left out.
    """

    def __init__(self, processor: Any, before: Tensor, hidden: int) -> None:
        self._processor = processor
        self._before = before
        self._hidden = hidden
        self.__name__ = type(processor).__name__  # what an error calls it

    def __call__(self, input_ids_BL: Tensor, scores_BV: Tensor) -> Any:
        before = self._before.expand(len(input_ids_BL), -1)
        return self._processor(torch.cat((before, input_ids_BL[:, self._hidden :]), dim=-1), scores_BV)
