"""Small pairs for the tests: native models, and the oracle's model of the same weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor

import ouroboros
from ouroboros.models.base import CausalModel
from ouroboros.models.llama import LlamaModel
from ouroboros.models.loading import parse_config
from ouroboros.models.quantised import Precision
from tests.reference import NaiveLlama

Module = TypeVar("Module", bound=torch.nn.Module)
EMBEDDED = Path(ouroboros.__file__).parent / "embedded"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Pair:
    """A target, its oracle, and drafts by name: ``self`` (the target), ``trained`` or ``similar``, ``unrelated``."""

    target: LlamaModel
    oracle: NaiveLlama
    drafts: Mapping[str, CausalModel]


class Weights:
    """models.llama.WeightSource over a dict."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def shape(self, name: str) -> tuple[int, ...] | None:
        return tuple(self.tensors[name].shape) if name in self.tensors else None

    def get(self, name: str) -> Tensor:
        return self.tensors[name]


def native(config: Mapping[str, Any], tensors: Mapping[str, Tensor], dtype: torch.dtype) -> LlamaModel:
    return LlamaModel(parse_config(config), Weights(tensors), frozenset(), Precision.of(dtype), CPU)


def random_weights(config: Mapping[str, Any], seed: int, scale: float = 0.6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in parse_config(config).shapes().items():
        tensor = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
        tensors[name] = 1 + 0.1 * tensor if "norm" in name else tensor
    return tensors


def tiny_config(vocab_size: int = 40, layers: int = 2) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }


def tiny_pair() -> Pair:
    config = tiny_config()
    weights = random_weights(config, 1)
    blur = random_weights(config, 2, scale=0.06)
    similar = {name: weights[name] + blur[name] * (0 if "norm" in name else 1) for name in weights}
    target = native(config, weights, torch.float64)
    drafts: dict[str, CausalModel] = {
        "self": target,
        "similar": native(config, similar, torch.float64),
        "unrelated": native(tiny_config(layers=1), random_weights(tiny_config(layers=1), 3), torch.float64),
    }
    return Pair(target, NaiveLlama(config, weights, torch.float64), drafts)


def embedded_pair() -> Pair:
    config = json.loads((EMBEDDED / "target" / "config.json").read_text())
    draft_config = json.loads((EMBEDDED / "draft" / "config.json").read_text())
    weights = load_file(EMBEDDED / "target" / "model.safetensors")
    target = native(config, weights, torch.float32)
    other = tiny_config(vocab_size=config["vocab_size"])
    drafts: dict[str, CausalModel] = {
        "self": target,
        "trained": native(draft_config, load_file(EMBEDDED / "draft" / "model.safetensors"), torch.float32),
        "unrelated": native(other, random_weights(other, 4), torch.float32),
    }
    return Pair(target, NaiveLlama(config, weights, torch.float32), drafts)


def unsettled(module: Module) -> Module:
    """Nothing is left at its neutral value: transformers begins with norms of 1 and biases of 0."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return module.eval()
