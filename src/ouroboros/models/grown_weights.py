"""GrownWeights: the tensors of a grown checkpoint, made one by one when asked for; grow.py says why they are exact."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from ouroboros.models.config import DecoderConfig
from ouroboros.models.weights import WeightSource, check_tensors

__all__ = ["GrownWeights", "constant_of", "copies_of", "is_power_of_4", "spread_of"]

Axis = tuple[Tensor, Tensor]  # indices of the small tensor, and where each goes in the grown one; both int64 [n]
# Rows and columns of each matrix. "written": hidden dimensions of the residual stream; "read": of its norms.
AXES = {
    "q_proj": ("query", "read"),
    "k_proj": ("key", "read"),
    "v_proj": ("key", "read"),
    "o_proj": ("written", "query"),
    "gate_proj": ("inner", "read"),
    "up_proj": ("inner", "read"),
    "down_proj": ("written", "inner"),
    "embed_tokens": ("token", "written"),
    "lm_head": ("token", "read"),
}


class GrownWeights:
    """models.llama.WeightSource of a grown checkpoint.

    Args:
        small, weights: the checkpoint. large: what ``grown_config`` made of it. dtype, device: of the tensors that
            ``get`` returns. seed: of their random parts.

    Raises:
        LoadError: the checkpoint lacks a tensor, or one has the wrong shape.
    """

    def __init__(
        self,
        small: DecoderConfig,
        weights: WeightSource,
        large: DecoderConfig,
        dtype: torch.dtype,
        device: torch.device,
        seed: int = 0,
    ) -> None:
        check_tensors(small, weights)
        self._small, self._large, self._weights = small, large, weights
        self.dtype, self._device, self._seed = dtype, device, seed
        self._shapes = large.shapes()
        self._kept = copies_of(small, large) * small.hidden_size  # dimensions that hold old ones
        hidden, written = torch.arange(small.hidden_size), torch.arange(self._kept)
        inner, token = torch.arange(small.intermediate_size), torch.arange(small.vocab_size)
        queries, keys = _heads(small, large)
        self._axes: dict[str, Axis] = {
            "read": (hidden, hidden),
            "written": (written % small.hidden_size, written),
            "inner": (inner, inner),
            "token": (token, token),
            "query": _dimensions(small, large, queries),
            "key": _dimensions(small, large, keys),
        }
        eps, head_ratio = small.rms_norm_eps, large.head_dim / small.head_dim
        # Norms over heads have the same eps as the others: their input goes with it.
        norm = math.sqrt(large.rms_norm_eps / eps) if small.qk_norm and eps else 1.0
        fold = math.sqrt(head_ratio) if large.attention_scale is None else 1.0
        self._factors = {"q_proj": norm * fold, "k_proj": norm}

    def shape(self, name: str) -> tuple[int, ...] | None:
        return self._shapes.get(name)

    def shares(self, name: str, dtype: torch.dtype, device: torch.device) -> bool:
        return False

    def get(self, name: str) -> Tensor:
        shape = self._shapes[name]
        module = name.split(".")[-2]
        old = self._old(name)
        if module.endswith("norm"):
            return self._gains(name, shape, old)
        axes = AXES[module][: len(shape)]
        tensor = torch.empty(shape, dtype=self.dtype, device=self._device)
        if "written" in axes:  # nothing new is added to the residual stream
            tensor.zero_()
        else:
            key = hashlib.blake2b(f"{self._seed}:{name}".encode(), digest_size=7).digest()
            generator = torch.Generator(self._device).manual_seed(int.from_bytes(key, "big"))
            bound = math.sqrt(3 / self._large.hidden_size)  # a variance of 1 / fan-in
            tensor.uniform_(-bound, bound, generator=generator)
        if old is not None:
            self._place(tensor, old, module, axes)
        return tensor

    def _place(self, tensor: Tensor, old: Tensor, module: str, axes: tuple[str, ...]) -> None:
        """Puts the old numbers where they belong."""
        sources, places = zip(*(self._axes[axis] for axis in axes), strict=True)
        if module == "q_proj":  # new dimensions of old heads meet random keys
            idle = torch.zeros(tensor.shape[0] // self._large.head_dim, self._large.head_dim, dtype=torch.bool)
            idle[places[0] // self._large.head_dim] = True
            idle.view(-1)[places[0]] = False
            tensor[idle.flatten().to(self._device)] = 0
        part = old[sources[0]] if len(sources) == 1 else old[sources[0]][:, sources[1]]
        scaled = self._scaled(part, self._factors.get(module, 1.0))
        if len(places) == 1:
            tensor[places[0].to(self._device)] = scaled
        else:
            rows, columns = (place.to(self._device) for place in places)
            tensor[rows[:, None], columns] = scaled
        vocab_size = self._small.vocab_size
        if self._large.vocab_size > vocab_size and module == "embed_tokens":
            tensor[:, -1] = constant_of(self._small, self._large)
        if self._large.vocab_size > vocab_size and module == "lm_head":
            tensor[:vocab_size, -1] = 0
            tensor[vocab_size:, -1] = -math.inf

    def _gains(self, name: str, shape: tuple[int, ...], old: Tensor | None) -> Tensor:
        """They are zero for copies and for the constant, but for the constant's in the final norm; they are one for the
        other new dimensions, and throughout new layers."""
        gains = torch.ones(shape, dtype=self.dtype, device=self._device)
        if old is None:
            return gains
        small, large = self._small, self._large
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            return self._scaled(old, 1.0)
        gains[: len(old)] = self._scaled(old, math.sqrt(self._kept / large.hidden_size))
        gains[len(old) : self._kept] = 0
        if large.vocab_size > small.vocab_size and name != "model.norm.weight":
            gains[-1] = 0
        return gains

    def _scaled(self, old: Tensor, factor: float) -> Tensor:
        wide = old.to(torch.promote_types(torch.promote_types(old.dtype, self.dtype), torch.float32))
        return (wide * factor).to(device=self._device, dtype=self.dtype)

    def _old(self, name: str) -> Tensor | None:
        """None in a new layer."""
        if name == "lm_head.weight" and self._small.tie_word_embeddings:
            name = "model.embed_tokens.weight"
        return self._weights.get(name) if self._weights.shape(name) is not None else None


def copies_of(small: DecoderConfig, large: DecoderConfig) -> int:
    """How often the hidden state is there: t, see the head of the file."""
    if large.hidden_size == small.hidden_size:
        return 1
    spare = large.vocab_size > small.vocab_size
    most = (large.hidden_size - spare) // small.hidden_size
    exact = (t for t in range(1, most + 1) if is_power_of_4(large.hidden_size, t * small.hidden_size))
    return next(exact, 1)


def constant_of(small: DecoderConfig, large: DecoderConfig) -> float:
    """The constant dimension of the embeddings, 0 where there is none: a power of two, so that every dtype holds it,
    that takes at most half of eps's place."""
    share = small.rms_norm_eps * copies_of(small, large) * small.hidden_size / 2
    if large.vocab_size == small.vocab_size or not share or not small.embedding_multiplier:
        return 0.0
    return float(2.0 ** math.floor(math.log2(math.sqrt(share) / abs(small.embedding_multiplier))))


