"""Small random models of many architectures, made of transformers' config classes; what the library does with each.

Native families have every feature of theirs switched on that changes the mathematics; windows are narrower than any
test's text.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
import transformers as hf

__all__ = [
    "ADAPTED",
    "CHAINS",
    "GPT",
    "MANY_HEADS",
    "MODERN",
    "NATIVE",
    "TREES",
    "VOCAB",
    "WINDOW",
    "build",
    "perturbed",
]

Module = TypeVar("Module", bound=torch.nn.Module)
Table = Mapping[str, tuple[Any, Mapping[str, Any]]]
VOCAB = 64
WINDOW = 8
HYBRID = ["sliding_attention", "full_attention"]

IDS: Mapping[str, Any] = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
MODERN: Mapping[str, Any] = {
    **IDS,
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
# Every query head has a key head of its own.
MANY_HEADS: Mapping[str, Any] = {name: value for name, value in MODERN.items() if name != "num_key_value_heads"}
FALCON: Mapping[str, Any] = {name: value for name, value in MANY_HEADS.items() if name != "intermediate_size"}
GPT: Mapping[str, Any] = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
}
OPT: Mapping[str, Any] = {
    **IDS,
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "word_embed_proj_dim": 32,
    "init_std": 0.3,
}
BLOOM: Mapping[str, Any] = {
    **{name: GPT[name] for name in ("vocab_size", "n_layer", "n_head", "initializer_range")},
    **IDS,
    "hidden_size": 32,
}
MPT: Mapping[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 4,
    "max_seq_len": 256,
    "initializer_range": 0.3,
}
NEO: Mapping[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "max_position_embeddings": 256,
    "attention_types": [[["global", "local"], 1]],
    "window_size": WINDOW,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
}
HEADS: Mapping[str, Any] = {**MODERN, "head_dim": 8}
SLIDING: Mapping[str, Any] = {"sliding_window": WINDOW, "layer_types": HYBRID}
MOE: Mapping[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}

TREES: Table = {
    "llama": (hf.LlamaConfig, MODERN),
    "mistral": (hf.MistralConfig, {**MODERN, "sliding_window": WINDOW}),
    "qwen2": (hf.Qwen2Config, {**MODERN, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "gpt2": (hf.GPT2Config, GPT),
    "gptj": (hf.GPTJConfig, {**GPT, "rotary_dim": 4}),
    "codegen": (hf.CodeGenConfig, {**GPT, "rotary_dim": 4}),
    "gpt_bigcode": (hf.GPTBigCodeConfig, GPT),
    "gpt_neox": (hf.GPTNeoXConfig, MANY_HEADS),
    "opt": (hf.OPTConfig, OPT),
    "falcon": (hf.FalconConfig, FALCON),
    "phi": (hf.PhiConfig, MODERN),
    "phi3": (hf.Phi3Config, {**MODERN, "sliding_window": WINDOW}),
    "gemma": (hf.GemmaConfig, HEADS),
    "gemma2": (hf.Gemma2Config, {**HEADS, "sliding_window": WINDOW, "query_pre_attn_scalar": 8}),
    "gemma3": (hf.Gemma3TextConfig, {**HEADS, **SLIDING, "query_pre_attn_scalar": 8}),
    "stablelm": (hf.StableLmConfig, MODERN),
    "cohere": (hf.CohereConfig, MODERN),
    "cohere2": (hf.Cohere2Config, {**MODERN, **SLIDING}),
    "olmo": (hf.OlmoConfig, MODERN),
    "olmo2": (hf.Olmo2Config, MODERN),
    "starcoder2": (hf.Starcoder2Config, {**MODERN, "sliding_window": WINDOW}),
    "mixtral": (hf.MixtralConfig, {**MODERN, "num_local_experts": 4, "sliding_window": None}),
    "qwen2_moe": (hf.Qwen2MoeConfig, {**MODERN, **MOE, "num_experts": 4, "shared_expert_intermediate_size": 24}),
    "gpt_oss": (
        hf.GptOssConfig,
        {**HEADS, **SLIDING, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "llama4": (
        hf.Llama4TextConfig,
        {
            **HEADS,
            "intermediate_size_mlp": 48,
            "num_local_experts": 2,
            "attention_chunk_size": WINDOW,
            "no_rope_layers": [1, 0],
        },
    ),
    "deepseek_v3": (
        hf.DeepseekV3Config,
        {
            **MODERN,
            **MOE,
            "num_key_value_heads": 4,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 12,
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
    ),
}
# Distances are counted in rows of the cache, which in a tree are not those of the text.
CHAINS: Table = {
    "bloom": (hf.BloomConfig, BLOOM),
    "mpt": (hf.MptConfig, MPT),
    "falcon with alibi": (hf.FalconConfig, {**FALCON, "alibi": True}),
    "gpt_neo": (hf.GPTNeoConfig, NEO),
}
ADAPTED: Table = {**TREES, **CHAINS}
NATIVE: Table = {
    **{name: TREES[name] for name in ("llama", "mistral", "qwen2", "phi3")},
    "ministral": (hf.MinistralConfig, {**HEADS, **SLIDING}),
    "qwen3": (hf.Qwen3Config, {**HEADS, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "smollm3": (hf.SmolLM3Config, {**MODERN, "no_rope_layer_interval": 2}),
    "seed_oss": (hf.SeedOssConfig, {**HEADS, "attention_out_bias": True}),
    "granite": (
        hf.GraniteConfig,
        {
            **MODERN,
            "attention_multiplier": 0.4,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.7,
            "logits_scaling": 2.0,
        },
    ),
}


def build(name: str, vocab_size: int = VOCAB, **changes: Any) -> Any:
    """The model of that name, with ``changes`` of its config; the same in every call."""
    kind, settings = {**ADAPTED, **NATIVE}[name]
    torch.manual_seed(0)
    return hf.AutoModelForCausalLM.from_config(kind(**{**settings, "vocab_size": vocab_size, **changes})).eval()


def perturbed(module: Module) -> Module:
    """A copy that often, and not always, agrees: for a draft."""
    other = copy.deepcopy(module)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.06 * parameter.std(correction=0))
    return other
