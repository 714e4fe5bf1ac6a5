"""The prompts of a batch, read as ``generate`` reads them: by the model's own preparation, with all that it was given.

So position ids, embeddings, images, token types, a cache of one's own and the virtual tokens that a library puts into
the preparation (prompt and prefix tuning) need no case of their own. What the model would be given at every later step
too is refused here by its name, but for what continues a row: mask, positions and token types.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationConfig, GenerationMixin

from ouroboros.errors import InputError
from ouroboros.models.prompted import Reading
from ouroboros.models.transformers_cache import RowSlot, states
from ouroboros.models.transformers_config import mask_kinds
from ouroboros.models.transformers_model import TransformersModel

__all__ = ["read_prompts", "write_back"]

TYPES = ("token_type_ids", "mm_token_type_ids")
# What a step has in any case. The number of wanted logits, and whether rows are cached, are decided here.
STEP = {"input_ids", "past_key_values", "attention_mask", "position_ids", "cache_position", "use_cache"} | {
    *("logits_to_keep", "return_dict", "is_first_iteration", *TYPES)
}
BY_LENGTH = "next_sequence_length" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters


def read_prompts(
    model: transformers.PreTrainedModel,
    adapter: TransformersModel,
    input_ids: Tensor,
    config: GenerationConfig,
    inputs: Mapping[str, Any],
) -> list[Reading]:
    """One forward for the batch, and each row's slot.

    Args:
        model: ``adapter`` computes with it. input_ids: [B, L]; L may be 0 where there are embeddings. inputs: all else
            that ``generate`` prepared for the model; a cache among them is read, not changed.

    Raises:
        InputError: an input that the model would be given at every step, positions past its end, or a padding that
            cannot be left out.
    """
    _check_positions(model, adapter, inputs)
    given, slot = inputs.get("past_key_values"), RowSlot()
    if given is not None and given.get_seq_length():
        slot = RowSlot.of(given, given.get_seq_length())
    kept: dict[str, Any] = {**inputs, "past_key_values": slot.cache, "use_cache": True}
    prefill: Any = model._prefill
    outputs = prefill(input_ids, config, kept)
    logits_BV, cache = outputs.logits[:, -1], outputs.past_key_values
    later = _later(model, outputs, kept, torch.cat((input_ids, logits_BV.argmax(-1)[:, None].to(input_ids)), dim=-1))
    return [_row(adapter, slot, cache, later, logits_BV, number) for number in range(len(logits_BV))]


def _later(
    model: transformers.PreTrainedModel, outputs: Any, inputs: dict[str, Any], input_ids: Tensor
) -> dict[str, Any]:
    """What the model would be given for the first new token; what cannot be given to trees is refused."""
    update: Any = model._update_model_kwargs_for_generation
    inputs = update(outputs, inputs, is_encoder_decoder=False)
    length = {"next_sequence_length": 1} if BY_LENGTH else {}
    prepare: Any = model.prepare_inputs_for_generation
    later: dict[str, Any] = prepare(input_ids, **length, **inputs)
    for name, value in later.items():
        if name not in STEP and value is not None and value is not False:
            raise InputError(f"{name} must be None: the model reads it at every step, and trees have none")
    return later


def _check_positions(
    model: transformers.PreTrainedModel, adapter: TransformersModel, inputs: Mapping[str, Any]
) -> None:
    positions, end = inputs.get("position_ids"), adapter.info.max_positions
    if positions is not None and positions.numel():
        if int(positions.max()) >= end:
            raise InputError(f"the prompt has position {int(positions.max())}; {type(model).__name__} has {end} in all")
        if int(positions.min()) < 0:
            raise InputError(f"position_ids must be at least 0, not {int(positions.min())}")


def _row(
    adapter: TransformersModel, own: RowSlot, cache: Cache, later: Mapping[str, Any], logits: Tensor, row: int
) -> Reading:
    """A row's reading. ``own``: the slot of ``cache``, if the model kept to the cache that it was given."""
    rows = cache.get_seq_length()
    mask, kept = later.get("attention_mask"), None
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.dim() != 2:
            raise InputError("attention_mask must stay one of two dimensions: a row's padding is left out")
        if not bool(mask[row].all()):
            kept = mask[row, :rows].nonzero()[:, 0]
            near = set(mask_kinds(adapter.config)) != {"full_attention"}
            if near and len(kept) and int(kept[-1] - kept[0]) >= len(kept):
                raise InputError("attention_mask must be 0 on the left alone, before virtual tokens too, with windows")
    if kept is None and len(logits) == 1 and cache is own.cache:
        slot, own.length = own, rows
    else:
        slot = RowSlot.of(cache, rows, row, kept)
    positions = later.get("position_ids")
    first = torch.tensor(rows) if positions is None else positions[..., min(row, positions.shape[-2] - 1), -1]
    ahead = first - slot.length
    same = bool((ahead == ahead.flatten()[0]).all())
    slot.ahead = int(ahead.flatten()[0]) if same else ahead[..., None, None]
    slot.beside = {
        name: value[min(row, len(value) - 1)][None, -1:] for name in TYPES if (value := later.get(name)) is not None
    }
    return Reading(slot, slot.length, logits[row : row + 1], int(first.max()))


def write_back(slot: RowSlot, rows: int, cache: DynamicCache) -> None:
    """Gives a cache the rows that it lacks, of the first ``rows`` of a slot, as if the model had written them."""
    start = cache.get_seq_length()
    for index, keys, values in states(slot.cache):
        cache.update(keys[:, :, start:rows].clone(), values[:, :, start:rows].clone(), index)