def spread_of(small: DecoderConfig, large: DecoderConfig) -> int:
    """Over how many new key heads the queries of an old one are spread: their groups may be smaller."""
    old, new = (c.num_attention_heads // c.num_key_value_heads for c in (small, large))
    return -(-old // new)


def _heads(small: DecoderConfig, large: DecoderConfig) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(old head, new head) of queries, and of keys and values: query head h reads key head h // group."""
    old, new = (c.num_attention_heads // c.num_key_value_heads for c in (small, large))
    spread = spread_of(small, large)
    queries = [
        (head, (head // old * spread + head % old // new) * new + head % old % new)
        for head in range(small.num_attention_heads)
    ]
    keys = [(head, head * spread + i) for head in range(small.num_key_value_heads) for i in range(spread)]
    return queries, keys


def _dimensions(small: DecoderConfig, large: DecoderConfig, heads: list[tuple[int, int]]) -> Axis:
    size = torch.arange(small.head_dim)
    half, factor = small.head_dim // 2, large.head_dim // small.head_dim
    inside = torch.where(size < half, factor * size, large.head_dim // 2 + factor * (size - half))
    old, new = torch.tensor(heads).T[:, :, None]
    return (old * small.head_dim + size).flatten(), (new * large.head_dim + inside).flatten()


def is_power_of_4(numerator: int, denominator: int) -> bool:
    ratio, rest = divmod(numerator, denominator)
    return rest == 0 and ratio.bit_count() == 1 and ratio.bit_length() % 2 == 1
