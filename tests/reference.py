"""The oracle: a naive generator without cache, trees or batches, slow on purpose, sharing no code with the library.

``NaiveLlama`` recomputes the whole sequence for every token; ``noise`` hashes with Python's own integers; ``warp`` is
for one row, with plain lists. Whatever a method writes must equal ``generate`` here, token for token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ouroboros.config import SamplingParams

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


class NaiveLlama:
    """Llama's forward over a whole sequence, tensor by tensor as the checkpoint names them."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        self.config = config
        self.weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
        self.dtype = dtype

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean = (x * x).mean(-1, keepdim=True)
        return x / torch.sqrt(mean + self.config["rms_norm_eps"]) * self.weights[name]

    @torch.no_grad()
    def logits(self, tokens: Sequence[int]) -> Tensor:
        """[vocabulary]: the logits behind the last token."""
        config, w = self.config, self.weights
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        n, size = len(tokens), config["hidden_size"] // heads
        inverse = 1.0 / config["rope_theta"] ** (torch.arange(0, size, 2).float() / size)
        angles = torch.arange(n).float()[:, None] * inverse[None]
        cos, sin = angles.cos().to(self.dtype), angles.sin().to(self.dtype)

        def turn(x: Tensor) -> Tensor:
            first, second = x[..., : size // 2], x[..., size // 2 :]
            return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)

        causal = torch.ones(n, n).triu(1).bool()
        x = w["model.embed_tokens.weight"][torch.tensor(tokens)]
        for i in range(config["num_hidden_layers"]):
            p = f"model.layers.{i}."
            h = self.norm(x, p + "input_layernorm.weight")
            q, k, v = (h @ w[f"{p}self_attn.{name}_proj.weight"].T for name in "qkv")
            q = turn(q.view(n, heads, size).transpose(0, 1))
            k = turn(k.view(n, kv_heads, size).transpose(0, 1)).repeat_interleave(heads // kv_heads, 0)
            v = v.view(n, kv_heads, size).transpose(0, 1).repeat_interleave(heads // kv_heads, 0)
            scores = (q @ k.transpose(1, 2) / math.sqrt(size)).masked_fill(causal, -math.inf)
            attended = (scores.softmax(-1) @ v).transpose(0, 1).reshape(n, -1)
            x = x + attended @ w[p + "self_attn.o_proj.weight"].T
            h = self.norm(x, p + "post_attention_layernorm.weight")
            gate, up = h @ w[p + "mlp.gate_proj.weight"].T, h @ w[p + "mlp.up_proj.weight"].T
            x = x + (gate * torch.sigmoid(gate) * up) @ w[p + "mlp.down_proj.weight"].T
        last = self.norm(x[-1], "model.norm.weight")
        return last @ w["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"].T


class NaiveGuided:
    """Classifier-free guidance: the same new tokens behind two prompts."""

    def __init__(self, model: NaiveLlama, scale: float, prompt: Sequence[int], negative: Sequence[int]) -> None:
        self.model, self.scale, self.start, self.negative = model, scale, len(prompt), list(negative)

    def logits(self, tokens: Sequence[int]) -> Tensor:
        yes = self.model.logits(tokens).log_softmax(-1)
        no = self.model.logits([*self.negative, *tokens[self.start :]]).log_softmax(-1)
        return no + self.scale * (yes - no)


def mix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def noise(seed: int, position: int, token: int) -> float:
    """Standard Gumbel noise keyed by its three arguments."""
    state = mix((seed + GOLDEN) & MASK)
    state = mix((state + position * GOLDEN) & MASK)
    bits = mix((state + token * GOLDEN) & MASK) >> 12
    return -math.log(-math.log((bits + 0.5) * 2.0**-52))


def warp(
    logits: Sequence[float], params: SamplingParams, history: Sequence[int], prompt_length: int = 0
) -> list[float]:
    """Log-probabilities up to a constant, -inf for what is cut away."""
    scores = list(logits)
    for token, bias in params.logit_bias:
        scores[token] += bias
    for token in set(history):
        penalty = params.repetition_penalty
        scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty
    for token in set(history[prompt_length:]):
        scores[token] -= params.presence_penalty + params.frequency_penalty * list(history[prompt_length:]).count(token)
    for processor in params.processors:
        scores = processor(torch.tensor([list(history)]), torch.tensor([scores], dtype=torch.float64))[0].tolist()
    if params.temperature == 0:
        return scores
    scores = [score / params.temperature for score in scores]

    def keep(count: int) -> None:
        order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
        for i in order[count:]:
            scores[i] = -math.inf

    if params.top_k:
        keep(params.top_k)
    if params.top_p < 1:
        top = max(scores)
        weights = [math.exp(score - top) for score in scores]
        total = sum(weights)
        count, before = 0, 0.0
        for weight in sorted(weights, reverse=True):
            if before >= params.top_p:
                break
            count += 1
            before += weight / total
        keep(count)
    if params.min_p:
        floor = max(scores) + math.log(params.min_p)
        scores = [score if score >= floor else -math.inf for score in scores]
    return scores


def draw(
    logits: Sequence[float], params: SamplingParams, seed: int, history: Sequence[int], prompt_length: int = 0
) -> int:
    """The token behind ``history``."""
    scores = warp(logits, params, history, prompt_length)
    if params.temperature > 0:
        position = len(history)
        scores = [s + noise(seed, position, i) if s > -math.inf else s for i, s in enumerate(scores)]
    return max(range(len(scores)), key=lambda i: (scores[i], -i))


def generate(
    model: NaiveLlama | NaiveGuided,
    prompt: Sequence[int],
    params: SamplingParams,
    seed: int,
    eos: frozenset[int] = frozenset(),
) -> tuple[int, ...]:
    """The new tokens of plain decoding."""
    tokens = list(prompt)
    for _ in range(params.max_new_tokens):
        tokens.append(draw(model.logits(tokens).tolist(), params, seed, tokens, len(prompt)))
        if tokens[-1] in eos and not params.ignore_eos:
            break
    return tuple(tokens[len(prompt) :])
