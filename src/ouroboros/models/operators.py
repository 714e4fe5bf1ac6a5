"""OperatorDecoder: the forward in PyTorch's operators, for every type and device, and the kernels' slow twin.

Rows of all sequences go through the linear layers together; attention runs sequence by sequence over each cache. Only
the rows that are asked for pass the final norm and the output matrix.

Tensor names: N rows of this forward, E hidden size, H query heads, K key heads, D head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ouroboros.models.attention import View, attend, soft_cap, visible_rows
from ouroboros.models.block import Block
from ouroboros.models.linear import Linear, linear
from ouroboros.models.quantised import head_format
from ouroboros.models.rotary import rotary_frequencies, rotate
from ouroboros.models.weights import LayerWeights, Reader

__all__ = ["OperatorDecoder"]

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


@dataclass(frozen=True, slots=True)
class _Layer:
    window: int | None  # positions that its rows see, None for all
    rotary: bool
    rope: int  # which of the config's
    input_norm: Tensor
    qkv: Linear
    qk_norm: Tensor | None  # [query heads + key heads, 1, head size]
    out: Linear
    post_norm: Tensor
    gate_up: Linear
    down: Linear
    output_norms: tuple[Tensor, Tensor] | None


class OperatorDecoder:
    """Computes forwards of one model (see llama.Decoder). ``layers``: the linear layers' format (see linear.py)."""

    def __init__(self, reader: Reader, layers: str) -> None:
        config = self._config = reader.config
        self._dtype, self._device = reader.dtype, reader.device
        self.embedding = reader.embedding()
        self.layers = [self._layer(i, reader.layer(i), layers) for i in range(config.num_hidden_layers)]
        self.windows = {layer.window for layer in self.layers}
        self._norm = reader.norm()
        tied = config.tie_word_embeddings  # then there is one matrix, which stays as it is
        self._head = linear(self.embedding, None, "plain") if tied else linear(reader.head(), None, head_format(layers))
        self._ropes = [rotary_frequencies(config.head_dim, r, config.max_position_embeddings) for r in config.ropes()]
        self._activation = ACTIVATIONS[config.activation]
        self.tables = self._rotary_tables(0)

    def _layer(self, index: int, tensors: LayerWeights, layers: str) -> _Layer:
        config = self._config
        norms = tensors.qk_norm()
        if norms is not None:
            counts = torch.tensor((config.num_attention_heads, config.num_key_value_heads), device=self._device)
            qk_norm = torch.stack(norms).repeat_interleave(counts, dim=0)[:, None]
        return _Layer(
            window=config.windows.get(index),
            rotary=index not in config.without_rotary,
            rope=config.rope_of(index),
            input_norm=tensors.input_norm(),
            qkv=linear(*tensors.qkv(), layers),
            qk_norm=None if norms is None else qk_norm,
            out=linear(*tensors.out(), layers),
            post_norm=tensors.post_norm(),
            gate_up=linear(*tensors.gate_up(), layers),
            down=linear(*tensors.down(), layers),
            output_norms=tensors.output_norms(),
        )

    def forward(self, blocks: Sequence[Block], wanted: Sequence[int]) -> Tensor:
        x_NE = self._hidden(blocks)
        if not wanted:
            return x_NE.new_empty((0, self._config.vocab_size))
        if list(wanted) != list(range(x_NE.shape[0])):
            x_NE = x_NE[torch.tensor(wanted, dtype=torch.long, device=self._device)]
        return self.logits(x_NE)

    def logits(self, x_NE: Tensor) -> Tensor:
        """[N, V] of final hidden states."""
        logits_NV = self._head(rms_norm(x_NE, self._norm, self._config.rms_norm_eps))
        if self._config.logits_divisor != 1:
            logits_NV /= self._config.logits_divisor
        if self._config.logits_softcap is not None:
            logits_NV = soft_cap(logits_NV, self._config.logits_softcap)
        return logits_NV

    def _hidden(self, blocks: Sequence[Block]) -> Tensor:
        """Hidden states [N, E] of all new rows, before the final norm; the caches then hold them."""
        config = self._config
        positions = [p for block in blocks for p in block.positions()]
        for block in blocks:
            block.cache.reserve(len(block))
        views = [self._views(block) for block in blocks]
        sizes = [len(block) for block in blocks]
        turns = self._rotary(positions)
        tokens = torch.tensor([t for b in blocks for t in b.tokens], device=self._device)
        # Ids beyond the matrix can only reach a draft model with fewer padding rows than its target.
        tokens.clamp_(max=config.vocab_size - 1)

        def attention(i: int, q_HND: Tensor, k_HND: Tensor, v_HND: Tensor) -> Tensor:
            parts = []
            rows = q_HND.split(sizes, 1), k_HND.split(sizes, 1), v_HND.split(sizes, 1)
            for block, view, q, k, v in zip(blocks, views, *rows, strict=True):
                first, mask = view[self.layers[i].window]
                keys, values = block.cache.write(i, k, v, first)
                parts.append(attend(q, keys, values, mask, config.attention_scale, config.attention_softcap))
            return parts[0] if len(parts) == 1 else torch.cat(parts)

        x_NE = self.run(tokens, turns, attention)
        for block in blocks:
            block.advance()
        return x_NE

    def run(
        self, tokens: Tensor, turns: Sequence[Tensor], attention: Callable[[int, Tensor, Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Hidden states [N, E] behind all layers, before the final norm.

        Args:
            tokens: int64 [N], within the vocabulary. turns: cos and sin [N, D] of each rope. attention: from a layer's
                number, queries [H, N, D], keys and values [K, N, D], which it puts into the cache, to [N, H * D].
        """
        config = self._config
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        x_NE = self.embedding[tokens]
        if config.embedding_multiplier != 1:
            x_NE = x_NE * config.embedding_multiplier
        for i, layer in enumerate(self.layers):
            qkv_ND = layer.qkv(rms_norm(x_NE, layer.input_norm, config.rms_norm_eps))
            qkv_HND = qkv_ND.view(len(tokens), heads + 2 * kv_heads, config.head_dim).transpose(0, 1)
            qk_HND = qkv_HND[: heads + kv_heads]
            if layer.qk_norm is not None:
                qk_HND = rms_norm(qk_HND, layer.qk_norm, config.rms_norm_eps)
            if layer.rotary:
                qk_HND = rotate(qk_HND, *turns[2 * layer.rope : 2 * layer.rope + 2])
            added_NE = layer.out(attention(i, qk_HND[:heads], qk_HND[heads:], qkv_HND[heads + kv_heads :]))
            if layer.output_norms is not None:
                added_NE = rms_norm(added_NE, layer.output_norms[0], config.rms_norm_eps)
            x_NE = torch.add(x_NE, added_NE, alpha=config.residual_multiplier)
            gate, up = layer.gate_up(rms_norm(x_NE, layer.post_norm, config.rms_norm_eps)).chunk(2, -1)
            added_NE = layer.down(self._activation(gate) * up)
            if layer.output_norms is not None:
                added_NE = rms_norm(added_NE, layer.output_norms[1], config.rms_norm_eps)
            x_NE = torch.add(x_NE, added_NE, alpha=config.residual_multiplier)
        return x_NE

    def _views(self, block: Block) -> dict[int | None, View]:
        views = visible_rows(block.cache.length, len(block.catch_up), block.tree, block.pending, self.windows)
        return {w: View(first, None if mask is None else mask.to(self._device)) for w, (first, mask) in views.items()}

    def _rotary(self, positions: Sequence[int]) -> list[Tensor]:
        self.grow_tables(max(positions) + 1)
        index = torch.tensor(positions, device=self._device)
        return [table[index] for table in self.tables]

    def grow_tables(self, size: int) -> None:
        """Makes the rotary tables hold positions below ``size``."""
        if size > self.tables[0].shape[0]:
            self.tables = self._rotary_tables(2 * size + 254)

    def _rotary_tables(self, size: int) -> tuple[Tensor, ...]:
        """cos and sin of each rope."""
        tables = []
        for inverse, factor in self._ropes:
            # Angles in fp32 whatever the dtype: so were they when the checkpoint was trained.
            angles = torch.outer(torch.arange(size).float(), inverse)
            angles = torch.cat((angles, angles), dim=-1)
            tables += [angles.cos() * factor, angles.sin() * factor]
        return tuple(table.to(self._device, self._dtype) for table in tables)


def rms_norm(x_NE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    """Zhang & Sennrich 2019; the mean is taken in fp32 at least."""
    wide = x_NE if x_NE.dtype in (torch.float32, torch.float64) else x_NE.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if weight_E.dtype != x_NE.dtype:
        return (scaled * weight_E).to(x_NE.dtype)
    return scaled.to(x_NE.dtype) * weight_E
