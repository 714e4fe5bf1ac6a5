"""The native decoder of the Llama architecture and its variations: weights, one forward for any number of trees.

Rows of all sequences go through the linear layers together; attention runs sequence by sequence over each cache. Only
the rows that are asked for pass the final norm and the output matrix. It knows nothing of files (see loading.py) and
nothing of families: config.py describes the mathematics, families.py reads it out of config.json.

Tensor names: N rows of this forward, E hidden size, H query heads, K key heads, D head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ouroboros.errors import LoadError
from ouroboros.models.attention import View, attend, visible_rows
from ouroboros.models.base import ModelInfo, ScoreRequest, Slot
from ouroboros.models.config import DecoderConfig
from ouroboros.models.kv_cache import KVCache
from ouroboros.models.rotary import rotary_frequencies, rotate
from ouroboros.tree import TokenTree

__all__ = ["LlamaModel", "WeightSource", "check_tensors"]

PREFILL_CHUNK = 512


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
    window: int | None  # positions that its rows see, None for all
    rotary: bool
    input_norm: Tensor
    qkv: _Linear
    qk_norm: Tensor | None  # [query heads + key heads, 1, head size]
    out: _Linear
    post_norm: Tensor
    gate_up: _Linear
    down: _Linear


class LlamaModel:
    """A model of the Llama kind (see base.CausalModel).

    Args:
        config: the mathematics. weights: the checkpoint's tensors; each is converted and let go at once.
        eos_token_ids, grown: kept for ``info``. dtype, device: where and how to compute.

    Raises:
        LoadError: a tensor is missing or has the wrong shape.
    """

    def __init__(
        self,
        config: DecoderConfig,
        weights: WeightSource,
        eos_token_ids: frozenset[int],
        dtype: torch.dtype,
        device: torch.device,
        grown: str | None = None,
    ) -> None:
        check_tensors(config, weights)
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

        def head_norms(prefix: str) -> Tensor:
            q, k = get(prefix + "q_norm.weight"), get(prefix + "k_norm.weight")
            counts = torch.tensor((config.num_attention_heads, config.num_key_value_heads), device=device)
            return torch.stack((q, k)).repeat_interleave(counts, dim=0)[:, None]

        self._embedding = get("model.embed_tokens.weight")
        self._layers = []
        for i in range(config.num_hidden_layers):
            prefix = f"model.layers.{i}."
            self._layers.append(
                _Layer(
                    window=config.windows.get(i),
                    rotary=i not in config.without_rotary,
                    input_norm=get(prefix + "input_layernorm.weight"),
                    qkv=linear(prefix + "self_attn.", tuple(config.qkv()), config.qkv_bias),
                    qk_norm=head_norms(prefix + "self_attn.") if config.qk_norm else None,
                    out=linear(prefix + "self_attn.", ("o_proj",), config.out_bias),
                    post_norm=get(prefix + "post_attention_layernorm.weight"),
                    gate_up=linear(prefix + "mlp.", tuple(config.gate_up()), config.mlp_bias),
                    down=linear(prefix + "mlp.", ("down_proj",), config.mlp_bias),
                )
            )
        self._windows = {layer.window for layer in self._layers}
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
            grown=grown,
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
        if self.config.logits_divisor != 1:
            logits_NV /= self.config.logits_divisor
        return list(logits_NV.split(counts))

    def _forward(self, blocks: Sequence[_Block]) -> Tensor:
        """Hidden states [N, E] of all new rows, before the final norm; the caches then hold them."""
        config = self.config
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        positions = [p for block in blocks for p in block.positions]
        for block in blocks:
            block.cache.reserve(len(block.positions))
        views = [block.views(self._windows, self._device) for block in blocks]
        sizes = [len(block.positions) for block in blocks]
        cos_ND, sin_ND = self._rotary(positions)
        tokens = torch.tensor([t for b in blocks for t in b.tokens], device=self._device)
        # Ids beyond the matrix can only reach a draft model with fewer padding rows than its target.
        x_NE = self._embedding[tokens.clamp_(max=config.vocab_size - 1)]
        if config.embedding_multiplier != 1:
            x_NE = x_NE * config.embedding_multiplier
        for i, layer in enumerate(self._layers):
            qkv_ND = layer.qkv(_rms_norm(x_NE, layer.input_norm, config.rms_norm_eps))
            qkv_HND = qkv_ND.view(len(positions), heads + 2 * kv_heads, config.head_dim).transpose(0, 1)
            qk_HND = qkv_HND[: heads + kv_heads]
            if layer.qk_norm is not None:
                qk_HND = _rms_norm(qk_HND, layer.qk_norm, config.rms_norm_eps)
            if layer.rotary:
                qk_HND = rotate(qk_HND, cos_ND, sin_ND)
            parts = []
            for block, view, q, k, v in zip(
                blocks,
                views,
                qk_HND[:heads].split(sizes, 1),
                qk_HND[heads:].split(sizes, 1),
                qkv_HND[heads + kv_heads :].split(sizes, 1),
                strict=True,
            ):
                first, mask = view[layer.window]
                keys, values = block.cache.write(i, k, v, first)
                parts.append(attend(q, keys, values, mask, config.attention_scale))
            added_NE = layer.out(parts[0] if len(parts) == 1 else torch.cat(parts))
            x_NE = torch.add(x_NE, added_NE, alpha=config.residual_multiplier)
            gate, up = layer.gate_up(_rms_norm(x_NE, layer.post_norm, config.rms_norm_eps)).chunk(2, -1)
            x_NE = torch.add(x_NE, layer.down(F.silu(gate) * up), alpha=config.residual_multiplier)
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

    def views(self, windows: Iterable[int | None], device: torch.device) -> dict[int | None, View]:
        views = visible_rows(self.cache.length, len(self.catch_up), self.tree, self.pending, windows)
        return {w: View(first, None if mask is None else mask.to(device)) for w, (first, mask) in views.items()}


def _own(slot: Slot) -> KVCache:
    assert isinstance(slot, KVCache), "a slot belongs to the model that opened it"
    return slot


def _rms_norm(x_NE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    """Zhang & Sennrich 2019; the mean is taken in fp32 at least."""
    wide = x_NE if x_NE.dtype in (torch.float32, torch.float64) else x_NE.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return scaled.to(x_NE.dtype) * weight_E


def check_tensors(config: DecoderConfig, weights: WeightSource) -> None:
    """Raises:
    LoadError: a tensor of the config is missing or has the wrong shape.
    """
    shapes = config.shapes()
    missing = [name for name in shapes if weights.shape(name) is None]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise LoadError(f"the checkpoint lacks the tensor {missing[0]!r}{more}")
    for name, shape in shapes.items():
        if weights.shape(name) != shape:
            found = list(weights.shape(name) or ())
            raise LoadError(f"tensor {name!r} has shape {found}, where config.json asks for {list(shape)}")
