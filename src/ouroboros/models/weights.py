"""A checkpoint's tensors as the decoder wants them: checked, converted, those of one matrix product stacked."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ouroboros.errors import LoadError
from ouroboros.models.config import DecoderConfig
from ouroboros.models.stored import StoredWeights

__all__ = ["LayerWeights", "Reader", "StoredSource", "WeightSource", "check_tensors", "unknown_tensor"]

DERIVED = re.compile(r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$")  # old files' copies of config.json


class WeightSource(Protocol):
    """Where tensors come from, one at a time."""

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The tensor's shape; None where there is no such tensor."""

    def get(self, name: str) -> Tensor: ...


@runtime_checkable
class StoredSource(WeightSource, Protocol):
    """Where matrices are to be had in the blocks that a file holds, too."""

    def stored(self, name: str) -> StoredWeights:
        """A matrix, its rows in the order of Hugging Face layout."""

    def release(self, name: str) -> None:
        """Lets go of the memory that ``stored`` has taken for it."""


def check_tensors(config: DecoderConfig, weights: WeightSource) -> None:
    """
    Raises:
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


def unknown_tensor(config: DecoderConfig, names: Collection[str]) -> str | None:
    """The first of these that a model of this config has no use for, although it would change what a model says; None
    as well where other tensors are missing, which says more."""
    known = config.shapes().keys() | {"lm_head.weight"}  # which the embeddings may stand for
    if any(name not in names for name in config.shapes()):
        return None
    return next((name for name in names if name not in known and not DERIVED.search(name)), None)


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads the tensors of one checkpoint; nothing is kept.

    Raises:
        LoadError: a tensor is missing or has the wrong shape.
    """

    config: DecoderConfig
    source: WeightSource
    dtype: torch.dtype
    device: torch.device

    def __post_init__(self) -> None:
        check_tensors(self.config, self.source)

    def get(self, *names: str) -> Tensor:
        parts = [self.source.get(name).to(device=self.device, dtype=self.dtype) for name in names]
        return torch.cat(parts) if len(parts) > 1 else parts[0].contiguous()

    def embedding(self) -> Tensor:
        return self.get("model.embed_tokens.weight")

    def head(self) -> Tensor:
        return self.embedding() if self.config.tie_word_embeddings else self.get("lm_head.weight")

    def norm(self) -> Tensor:
        return self.gains("model.norm.weight")

    def gains(self, name: str) -> Tensor:
        """A norm's gains, as they are multiplied with."""
        wide = torch.promote_types(self.dtype, torch.float32)
        found = self.source.get(name).to(device=self.device, dtype=wide) + self.config.norm_offset
        return found.to(wide if self.config.wide_norms else self.dtype)

    def layer(self, index: int) -> LayerWeights:
        return LayerWeights(self, f"model.layers.{index}.")


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer's tensors, each read when it is asked for."""

    reader: Reader
    prefix: str

    def input_norm(self) -> Tensor:
        return self.reader.gains(self.prefix + "input_layernorm.weight")

    def post_norm(self) -> Tensor:
        """The gains before the MLP."""
        name = "pre_feedforward" if self.reader.config.output_norms else "post_attention"
        return self.reader.gains(f"{self.prefix}{name}_layernorm.weight")

    def output_norms(self) -> tuple[Tensor, Tensor] | None:
        """The gains behind attention and behind the MLP."""
        if not self.reader.config.output_norms:
            return None
        names = ("post_attention", "post_feedforward")
        attention, mlp = (self.reader.gains(f"{self.prefix}{name}_layernorm.weight") for name in names)
        return attention, mlp

    def qk_norm(self) -> tuple[Tensor, Tensor] | None:
        if not self.reader.config.qk_norm:
            return None
        q, k = (self.reader.gains(f"{self.prefix}self_attn.{name}_norm.weight") for name in "qk")
        return q, k

    def qkv(self) -> tuple[Tensor, Tensor | None]:
        return self._stacked("self_attn.", tuple(self.reader.config.qkv())), self.qkv_bias()

    def out(self) -> tuple[Tensor, Tensor | None]:
        return self._stacked("self_attn.", ("o_proj",)), self.out_bias()

    def gate_up(self) -> tuple[Tensor, Tensor | None]:
        return self._stacked("mlp.", tuple(self.reader.config.gate_up())), self.gate_up_bias()

    def down(self) -> tuple[Tensor, Tensor | None]:
        return self._stacked("mlp.", ("down_proj",)), self.down_bias()

    def qkv_bias(self) -> Tensor | None:
        config = self.reader.config
        return self._stacked("self_attn.", tuple(config.qkv()), "bias") if config.qkv_bias else None

    def out_bias(self) -> Tensor | None:
        return self._stacked("self_attn.", ("o_proj",), "bias") if self.reader.config.out_bias else None

    def gate_up_bias(self) -> Tensor | None:
        config = self.reader.config
        return self._stacked("mlp.", tuple(config.gate_up()), "bias") if config.mlp_bias else None

    def down_bias(self) -> Tensor | None:
        return self._stacked("mlp.", ("down_proj",), "bias") if self.reader.config.mlp_bias else None

    def names(self, block: str, modules: Sequence[str], kind: str = "weight") -> list[str]:
        """What the checkpoint calls these modules' tensors."""
        return [f"{self.prefix}{block}{module}.{kind}" for module in modules]

    def _stacked(self, block: str, modules: Sequence[str], kind: str = "weight") -> Tensor:
        return self.reader.get(*self.names(block, modules, kind))
