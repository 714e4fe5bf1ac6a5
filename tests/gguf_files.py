"""Small GGUF files, as llama.cpp's converter would write them of a transformers model; and any others, good or bad.

The order of rows, the names and what is added to norms are the converter's (convert_hf_to_gguf.py), written down here a
second time. Blocks of the k-quants, which ``gguf`` cannot make, are random ones of a sensible size.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from ouroboros.models.rotary import rotary_frequencies
from ouroboros.models.stored import BLOCKS

__all__ = ["Stored", "byte_vocabulary", "describe", "numbers_of", "random_blocks", "tensors_of", "write_gguf"]

Array = NDArray[Any]
ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}
PAIRED = ("llama", "mistral", "smollm3", "granite")
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.qkv_proj": "attn_qkv", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_up_proj": "ffn_up", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
}  # fmt: skip
NORMS = {"post_attention_layernorm": "ffn_norm"}
GEMMA_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


@dataclass(frozen=True)
class Stored:
    """A tensor as it stands in a file: ggml's name of its type, its bytes, and its shape, rows first."""

    kind: str
    data: bytes
    shape: tuple[int, ...]


def numbers_of(stored: Stored) -> Array:
    """What ``gguf`` makes of it, float32."""
    data = np.frombuffer(stored.data, np.uint8).reshape(math.prod(stored.shape[:-1]), -1)
    found = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[stored.kind])
    return np.array(found, np.float32).reshape(stored.shape)


def random_blocks(kind: str, shape: tuple[int, ...], seed: int = 0, size: float = 0.3) -> Stored:
    """Blocks whose numbers are about as large as ``size``; the scales of blocks differ, some are negative or zero."""
    generator = np.random.default_rng(seed)
    block = BLOCKS[kind]
    if block.numbers == 1:
        values = generator.standard_normal(shape).astype(np.float32) * size
        return stored_as(kind, values)
    count = math.prod(shape) // block.numbers
    data = generator.integers(0, 256, (count, block.bytes), dtype=np.uint8)
    largest = {"Q4_0": 8, "Q5_0": 16, "Q8_0": 128, "Q4_K": 64 * 16, "Q5_K": 64 * 32, "Q6_K": 128 * 32}[kind]
    scales = (generator.standard_normal((count, 2)) * size * 2 / largest).astype(np.float16)
    if kind in ("Q4_K", "Q5_K"):
        scales[:, 1] = np.abs(scales[:, 0]) * 12
    scales[::7] = 0
    places = {"Q6_K": [208], "Q4_K": [0, 2], "Q5_K": [0, 2]}.get(kind, [0])
    for i, place in enumerate(places):
        data[:, place : place + 2] = scales[:, i : i + 1].copy().view(np.uint8)
    return Stored(kind, data.tobytes(), shape)


def stored_as(kind: str, values: Array) -> Stored:
    """Numbers in a type that ``gguf`` can write."""
    found = gguf.quants.quantize(np.ascontiguousarray(values, np.float32), gguf.GGMLQuantizationType[kind])
    return Stored(kind, found.tobytes(), values.shape)


# ---------------------------------------------------------------------------------------------------------- models


