"""Text of a small Llama in large batches: what a pair learns from itself.

The library decodes one sequence as fast as it can; training needs many, in no hurry for each. All rows of a batch stand
at the same position, so that no masks are needed: a row whose prompt is longer is fed its prompt for some steps more.

Tensor names: B rows, T tokens of a forward, L positions, H heads, D of a head, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

End = Literal["stop", "forbid", "pass"]
END = 0
COMPACT = 16  # steps after which finished rows are dropped


class Writer:
    """Samples from ``module``, a transformers Llama, in its own type and on its device."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._core = module.model
        self._type = module.lm_head.weight.dtype
        self._device = module.lm_head.weight.device
        config = module.config
        self._heads = config.num_key_value_heads
        self._size = config.hidden_size // config.num_attention_heads

    @torch.inference_mode()
    def write(
        self,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        temperature: float,
        seed: int,
        batch: int = 64,
        end: End = "stop",
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[list[int]]:
        """A continuation of each prompt: at most ``new_tokens``, an end-of-sequence last where there is one.

        Args:
            temperature: 0 is greedy. end: what an end-of-sequence does: ``stop`` the text, be ``forbid``den, or be
                ``pass``ed, as any other token.
        """
        generator = torch.Generator(self._device).manual_seed(seed)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        found: list[list[int]] = [[] for _ in prompts]
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            texts = self._batch([prompts[i] for i in rows], new_tokens, temperature, generator, end)
            for i, text in zip(rows, texts, strict=True):
                found[i] = text
            progress(min(start + batch, len(order)), len(order))
        return found

    def _batch(
        self, prompts: list[Sequence[int]], new_tokens: int, temperature: float, generator: torch.Generator, end: End
    ) -> list[list[int]]:
        shortest, longest = len(prompts[0]), len(prompts[-1])
        limit = longest + new_tokens
        ids_BL = torch.zeros(len(prompts), limit, dtype=torch.long)
        lengths_B = torch.tensor([len(prompt) for prompt in prompts])
        for row, prompt in enumerate(prompts):
            ids_BL[row, : len(prompt)] = torch.tensor(prompt)
        ids_BL, lengths_B = ids_BL.to(self._device), lengths_B.to(self._device)
        finish_B = lengths_B + new_tokens  # position behind a row's last token
        shape = len(prompts), self._heads, limit, self._size
        caches = [[torch.empty(shape, dtype=self._type, device=self._device) for _ in "kv"] for _ in self._core.layers]
        live_B = torch.arange(len(prompts), device=self._device)
        first = 0
        for place in range(shortest, limit):
            logits_BV = self._forward(ids_BL[live_B, first:place], first, caches)
            first = place
            if end == "forbid":
                logits_BV[:, END] = -torch.inf
            drawn_B = draw(logits_BV, temperature, generator)
            given_B = place < lengths_B[live_B]
            ids_BL[live_B, place] = torch.where(given_B, ids_BL[live_B, place], drawn_B)
            if end == "stop":
                ended_B = ~given_B & (drawn_B == END)
                finish_B[live_B[ended_B]] = finish_B[live_B[ended_B]].clamp(max=place + 1)
            if (place - shortest) % COMPACT == COMPACT - 1:
                going_B = finish_B[live_B] > place + 1
                if not bool(going_B.any()):
                    break
                if not bool(going_B.all()):
                    live_B = live_B[going_B]
                    caches = [[tensor[going_B] for tensor in layer] for layer in caches]
        rows = zip(ids_BL.tolist(), lengths_B.tolist(), finish_B.tolist(), strict=True)
        return [ids[length:finish] for ids, length, finish in rows]

    def _forward(self, ids_BT: Tensor, first: int, caches: list[list[Tensor]]) -> Tensor:
        """The last token's logits, float32 [B, V]; keys and values go into the caches at ``first`` and behind it."""
        count = ids_BT.shape[1]
        last = first + count
        x_BTE = self._core.embed_tokens(ids_BT)
        turns = self._core.rotary_emb(x_BTE, torch.arange(first, last, device=self._device)[None])
        for layer, (keys, values) in zip(self._core.layers, caches, strict=True):
            part = layer.self_attn
            h_BTE = layer.input_layernorm(x_BTE)
            q_BHTD, k_BHTD, v_BHTD = (
                one(h_BTE).view(*ids_BT.shape, -1, self._size).transpose(1, 2)
                for one in (part.q_proj, part.k_proj, part.v_proj)
            )
            q_BHTD, k_BHTD = apply_rotary_pos_emb(q_BHTD, k_BHTD, *turns)
            keys[:, :, first:last], values[:, :, first:last] = k_BHTD, v_BHTD
            seen = attend(q_BHTD, keys[:, :, :last], values[:, :, :last])
            x_BTE = x_BTE + part.o_proj(seen.transpose(1, 2).flatten(2))
            x_BTE = x_BTE + layer.mlp(layer.post_attention_layernorm(x_BTE))
        logits: Tensor = self._module.lm_head(self._core.norm(x_BTE[:, -1])).float()
        return logits


def attend(q_BHTD: Tensor, k_BHLD: Tensor, v_BHLD: Tensor) -> Tensor:
    """Causal attention of a beginning, or of one token with all before it (there a CPU is three times faster without
    the fused kernel)."""
    if q_BHTD.shape[2] > 1:
        return F.scaled_dot_product_attention(q_BHTD, k_BHLD, v_BHLD, is_causal=True)
    weights = (q_BHTD @ k_BHLD.mT).float() * q_BHTD.shape[-1] ** -0.5
    seen: Tensor = weights.softmax(-1).to(v_BHLD.dtype) @ v_BHLD
    return seen


def draw(logits_BV: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """A token of each row, [B], by inversion."""
    if temperature == 0:
        return logits_BV.argmax(-1)
    sums_BV = (logits_BV / temperature).softmax(-1).cumsum(-1)
    point_B1 = torch.rand(len(logits_BV), 1, generator=generator, device=logits_BV.device) * sums_BV[:, -1:]
    drawn_B: Tensor = torch.searchsorted(sums_BV, point_B1, right=True)[:, 0]
    return drawn_B.clamp(max=logits_BV.shape[-1] - 1)
