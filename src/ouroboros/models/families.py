"""From config.json to DecoderConfig: one table from ``model_type`` to a small parser.

A family is here if transformers computes it as Llama with the variations that DecoderConfig describes. Keys that
config.json lacks have the values of the family's config class in transformers; null means what it means there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ouroboros.errors import LoadError, UnsupportedArchitecture
from ouroboros.models.config import DecoderConfig

__all__ = ["FAMILIES", "parse_config"]

Raw = Mapping[str, object]
# Fields that change the mathematics, with the values that leave it as it is.
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "hidden_act": ("silu", "swish"),
    "partial_rotary_factor": (1.0, None),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "clip_qkv": (None,),
    "logit_scale": (1.0, None),
}
GEMMA = ("gemma2", "gemma3_text")
GEMMA_READS = ("hidden_act", "attn_logit_softcapping", "final_logit_softcapping")  # fields that it gives other values


def parse_config(raw: Raw) -> DecoderConfig:
    """DecoderConfig from the contents of config.json.

    Raises:
        UnsupportedArchitecture: the native decoder does not compute this model, or not its quantised weights.
        LoadError: a field is missing or makes no sense.
    """
    kind = raw.get("model_type")
    parser = FAMILIES.get(kind) if isinstance(kind, str) else None
    if parser is None:
        refusal = UnsupportedArchitecture if isinstance(kind, str) else LoadError
        raise refusal(f"model_type {kind!r} is not supported (supported: {', '.join(map(repr, FAMILIES))})")
    if raw.get("quantization_config") is not None:
        files = "float32, bfloat16, float16 files"
        raise UnsupportedArchitecture(f"quantised checkpoints are not supported (supported: {files})")
    for name, allowed in NEUTRAL.items():
        if kind not in GEMMA or name not in GEMMA_READS:
            _neutral(name, raw.get(name, allowed[0]), allowed)
    return parser(raw)


def _neutral(name: str, value: object, allowed: Sequence[object]) -> None:
    if value not in allowed:
        raise UnsupportedArchitecture(f"{name} {value!r} is not supported (supported: {allowed[0]!r})")


# -------------------------------------------------------------------------------------------------------- families


def _llama(raw: Raw) -> DecoderConfig:
    """Also Yi, DeepSeek-coder, CodeLlama, TinyLlama, SmolLM 1 and 2."""
    bias = _switch(raw, "attention_bias")
    return replace(_plain(raw), qkv_bias=bias, out_bias=bias, mlp_bias=_switch(raw, "mlp_bias"))


def _mistral(raw: Raw) -> DecoderConfig:
    """With ``layer_types`` it is what transformers calls Ministral."""
    raw = {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096, **raw}
    layers = _size(raw, "num_hidden_layers")
    sliding = range(layers if raw["sliding_window"] is not None else 0)
    return replace(_plain(raw), windows=_windows(raw, sliding))


def _qwen2(raw: Raw) -> DecoderConfig:
    raw = {"num_key_value_heads": 32, "max_position_embeddings": 32768, "sliding_window": 4096, **raw}
    raw = {"max_window_layers": 28, **raw}
    if not _switch(raw, "use_sliding_window"):
        raw = {**raw, "sliding_window": None}
    layers = _size(raw, "num_hidden_layers")
    begin = _size(raw, "max_window_layers", least=0)
    sliding = range(begin if raw["sliding_window"] is not None else layers, layers)
    return replace(_plain(raw), qkv_bias=True, windows=_windows(raw, sliding))


def _qwen3(raw: Raw) -> DecoderConfig:
    bias = _switch(raw, "attention_bias")
    return replace(_qwen2({"head_dim": 128, **raw}), qkv_bias=bias, out_bias=bias, qk_norm=True)


def _phi3(raw: Raw) -> DecoderConfig:
    config = _plain({"rms_norm_eps": 1e-5, "max_position_embeddings": 4096, **raw})
    _neutral("rope_type", config.rope["rope_type"], ("default",))  # transformers reads its "yarn" as longrope
    sliding = range(config.num_hidden_layers if raw.get("sliding_window") is not None else 0)
    return replace(config, fused_tensors=True, windows=_windows({**raw, "layer_types": None}, sliding))


def _smollm3(raw: Raw) -> DecoderConfig:
    raw = {"num_key_value_heads": 4, "max_position_embeddings": 32768, "tie_word_embeddings": True, **raw}
    raw = {"no_rope_layer_interval": 4, **raw}
    config = _llama({"rope_theta": 2000000.0, **raw})
    interval = _size(raw, "no_rope_layer_interval")
    uses = raw.get("no_rope_layers")
    if uses is None:
        uses = [(i + 1) % interval != 0 for i in range(config.num_hidden_layers)]
    elif not isinstance(uses, list) or len(uses) != config.num_hidden_layers or any(x not in (0, 1) for x in uses):
        raise LoadError(f"config.json needs a 0 or 1 for each layer as 'no_rope_layers', not {str(uses)[:80]}")
    without = frozenset(i for i, use in enumerate(uses) if not use)
    window = _switch(raw, "use_sliding_window") and raw.get("sliding_window") is not None
    return replace(config, without_rotary=without, windows=_windows(raw, sorted(without) if window else ()))


def _seed_oss(raw: Raw) -> DecoderConfig:
    raw = {"num_key_value_heads": 8, "max_position_embeddings": 524288, "attention_bias": True, "head_dim": 128, **raw}
    return replace(_llama(raw), out_bias=_switch(raw, "attention_out_bias"))


def _granite(raw: Raw) -> DecoderConfig:
    return replace(
        _llama(raw),
        attention_scale=_number(raw, "attention_multiplier", 1.0),
        embedding_multiplier=_number(raw, "embedding_multiplier", 1.0),
        residual_multiplier=_number(raw, "residual_multiplier", 1.0),
        logits_divisor=_number(raw, "logits_scaling", 1.0, least=1e-6),
    )


def _gemma2(raw: Raw) -> DecoderConfig:
    raw = {"max_position_embeddings": 8192, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, **raw}
    return replace(_gemma(raw, 2), attention_softcap=_cap(raw, "attn_logit_softcapping"))


def _gemma3(raw: Raw) -> DecoderConfig:
    """Its text models. Layers with a window have a rope of their own."""
    _neutral("attn_logit_softcapping", raw.get("attn_logit_softcapping"), (None,))  # which transformers does not apply
    raw = {"max_position_embeddings": 131072, **raw}
    ropes = {"full_attention": (1000000.0, "rope_theta"), "sliding_attention": (10000.0, "rope_local_base_freq")}
    nested = raw.get("rope_parameters")
    if nested is not None and not isinstance(nested, Mapping):
        raise LoadError(f"rope scaling must be an object, not {nested!r:.80}")
    found = {}
    for kind, (theta, name) in ropes.items():
        rope = (nested or {}).get(kind)
        if rope is not None and not isinstance(rope, Mapping):
            raise LoadError(f"rope scaling must be an object, not {rope!r:.80}")
        old = (raw.get("rope_scaling") or {}) if kind == "full_attention" else {}
        if not isinstance(old, Mapping):
            raise LoadError(f"rope scaling must be an object, not {old!r:.80}")
        rope = {"rope_theta": raw.get(name, theta), **(rope or {}), **old}
        found[kind] = _rope({"rope_parameters": rope, "rope_theta": theta})
    config = _gemma({**raw, "rope_parameters": None, "rope_scaling": None}, _pattern(raw))
    full, sliding = found["full_attention"], found["sliding_attention"]
    return replace(config, qk_norm=True, rope=full, window_rope=sliding)


def _gemma(raw: Raw, pattern: int) -> DecoderConfig:
    """What Gemma 2 and 3 say alike. ``pattern``: of so many layers the last has no window, without ``layer_types``."""
    raw = {"num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096, "tie_word_embeddings": True, **raw}
    act = raw.get("hidden_activation", raw.get("hidden_act"))
    _neutral("hidden_activation", act, ("gelu_pytorch_tanh", None))
    _neutral("use_bidirectional_attention", raw.get("use_bidirectional_attention"), (False, None))
    bias = _switch(raw, "attention_bias")
    config = _plain(raw)
    sliding = [i for i in range(config.num_hidden_layers) if (i + 1) % pattern]
    return replace(
        config,
        windows=_windows(raw, sliding),
        qkv_bias=bias,
        out_bias=bias,
        attention_scale=_number(raw, "query_pre_attn_scalar", 256, least=1e-6) ** -0.5,
        embedding_multiplier=config.hidden_size**0.5,
        activation="gelu_tanh",
        output_norms=True,
        norm_offset=1.0,
        wide_norms=True,
        logits_softcap=_cap(raw, "final_logit_softcapping"),
    )


def _pattern(raw: Raw) -> int:
    name = "sliding_window_pattern"
    return _size(raw if raw.get(name) is not None else {name: raw.get("_" + name)}, name, 6)


def _cap(raw: Raw, name: str) -> float | None:
    return None if raw.get(name) is None else _number(raw, name, 0, least=1e-6)


FAMILIES: Mapping[str, Callable[[Raw], DecoderConfig]] = {
    "llama": _llama,
    "mistral": _mistral,
    "ministral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "phi3": _phi3,
    "smollm3": _smollm3,
    "seed_oss": _seed_oss,
    "granite": _granite,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
}


# ---------------------------------------------------------------------------------------------------------- fields


def _plain(raw: Raw) -> DecoderConfig:
    """What all families say alike."""
    hidden, heads = _size(raw, "hidden_size"), _size(raw, "num_attention_heads")
    if raw.get("head_dim") is None and hidden % heads:
        raise LoadError(
            f"hidden_size ({hidden}) must be a multiple of num_attention_heads ({heads}) without a head_dim"
        )
    return DecoderConfig(
        vocab_size=_size(raw, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_size(raw, "intermediate_size"),
        num_hidden_layers=_size(raw, "num_hidden_layers", most=10_000),
        num_attention_heads=heads,
        num_key_value_heads=_size(raw, "num_key_value_heads", heads),
        head_dim=_size(raw, "head_dim", hidden // heads),
        max_position_embeddings=_size(raw, "max_position_embeddings", 2048),
        rms_norm_eps=_number(raw, "rms_norm_eps", 1e-6, least=0, below=1),
        tie_word_embeddings=_switch(raw, "tie_word_embeddings"),
        rope=_rope(raw),
    )


def _rope(raw: Raw) -> Raw:
    rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}  # transformers' order, where both are there
    if not isinstance(rope, Mapping):
        raise LoadError(f"rope scaling must be an object, not {rope!r}")
    for name, value in rope.items():
        if isinstance(value, Mapping):
            raise UnsupportedArchitecture(f"rope parameters of their own for {name!r} are not supported")
    _neutral("partial_rotary_factor", rope.get("partial_rotary_factor"), NEUTRAL["partial_rotary_factor"])
    theta = rope.get("rope_theta", raw.get("rope_theta", 10000.0))
    rope = {**rope, "rope_theta": theta, "rope_type": rope.get("rope_type", rope.get("type", "default"))}
    if raw.get("original_max_position_embeddings") is not None:  # transformers lets it overrule the one inside
        rope["original_max_position_embeddings"] = raw["original_max_position_embeddings"]
    return rope


def _windows(raw: Raw, sliding: Sequence[int]) -> dict[int, int]:
    """The layers with a sliding window and its size; ``sliding``: which they are where ``layer_types`` does not say."""
    types = raw.get("layer_types")
    if types is not None:
        layers, known = _size(raw, "num_hidden_layers"), ("full_attention", "sliding_attention")
        if not isinstance(types, list | tuple) or len(types) != layers:
            raise LoadError(f"config.json needs a type for each of {layers} layers as 'layer_types', not {types!r:.80}")
        for kind in types:
            if kind not in known:
                raise UnsupportedArchitecture(f"layer_types {kind!r} is not supported (supported: {', '.join(known)})")
        sliding = [i for i, kind in enumerate(types) if kind == "sliding_attention"]
    return dict.fromkeys(sliding, _size(raw, "sliding_window")) if sliding else {}


def _size(raw: Raw, name: str, default: int | None = None, most: int = 2**31 - 1, least: int = 1) -> int:
    value = raw.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise LoadError(f"config.json needs a whole number from {least} to {most} as {name!r}, not {value!r}")
    return value


def _number(raw: Raw, name: str, default: float, least: float = -math.inf, below: float = math.inf) -> float:
    value = raw.get(name, default)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not (math.isfinite(value) and least <= value < below)
    ):
        bounds = "" if least == -math.inf else f" from {least} to {below}"
        raise LoadError(f"config.json needs a number{bounds} as {name!r}, not {value!r}")
    return float(value)


def _switch(raw: Raw, name: str) -> bool:
    value = raw.get(name)
    if value not in (None, True, False):
        raise LoadError(f"config.json needs true or false as {name!r}, not {value!r}")
    return bool(value)
