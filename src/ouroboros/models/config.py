"""DecoderConfig: the mathematics of a model of the Llama kind, and the tensors that a checkpoint of it holds.

It names no family: families.py turns each family's config.json into one of these, and the decoder reads nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ouroboros.errors import LoadError
from ouroboros.models.rotary import rotary_frequencies

__all__ = ["DecoderConfig", "Shape"]

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Sizes under their names in config.json, then what families differ in.

    Attributes:
        rope: rope_theta, rope_type and the type's numbers. without_rotary: layers that use no positions at all.
        qkv_bias, out_bias, mlp_bias: biases of queries, keys and values; of the attention's output; of the MLP.
        qk_norm: RMS norms over each head's queries and keys, before they are turned.
        windows: of the layers that see a sliding window alone, how many positions (their own included).
        attention_scale: factor on the scores, None for 1 / √head_dim. embedding_multiplier: on the embeddings.
        residual_multiplier: on what each block adds. logits_divisor: of the logits.
        fused_tensors: the checkpoint holds queries, keys and values as one tensor, and so gate and up.
        activation: of the MLP's gate; ``gelu_tanh`` is GELU by its tanh formula. output_norms: RMS norms over what each
            block adds, too.
        norm_offset: what is added to the gains as they are stored. wide_norms: gains stay float32 in narrower models,
            where a norm is rounded once then, after its gain.
        attention_softcap, logits_softcap: a cap c, by which scores and logits x become c tanh(x / c).
        window_rope: the ``rope`` of layers with a window, where it is another.

    Raises:
        LoadError: numbers that do not fit together. UnsupportedArchitecture: a rope type.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    rope: Mapping[str, object] = field(default_factory=dict)
    without_rotary: frozenset[int] = frozenset()
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    windows: Mapping[int, int] = field(default_factory=dict)
    attention_scale: float | None = None
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_divisor: float = 1.0
    fused_tensors: bool = False
    activation: Literal["silu", "gelu_tanh"] = "silu"
    output_norms: bool = False
    norm_offset: float = 0.0
    wide_norms: bool = False
    attention_softcap: float | None = None
    logits_softcap: float | None = None
    window_rope: Mapping[str, object] | None = None

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
            raise LoadError(f"num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({kv_heads})")
        if self.head_dim % 2:
            raise LoadError(f"head_dim must be even for rotary embeddings, not {self.head_dim}")
        for rope in self.ropes():  # refuses here, before any tensor is read
            rotary_frequencies(2, rope, self.max_position_embeddings)

    def ropes(self) -> list[Mapping[str, object]]:
        """The ropes that there are: that of most layers, then that of layers with a window if it is another."""
        return [self.rope] if self.window_rope is None else [self.rope, self.window_rope]

    def rope_of(self, layer: int) -> int:
        """Which of ``ropes`` a layer has."""
        return int(self.window_rope is not None and layer in self.windows)

    def qkv(self) -> dict[str, Shape]:
        """The tensors of queries, keys and values, which are stacked in this order, and their shapes."""
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        if self.fused_tensors:
            return {"qkv_proj": (q + 2 * kv, self.hidden_size)}
        return {"q_proj": (q, self.hidden_size), "k_proj": (kv, self.hidden_size), "v_proj": (kv, self.hidden_size)}

    def gate_up(self) -> dict[str, Shape]:
        """The same of the MLP's gate and up."""
        inner, hidden = self.intermediate_size, self.hidden_size
        if self.fused_tensors:
            return {"gate_up_proj": (2 * inner, hidden)}
        return {"gate_proj": (inner, hidden), "up_proj": (inner, hidden)}

    def shapes(self) -> dict[str, Shape]:
        """Every tensor that a checkpoint of this config must hold, with its shape."""
        hidden = self.hidden_size
        out = {"o_proj": (hidden, self.num_attention_heads * self.head_dim)}
        down = {"down_proj": (hidden, self.intermediate_size)}
        shapes: dict[str, Shape] = {"model.embed_tokens.weight": (self.vocab_size, hidden)}
        for i in range(self.num_hidden_layers):
            layer = f"model.layers.{i}."
            for block, linears, bias in (
                ("self_attn.", self.qkv(), self.qkv_bias),
                ("self_attn.", out, self.out_bias),
                ("mlp.", self.gate_up() | down, self.mlp_bias),
            ):
                for name, shape in linears.items():
                    shapes[f"{layer}{block}{name}.weight"] = shape
                    if bias:
                        shapes[f"{layer}{block}{name}.bias"] = shape[:1]
            if self.qk_norm:
                shapes |= {f"{layer}self_attn.{name}_norm.weight": (self.head_dim,) for name in "qk"}
            shapes[layer + "input_layernorm.weight"] = (hidden,)
            shapes[layer + "post_attention_layernorm.weight"] = (hidden,)
            if self.output_norms:
                shapes |= {f"{layer}{place}_feedforward_layernorm.weight": (hidden,) for place in ("pre", "post")}
        shapes["model.norm.weight"] = (hidden,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, hidden)
        return shapes

    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes().values())
