"""What transformers' ``generate`` hands to a callable: what we refuse, by its name, and what is without meaning here.

Model inputs are not listed: the model's own preparation reads all of them (reading.py).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList
from transformers.generation import logits_process

from ouroboros.errors import InputError

__all__ = ["REFUSED", "WITHOUT_MEANING", "count_padding", "refuse"]

# Fields of a GenerationConfig: what is allowed in each, and why no more.
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "num_beams": ((None, 1), "beams are not decoded speculatively"),
    "num_beam_groups": ((None, 1), "beams are not decoded speculatively"),
    "constraints": ((None,), "constraints need beams"),
    "force_words_ids": ((None,), "constraints need beams"),
    "penalty_alpha": ((None, 0, 0.0), "contrastive search is another text"),
    "dola_layers": ((None,), "decoding by contrasting layers is another text"),
    "cache_implementation": ((None, "dynamic"), "rows of another cache cannot be rolled back"),
    "prompt_lookup_num_tokens": ((None,), "give method='prompt_lookup' and method_options={'draft_tokens': …}"),
    "assistant_early_exit": ((None,), "a draft is another model: give draft_model"),
    "use_mtp": ((None, False), "a draft is another model: give draft_model"),
}
# Those that change no text: how beams are searched, how transformers' own assistants draft, how it compiles.
WITHOUT_MEANING = frozenset(
    [
        "assistant_confidence_threshold",
        "assistant_ensemble_weight",
        "assistant_lookbehind",
        "cache_config",
        "compile_config",
        "continuous_batching_config",
        "decoder_start_token_id",
        "disable_compile",
        "diversity_penalty",
        "early_stopping",
        "is_assistant",
        "length_penalty",
        "low_memory",
        "max_cache_len",
        "max_matching_ngram_size",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "speculation_type",
        "target_lookbehind",
        "transformers_version",
        "use_cache",
    ]
)
STATEFUL = ("SynthIDTextWatermarkLogitsProcessor", "ClassifierFreeGuidanceLogitsProcessor")


def refuse(
    config: GenerationConfig, processors: LogitsProcessorList, streamer: Any, input_ids: Tensor, cache: Any
) -> None:
    """Raises InputError for what cannot be decoded speculatively, or not row by row."""
    for name, (allowed, why) in REFUSED.items():
        value = getattr(config, name, None)
        if value not in allowed:
            raise InputError(f"{name} must be {allowed[-1]!r}, not {value!r}: {why}")
    for name in ("output_attentions", "output_hidden_states"):
        if config.return_dict_in_generate and getattr(config, name, None):
            raise InputError(f"{name} must be False: rejected rows make it meaningless")
    for processor in processors:
        if isinstance(processor, tuple(getattr(logits_process, name) for name in STATEFUL)):
            raise InputError(f"a {type(processor).__name__} cannot be used: it counts its calls or its rows")
    if streamer is not None and len(input_ids) > 1:
        raise InputError(f"a streamer takes one row, not {len(input_ids)}")
    if cache is None:
        return
    if type(cache) is not DynamicCache or getattr(cache, "offloading", False):
        raise InputError(f"past_key_values must be a DynamicCache that is not offloaded, not a {type(cache).__name__}")
    if cache.get_seq_length() and len(input_ids) > 1:
        raise InputError(f"past_key_values that hold rows must come with one row of input_ids, not {len(input_ids)}")


def count_padding(mask: Tensor | None, number: int, length: int, of: str = "") -> int:
    """How many tokens on the left of a row of this length its mask hides; of a longer row (virtual tokens, a cache) the
    end counts.

    Args:
        mask: [rows, length or more], or None. of: what the mask's name begins with.
    """
    if mask is None:
        return 0
    if mask.dim() != 2:
        raise InputError(f"{of}attention_mask must have two dimensions, not {mask.dim()}")
    row = mask[number].bool()
    kept = int(row.sum())
    if not bool(row[len(row) - kept :].all()):
        raise InputError(f"{of}attention_mask must be 0 on the left alone (padding_side='left')")
    return min(length, max(0, length - kept))
