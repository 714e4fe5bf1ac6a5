"""The native decoder of the Llama architecture: config, weights, one forward for any number of trees.

Rows of all sequences go through the linear layers together; attention runs sequence by sequence over each cache. Only
the rows that are asked for pass the final norm and the output matrix. It knows nothing of files (see loading.py).

Tensor names: N rows of this forward, E hidden size, H query heads, K key heads, D head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ouroboros.errors import LoadError
from ouroboros.models.attention import attend, rotary_frequencies, rotate, visible_rows
from ouroboros.models.base import ModelInfo, ScoreRequest, Slot
from ouroboros.models.kv_cache import KVCache
from ouroboros.tree import TokenTree

__all__ = ["LlamaConfig", "LlamaModel", "WeightSource"]

PREFILL_CHUNK = 512


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """What config.json says of the architecture (names as there)."""

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
    attention_bias: bool = False
    mlp_bias: bool = False
    rope: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
            raise LoadError(f"num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({kv_heads})")
        if self.head_dim % 2:
            raise LoadError(f"head_dim must be even for rotary embeddings, not {self.head_dim}")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that a checkpoint of this config must hold, with its shape."""
        hidden, inner = self.hidden_size, self.intermediate_size
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, hidden)}
        for i in range(self.num_hidden_layers):
            layer = f"model.layers.{i}."
            sizes = {"q_proj": (q, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden), "o_proj": (hidden, q)}
            mlp = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
            for block, linears, bias in (("self_attn", sizes, self.attention_bias), ("mlp", mlp, self.mlp_bias)):
                for name, shape in linears.items():
                    shapes[f"{layer}{block}.{name}.weight"] = shape
                    if bias:
                        shapes[f"{layer}{block}.{name}.bias"] = shape[:1]
            shapes[layer + "input_layernorm.weight"] = (hidden,)
            shapes[layer + "post_attention_layernorm.weight"] = (hidden,)
        shapes["model.norm.weight"] = (hidden,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, hidden)
        return shapes


