"""From a GGUF file's metadata to DecoderConfig: the fields of a config.json, and what that cannot say.

The file's keys become the fields that its family has in Hugging Face layout (families.py reads those), so that there is
one description of each family. What llama.cpp leaves to its code is here: which layers have a window or no rotary,
scales that follow from a size. It knows nothing of tensors but which there are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ouroboros.errors import LoadError, UnsupportedArchitecture
from ouroboros.models.config import DecoderConfig
from ouroboros.models.families import parse_config
from ouroboros.models.gguf_reader import Value

__all__ = ["ARCHITECTURES", "read_config"]

Raw = dict[str, object]


@dataclass(frozen=True, slots=True)
class _Keys:
    """The metadata of one architecture."""

    metadata: Mapping[str, Value]
    architecture: str

    def size(self, name: str, default: int | None = None) -> int:
        """A count; of a list of one for each layer, what all layers have.

        Raises:
            LoadError: missing, or not a count.
        """
        key = f"{self.architecture}.{name}"
        value = self.metadata.get(key, default)
        if isinstance(value, np.ndarray) and value.size:
            if (value != value.flat[0]).any():
                raise UnsupportedArchitecture(f"{key} differs from layer to layer, which is not supported")
            value = value.flat[0].item()
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
            raise LoadError(f"its metadata need a whole number from 1 to {2**31 - 1} as {key!r}, not {value!r:.40}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """
        Raises:
            LoadError: missing, or no number.
        """
        key = f"{self.architecture}.{name}"
        value = self.metadata.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
            raise LoadError(f"its metadata need a number as {key!r}, not {value!r:.40}")
        return float(value)

    def has(self, name: str) -> bool:
        return f"{self.architecture}.{name}" in self.metadata

    def text(self, name: str, default: str) -> str:
        value = self.metadata.get(f"{self.architecture}.{name}", default)
        if not isinstance(value, str):
            raise LoadError(f"its metadata need a text as {self.architecture + '.' + name!r}, not {value!r:.40}")
        return value


def read_config(
    metadata: Mapping[str, Value], names: Collection[str], vocab_size: int, factors: Mapping[str, list[float]]
) -> tuple[Raw, DecoderConfig]:
    """The fields of a config.json, and the config that they and the rest of the file mean.

    Args:
        names: of the tensors. vocab_size: rows of the embeddings. factors: the numbers of the tensors that divide the
            rotary frequencies, by name.

    Raises:
        UnsupportedArchitecture: another architecture, or a variation that is not computed. LoadError: metadata that
            are missing or make no sense.
    """
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UnsupportedArchitecture(f"its architecture {architecture!r:.40} is not supported (supported: {known})")
    keys = _Keys(metadata, architecture)
    if keys.has("expert_count") and keys.number("expert_count"):
        raise UnsupportedArchitecture(f"{architecture}.expert_count: mixtures of experts are not supported")
    raw = _common(keys, names, vocab_size)
    raw |= ARCHITECTURES[architecture](keys)
    config = parse_config(raw)
    if architecture in ("llama", "smollm3", "granite"):
        qkv, out, mlp = (f"blk.0.{name}.bias" in names for name in ("attn_q", "attn_output", "ffn_down"))
        config = replace(config, qkv_bias=qkv, out_bias=out, mlp_bias=mlp)
    rope, most = _rope(keys, factors, config)
    # Norms are float32 in every file, and Gemma's have their 1 added.
    config = replace(config, rope=rope, max_position_embeddings=most, norm_offset=0.0, wide_norms=True)
    return {**raw, "max_position_embeddings": most}, config


def _common(keys: _Keys, names: Collection[str], vocab_size: int) -> Raw:
    heads, hidden = keys.size("attention.head_count"), keys.size("embedding_length")
    head = keys.size("attention.key_length", hidden // heads or 1)
    for name in ("attention.value_length", "rope.dimension_count"):
        if keys.size(name, head) != head:
            told = f"{keys.architecture}.{name} {keys.size(name)}"
            raise UnsupportedArchitecture(f"{told} is not supported (supported: the heads' size, {head})")
    layers = keys.size("block_count")
    if layers > len(names):
        raise LoadError(f"{keys.architecture}.block_count is {layers}, and it holds {len(names)} tensors")
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": keys.size("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.size("attention.head_count_kv", heads),
        "head_dim": head,
        "max_position_embeddings": keys.size("context_length"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.number("rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in names,
    }


def _llama(keys: _Keys) -> Raw:
    return {"model_type": "llama"}


def _qwen2(keys: _Keys) -> Raw:
    return {"model_type": "qwen2", "use_sliding_window": False}


def _qwen3(keys: _Keys) -> Raw:
    return {"model_type": "qwen3", "use_sliding_window": False}


def _phi3(keys: _Keys) -> Raw:
    window = keys.size("attention.sliding_window") if keys.has("attention.sliding_window") else None
    return {"model_type": "phi3", "sliding_window": window}


def _gemma2(keys: _Keys) -> Raw:
    return {
        "model_type": "gemma2",
        "sliding_window": keys.size("attention.sliding_window", 4096),
        "query_pre_attn_scalar": _scaled_by(keys, 46),
        "attn_logit_softcapping": keys.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": keys.number("final_logit_softcapping", 30.0),
    }


def _gemma3(keys: _Keys) -> Raw:
    cap = keys.number("final_logit_softcapping") if keys.has("final_logit_softcapping") else None
    return {
        "model_type": "gemma3_text",
        "sliding_window": keys.size("attention.sliding_window"),
        "sliding_window_pattern": keys.size("attention.sliding_window_pattern", 6),
        "query_pre_attn_scalar": _scaled_by(keys, 62),
        "rope_local_base_freq": keys.number("rope.freq_base_swa", 10000.0),
        "final_logit_softcapping": cap or None,
    }


def _scaled_by(keys: _Keys, layers_of_27b: int) -> float:
    """What the root of divides the scores: a head's size, but for the 27 B models of Gemma, which no key says."""
    heads, hidden = keys.size("attention.head_count"), keys.size("embedding_length")
    of_27b = keys.size("block_count") == layers_of_27b
    return hidden / heads if of_27b else keys.size("attention.key_length", hidden // heads or 1)


def _smollm3(keys: _Keys) -> Raw:
    return {"model_type": "smollm3", "no_rope_layer_interval": 4}


def _granite(keys: _Keys) -> Raw:
    head = keys.size("attention.key_length", keys.size("embedding_length") // keys.size("attention.head_count") or 1)
    return {
        "model_type": "granite",
        "attention_multiplier": keys.number("attention.scale", head**-0.5) or head**-0.5,
        "embedding_multiplier": keys.number("embedding_scale", 1.0) or 1.0,
        "residual_multiplier": keys.number("residual_scale", 1.0) or 1.0,
        "logits_scaling": keys.number("logit_scale", 1.0) or 1.0,
    }


# general.architecture; Mistral's files say "llama".
ARCHITECTURES: Mapping[str, Callable[[_Keys], Raw]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "phi3": _phi3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "smollm3": _smollm3,
    "granite": _granite,
}


def _rope(keys: _Keys, factors: Mapping[str, list[float]], config: DecoderConfig) -> tuple[Mapping[str, object], int]:
    """The rope, and how many positions it is good for."""
    most = config.max_position_embeddings
    rope: Raw = {"rope_theta": config.rope["rope_theta"], "rope_type": "default"}
    kind = keys.text("rope.scaling.type", "linear")
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0)) or 1.0
    original = keys.size("rope.scaling.original_context_length", most)
    magnitude = keys.number("rope.scaling.attn_factor", 1.0)
    for name, values in factors.items():
        if len(values) != config.head_dim // 2:
            raise LoadError(
                f"tensor {name!r} has {len(values)} numbers, where heads have {config.head_dim // 2} frequencies"
            )
    if "rope_factors_short.weight" in factors:
        # The long factors are for texts beyond the original context, and would change earlier tokens' keys there.
        rope |= {"rope_type": "factors", "factors": factors["rope_factors_short.weight"]}
        return rope | {"attention_factor": magnitude}, min(most, original)
    if "rope_freqs.weight" in factors:
        if factor != 1:
            raise UnsupportedArchitecture(f"rope.scaling.factor {factor} beside rope_freqs.weight is not supported")
        return rope | {"rope_type": "factors", "factors": factors["rope_freqs.weight"]}, most
    if kind not in ("none", "linear", "yarn"):
        raise UnsupportedArchitecture(
            f"rope.scaling.type {kind!r:.40} is not supported (supported: none, linear, yarn)"
        )
    if kind == "none" or factor == 1:
        return rope, most
    rope |= {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        if keys.number("rope.scaling.yarn_log_multiplier", 0.0):
            raise UnsupportedArchitecture("rope.scaling.yarn_log_multiplier is not supported")
        if magnitude != 1:
            raise UnsupportedArchitecture(f"rope.scaling.attn_factor {magnitude} with yarn is not supported")
        rope["original_max_position_embeddings"] = original
        for name in ("beta_fast", "beta_slow"):
            if keys.has(f"rope.scaling.yarn_{name}"):
                rope[name] = keys.number(f"rope.scaling.yarn_{name}")
    return rope, most
