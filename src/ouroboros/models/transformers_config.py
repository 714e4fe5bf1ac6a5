"""What the config of a transformers model says: whether it can be used at all, its masks, positions and end tokens.

It reads; it changes a config only for the time of a test (``narrowed``). It knows nothing of caches or decoding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ouroboros.errors import LoadError

__all__ = [
    "WINDOWS",
    "check_config",
    "check_kind",
    "check_module",
    "class_name",
    "end_tokens",
    "mask_kinds",
    "max_positions",
    "narrowed",
    "positions_end",
    "unknown_window",
]

UNLIMITED = 2**31 - 1  # max_positions of a model that has none
ROW_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}  # hold one row a token, and nothing else
NO_LAYERS = {"mlp", "moe"}  # hold nothing
WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}  # kind → config's name
# Kinds of rotary angles that a position alone decides, however long the text is.
STEADY = {"default", "linear", "llama3", "yarn", "proportional"}
NARROW = 5  # windows are as narrow as this during a test, so that its texts reach past them


def check_kind(kind: object, encoder: bool, has_code: bool = False) -> None:
    """Refuses a model type that is no causal language model.

    Raises:
        LoadError: see above.
    """
    if encoder:
        raise LoadError(f"architecture {kind!r} is an encoder and a decoder; only decoders can be used")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        code = " (it comes with code of its own, which is not run)" if has_code else ""
        version = transformers.__version__
        raise LoadError(f"architecture {kind!r} is no causal language model of transformers {version}{code}")


def class_name(kind: object) -> str | None:
    """The class of transformers that computes a model type."""
    found = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind) if isinstance(kind, str) else None
    return found if isinstance(found, str) else None


def check_config(config: transformers.PretrainedConfig) -> None:
    """Refuses what cannot be used, before any weight is read.

    Raises:
        LoadError: no causal language model, or layers that hold something else than rows.
    """
    kind = config.model_type
    check_kind(kind, config.is_encoder_decoder)
    text = config.get_text_config(decoder=True)
    others = sorted(set(getattr(text, "layer_types", None) or ()) - ROW_LAYERS - NO_LAYERS)
    if others:
        layers = f"architecture {kind!r} has layers of type {others[0]!r}"
        raise LoadError(f"{layers}: their state is no key-value cache and cannot be rolled back")


def check_module(module: transformers.PreTrainedModel) -> None:
    """
    Raises:
        LoadError: a recurrent state, or no output matrix.
    """
    if getattr(module, "_is_stateful", False):
        kind = module.config.model_type
        raise LoadError(f"architecture {kind!r} keeps a recurrent state, which cannot be rolled back")
    if module.get_output_embeddings() is None:
        raise LoadError(f"{type(module).__name__} has no output matrix; a causal language model is needed")


def mask_kinds(config: transformers.PretrainedConfig) -> tuple[str, ...]:
    """The kinds of attention masks that the layers need."""
    types = getattr(config, "layer_types", None)
    if types:
        return tuple(sorted(set(types) - NO_LAYERS))
    windows = [kind for kind, name in WINDOWS.items() if getattr(config, name, None) is not None]
    return tuple(windows[:1]) or ("full_attention",)


def unknown_window(config: transformers.PretrainedConfig) -> bool:
    """Whether the config names a window of which nothing is known: past it a tree could differ from its paths."""
    known = {*WINDOWS.values(), "use_sliding_window", "max_window_layers", "sliding_window_pattern"}
    names = [name for name, value in config.to_dict().items() if "window" in name and value]
    return any(name.lstrip("_") not in known for name in names)


def max_positions(config: transformers.PretrainedConfig) -> int:
    """The positions that the model has, or for which its angles do not depend on the length of the text."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
    sizes = [value for name in names if isinstance(value := getattr(config, name, None), int) and value > 0]
    for rope in _ropes(config):
        if rope["rope_type"] == "longrope":
            original = rope.get("original_max_position_embeddings")
            sizes += [original] if isinstance(original, int) else []
    return min(sizes, default=UNLIMITED)


def positions_end(config: transformers.PretrainedConfig) -> int:
    """How far the model's own forward goes on: past ``max_positions`` where its angles are those of a position alone
    and no table has an end."""
    ropes = _ropes(config)
    steady = ropes and all(rope["rope_type"] in STEADY for rope in ropes)
    return UNLIMITED if steady else max_positions(config)


def _ropes(config: transformers.PretrainedConfig) -> list[Mapping[str, object]]:
    """What the config says of rotary angles, for all layers or for each kind."""
    ropes = getattr(config, "rope_parameters", None) or {}
    return [rope for rope in (ropes, *ropes.values()) if isinstance(rope, Mapping) and "rope_type" in rope]


def end_tokens(module: transformers.PreTrainedModel) -> frozenset[int]:
    """All ids that the model's configs call the end of a text."""
    found: set[int] = set()
    for config in (module.config, module.config.get_text_config(decoder=True), module.generation_config):
        ids = getattr(config, "eos_token_id", None)
        found.update(ids if isinstance(ids, list | tuple) else [] if ids is None else [ids])
    return frozenset(found)


@contextmanager
def narrowed(config: transformers.PretrainedConfig) -> Iterator[None]:
    """For the time of a test the config's windows are narrow; afterwards they are as they were."""
    windows = {name: value for name in WINDOWS.values() if isinstance(value := getattr(config, name, None), int)}
    try:
        for name, value in windows.items():
            setattr(config, name, min(value, NARROW))
        yield
    finally:
        for name, value in windows.items():
            setattr(config, name, value)