class WeightSource(Protocol):
    """Where tensors come from, one at a time."""

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The tensor's shape; None where there is no such tensor."""

    def get(self, name: str) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class _Linear:
    weight: Tensor
    bias: Tensor | None

    def __call__(self, x_NE: Tensor) -> Tensor:
        return F.linear(x_NE, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class _Layer:
    input_norm: Tensor
    qkv: _Linear
    out: _Linear
    post_norm: Tensor
    gate_up: _Linear
    down: _Linear


class LlamaModel:
    """A Llama-architecture model (see base.CausalModel).

    Args:
        config: the architecture. weights: the checkpoint's tensors; each is converted and let go at once.
        eos_token_ids: kept for the decoder. dtype, device: where and how to compute.

    Raises:
        LoadError: a tensor is missing or has the wrong shape.
    """

    def __init__(
        self,
        config: LlamaConfig,
        weights: WeightSource,
        eos_token_ids: frozenset[int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        _check(config, weights)
        self.config = config
        self._dtype, self._device = dtype, device
        self._parameters = 0

        def get(*names: str) -> Tensor:
            parts = [weights.get(name).to(device=device, dtype=dtype) for name in names]
            self._parameters += sum(part.numel() for part in parts)
            return torch.cat(parts) if len(parts) > 1 else parts[0].contiguous()

        def linear(prefix: str, names: Sequence[str], bias: bool) -> _Linear:
            weight = get(*(f"{prefix}{name}.weight" for name in names))
            return _Linear(weight, get(*(f"{prefix}{name}.bias" for name in names)) if bias else None)

        self._embedding = get("model.embed_tokens.weight")
        self._layers = []
        for i in range(config.num_hidden_layers):
            prefix = f"model.layers.{i}."
            self._layers.append(
                _Layer(
                    input_norm=get(prefix + "input_layernorm.weight"),
                    qkv=linear(prefix + "self_attn.", ("q_proj", "k_proj", "v_proj"), config.attention_bias),
                    out=linear(prefix + "self_attn.", ("o_proj",), config.attention_bias),
                    post_norm=get(prefix + "post_attention_layernorm.weight"),
                    gate_up=linear(prefix + "mlp.", ("gate_proj", "up_proj"), config.mlp_bias),
                    down=linear(prefix + "mlp.", ("down_proj",), config.mlp_bias),
                )
            )
        self._norm = get("model.norm.weight")
        self._head = _Linear(self._embedding if config.tie_word_embeddings else get("lm_head.weight"), None)
        self._inverse, self._rope_factor = rotary_frequencies(
            config.head_dim, config.rope, config.max_position_embeddings
        )
        self._cos, self._sin = self._rotary_tables(0)
        self.info = ModelInfo(
            backend="native",
            vocab_size=config.vocab_size,
            max_positions=config.max_position_embeddings,
            eos_token_ids=eos_token_ids,
            parameters=self._parameters,
            dtype=str(dtype).removeprefix("torch."),
            device=str(device),
        )

    def open(self) -> KVCache:
        shape = (self.config.num_hidden_layers, self.config.num_key_value_heads, self.config.head_dim)
        return KVCache(shape, self._dtype, self._device)

    @torch.inference_mode()
    def prefill(self, slot: Slot, token_ids: Sequence[int]) -> None:
        cache = _own(slot)
        for start in range(0, len(token_ids), PREFILL_CHUNK):
            self._forward([_Block(cache, token_ids[start : start + PREFILL_CHUNK], None)])

    @torch.inference_mode()
    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        blocks = [_Block(_own(r.slot), r.catch_up, r.tree) for r in requests]
        wanted: list[int] = []  # rows of the whole forward
        counts = []
        first = 0
        for request, block in zip(requests, blocks, strict=True):
            offset = first + len(block.catch_up) - block.pending
            nodes = range(block.pending, len(request.tree)) if request.rows is None else request.rows
            wanted.extend(offset + node for node in nodes)
            counts.append(len(nodes))
            first += len(block.positions)
        hidden_NE = self._forward(blocks)
        if len(wanted) < hidden_NE.shape[0] or any(r.rows is not None for r in requests):
            hidden_NE = hidden_NE[torch.tensor(wanted, dtype=torch.long, device=self._device)]
        logits_NV = self._head(_rms_norm(hidden_NE, self._norm, self.config.rms_norm_eps))
        return list(logits_NV.split(counts))

    def _forward(self, blocks: Sequence[_Block]) -> Tensor:
        """Hidden states [N, E] of all new rows, before the final norm; the caches then hold them."""
        config = self.config
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        positions = [p for block in blocks for p in block.positions]
        for block in blocks:
            block.cache.reserve(len(block.positions))
        masks = [block.mask(self._device) for block in blocks]
        sizes = [len(block.positions) for block in blocks]
        cos_ND, sin_ND = self._rotary(positions)
        tokens = torch.tensor([t for b in blocks for t in b.tokens], device=self._device)
        # Ids beyond the matrix can only reach a draft model with fewer padding rows than its target.
        x_NE = self._embedding[tokens.clamp_(max=config.vocab_size - 1)]
        for i, layer in enumerate(self._layers):
            qkv_ND = layer.qkv(_rms_norm(x_NE, layer.input_norm, config.rms_norm_eps))
            qkv_HND = qkv_ND.view(len(positions), heads + 2 * kv_heads, config.head_dim).transpose(0, 1)
            qk_HND = rotate(qkv_HND[: heads + kv_heads], cos_ND, sin_ND)
            parts = []
            for block, mask, q, k, v in zip(
                blocks,
                masks,
                qk_HND[:heads].split(sizes, 1),
                qk_HND[heads:].split(sizes, 1),
                qkv_HND[heads + kv_heads :].split(sizes, 1),
                strict=True,
            ):
                keys, values = block.cache.write(i, k, v)
                parts.append(attend(q, keys, values, mask))
            x_NE = x_NE + layer.out(parts[0] if len(parts) == 1 else torch.cat(parts))
            gate, up = layer.gate_up(_rms_norm(x_NE, layer.post_norm, config.rms_norm_eps)).chunk(2, -1)
            x_NE = x_NE + layer.down(F.silu(gate) * up)
        for block in blocks:
            block.cache.advance(len(block.catch_up), len(block.positions) - len(block.catch_up))
        return x_NE

    def _rotary(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        if max(positions) >= self._cos.shape[0]:
            self._cos, self._sin = self._rotary_tables(2 * max(positions) + 256)
        index = torch.tensor(positions, device=self._device)
        return self._cos[index], self._sin[index]

    def _rotary_tables(self, size: int) -> tuple[Tensor, Tensor]:
        # Angles in fp32 whatever the dtype: so were they when the checkpoint was trained.
        angles = torch.outer(torch.arange(size).float(), self._inverse)
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos() * self._rope_factor, angles.sin() * self._rope_factor
        return cos.to(self._device, self._dtype), sin.to(self._device, self._dtype)


class _Block:
    """One sequence's rows in a forward: ``catch_up`` tokens to be committed, then the tree's nodes not yet pending."""

    def __init__(self, cache: KVCache, catch_up: Sequence[int], tree: TokenTree | None) -> None:
        assert not catch_up or cache.pending == 0, "catch-up tokens cannot follow pending nodes"
        assert tree is None or len(tree) > cache.pending, "a forward needs new nodes"
        self.cache, self.catch_up, self.tree, self.pending = cache, catch_up, tree, cache.pending
        self.tokens = list(catch_up)
        self.positions = list(range(cache.length, cache.length + len(catch_up)))
        if tree is not None:
            root = cache.length + len(catch_up)
            self.tokens += tree.tokens[cache.pending :]
            self.positions += [root + depth for depth in tree.depths[cache.pending :]]

    def mask(self, device: torch.device) -> Tensor | None:
        mask = visible_rows(self.cache.length, len(self.catch_up), self.tree, self.pending)
        return None if mask is None else mask.to(device)


def _own(slot: Slot) -> KVCache:
    assert isinstance(slot, KVCache), "a slot belongs to the model that opened it"
    return slot


def _rms_norm(x_NE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    """Zhang & Sennrich 2019; the mean is taken in fp32 at least."""
    wide = x_NE if x_NE.dtype in (torch.float32, torch.float64) else x_NE.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return scaled.to(x_NE.dtype) * weight_E


def _check(config: LlamaConfig, weights: WeightSource) -> None:
    shapes = config.shapes()
    missing = [name for name in shapes if weights.shape(name) is None]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise LoadError(f"the checkpoint lacks the tensor {missing[0]!r}{more}")
    for name, shape in shapes.items():
        if weights.shape(name) != shape:
            found = list(weights.shape(name) or ())
            raise LoadError(f"tensor {name!r} has shape {found}, where config.json asks for {list(shape)}")