def describe(module: PreTrainedModel, **more: Any) -> dict[str, Any]:
    """The metadata of a model, without a tokenizer."""
    config = module.config
    kind = config.model_type
    name = ARCHITECTURES.get(kind, kind)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    ropes = config.rope_parameters
    rope = ropes.get("full_attention", ropes)
    found = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.dimension_count": head,
        "rope.freq_base": float(rope["rope_theta"]),
        "vocab_size": config.vocab_size,
    }
    if rope["rope_type"] in ("linear", "yarn"):
        found |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": float(rope["factor"])}
        if rope["rope_type"] == "yarn":
            found["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    if rope["rope_type"] == "longrope":
        original = config.original_max_position_embeddings
        scale = config.max_position_embeddings / original
        found["rope.scaling.original_context_length"] = original
        found["rope.scaling.attn_factor"] = math.sqrt(1 + math.log(scale) / math.log(original))
    if kind in ("phi3", "gemma2", "gemma3_text") and config.sliding_window:
        found["attention.sliding_window"] = config.sliding_window
    if kind == "gemma2":
        found["attn_logit_softcapping"] = float(config.attn_logit_softcapping)
    if getattr(config, "final_logit_softcapping", None):
        found["final_logit_softcapping"] = float(config.final_logit_softcapping)
    if kind == "gemma3_text":
        found["rope.freq_base_swa"] = float(ropes["sliding_attention"]["rope_theta"])
    if kind == "granite":
        found |= {"attention.scale": config.attention_multiplier, "embedding_scale": config.embedding_multiplier}
        found |= {"residual_scale": config.residual_multiplier, "logit_scale": config.logits_scaling}
    return {"general.architecture": name, **{f"{name}.{key}": value for key, value in found.items()}, **more}


def tensors_of(module: PreTrainedModel, kinds: Mapping[str, str] | None = None) -> dict[str, Stored]:
    """The tensors of a model. ``kinds``: types by a part of the file's name, for matrices; those that ``gguf`` cannot
    write are made of random blocks, which the module gets as its weights. All else is F32."""
    config, found = module.config, {}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            place = name
            gemma = config.model_type.startswith("gemma")
            for theirs, ours in {**NAMES, **(GEMMA_NORMS if gemma else NORMS)}.items():
                place = place.replace(f"{theirs}.", f"{ours}.")
            paired = config.model_type in PAIRED and ("q_proj" in name or "k_proj" in name)
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            kind = next((k for part, k in (kinds or {}).items() if part in place), "F32")
            if parameter.dim() == 1:
                values = parameter.numpy() + (1 if gemma else 0)
                found[place] = stored_as("F32", _permuted(values, heads) if paired else values)
                continue
            values = parameter.numpy()
            shape = tuple(parameter.shape)
            if kind.endswith("_K"):
                stored = random_blocks(kind, shape, seed=len(found), size=0.05)
            else:
                stored = stored_as(kind, _permuted(values, heads) if paired else values)
            found[place] = stored
            back = numbers_of(stored)
            parameter.copy_(torch.from_numpy(_unpermuted(back, heads) if paired else back))
    ropes = config.rope_parameters
    rope = ropes.get("full_attention", ropes)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if rope["rope_type"] == "llama3":
        plain = rotary_frequencies(head, {"rope_theta": rope["rope_theta"]}, 0)[0]
        scaled = rotary_frequencies(head, rope, config.max_position_embeddings)[0]
        found["rope_freqs.weight"] = stored_as("F32", (plain / scaled).numpy())
    if rope["rope_type"] == "longrope":
        for length in ("long", "short"):
            found[f"rope_factors_{length}.weight"] = stored_as("F32", np.array(rope[f"{length}_factor"], np.float32))
    return found


def _permuted(values: Array, heads: int) -> Array:
    shape = values.shape
    return values.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def _unpermuted(values: Array, heads: int) -> Array:
    shape = values.shape
    return values.reshape(heads, shape[0] // heads // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


# ----------------------------------------------------------------------------------------------------- vocabularies


def byte_vocabulary(size: int, merges: Sequence[str] = ("h e", "l l", "he ll", "Ġ w")) -> dict[str, Any]:
    """A byte-level BPE vocabulary: the bytes, what merges make, <|end|> and <|turn|> (control), <think> (added)."""
    alphabet = [chr(i) for i in (*range(33, 127), *range(161, 173), *range(174, 256))]
    alphabet += [chr(256 + i) for i in range(256 - len(alphabet))]
    tokens = [*alphabet, *(merge.replace(" ", "") for merge in merges), "<|end|>", "<|turn|>", "<think>"]
    types = [1] * (len(tokens) - 3) + [3, 3, 4]
    filling = [f"[PAD{i}]" for i in range(len(tokens), size)]
    end = tokens.index("<|end|>")
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens + filling,
        "tokenizer.ggml.token_type": np.array(types + [5] * len(filling), np.int32),
        "tokenizer.ggml.merges": list(merges),
        "tokenizer.ggml.eos_token_id": end,
        "tokenizer.ggml.bos_token_id": end,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{% for m in messages %}<|turn|>{{ m['content'] }}{% endfor %}",
    }


# ----------------------------------------------------------------------------------------------------------- files

CODES = {bool: 7, str: 8, int: 4, float: 6}
ARRAYS = {"int32": 5, "float32": 6, "uint32": 4, "bool": 7}


def write_gguf(
    path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Stored], alignment: int = 32, version: int = 3
) -> Path:
    """Writes a file of the format: texts, whole numbers (uint32), numbers (float32), truths, lists of texts, arrays."""
    out = bytearray(b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata)))
    for key, value in metadata.items():
        out += _text(key) + _value(value)
    offset, data = 0, bytearray()
    for name, stored in tensors.items():
        kind = gguf.GGMLQuantizationType[stored.kind].value
        out += _text(name) + struct.pack("<I", len(stored.shape))
        out += struct.pack(f"<{len(stored.shape)}Q", *reversed(stored.shape)) + struct.pack("<IQ", kind, offset)
        data += stored.data + bytes(-len(stored.data) % alignment)
        offset = len(data)
    out += bytes(-len(out) % alignment)
    path.write_bytes(out + data)
    return path


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value: Any) -> bytes:
    if isinstance(value, list):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_text, value))
    if isinstance(value, np.ndarray):
        return struct.pack("<IIQ", 9, ARRAYS[value.dtype.name], value.size) + value.tobytes()
    code = struct.pack("<I", CODES[type(value)])
    if isinstance(value, str):
        return code + _text(value)
    return code + struct.pack({7: "<?", 4: "<I", 6: "<f"}[CODES[type(value)]], value)
