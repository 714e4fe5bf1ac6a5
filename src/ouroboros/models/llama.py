"""The native decoder of the Llama architecture and its variations: slots, and forwards for any number of trees.

What computes a forward is chosen when the model is made: C++ kernels where they can be had (kernels/), else PyTorch's
operators (operators.py). It knows nothing of files (see checkpoint.py) and nothing of families: config.py describes the
mathematics, families.py reads it out of config.json.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from ouroboros.errors import InputError
from ouroboros.models.base import ModelInfo, ScoreRequest, Slot, Work
from ouroboros.models.block import Block
from ouroboros.models.buffers import buffers_for
from ouroboros.models.config import DecoderConfig
from ouroboros.models.kernels import KernelDecoder, unsupported
from ouroboros.models.kv_cache import KVCache
from ouroboros.models.likely import FIRST, LikelyTokens
from ouroboros.models.linear import packs
from ouroboros.models.operators import OperatorDecoder
from ouroboros.models.packed import STORED, stored_bytes
from ouroboros.models.quantised import QUANTISED, Precision, weight_bytes
from ouroboros.models.static import StaticDecoder
from ouroboros.models.weights import Reader, StoredSource, WeightSource

__all__ = ["ENGINES", "Decoder", "LlamaModel", "WeightSource", "check_engine"]

ENGINES = ("auto", "kernels", "packed", "plain", "static")

PREFILL_CHUNK = 512


class Decoder(Protocol):
    """What computes a forward."""

    def forward(self, blocks: Sequence[Block], wanted: Sequence[int]) -> Tensor:
        """Logits [wanted, V] behind these rows of all blocks' rows; the caches then hold all rows."""


class LlamaModel:
    """A model of the Llama kind (see base.CausalModel).

    Args:
        config: the mathematics. weights: the checkpoint's tensors; each is converted and let go at once.
        eos_token_ids, grown, stored: kept for ``info``. precision, device: how and where to compute.
        engine: ``auto``: the fastest there is; ``kernels``; ``packed`` or ``plain``: PyTorch's operators (linear.py);
            ``static``: these in fixed shapes, on CUDA as graphs (static.py).

    Raises:
        LoadError: a tensor is missing or has the wrong shape.
        InputError: an engine that is not to be had here, or none at all.
    """

    def __init__(
        self,
        config: DecoderConfig,
        weights: WeightSource,
        eos_token_ids: frozenset[int],
        precision: Precision,
        device: torch.device,
        engine: str = "auto",
        grown: str | None = None,
        stored: str | None = None,
    ) -> None:
        reader = Reader(config, weights, precision.rows, device)
        self.config = config
        self._dtype, self._device = precision.rows, device
        self._decoder, computes = _decoder(reader, engine, precision.weights)
        rows = config.max_position_embeddings + PREFILL_CHUNK  # of the last tree some lie beyond the last position
        self._buffers = buffers_for(device, rows, isinstance(self._decoder, StaticDecoder))
        self.info = ModelInfo(
            backend="native",
            vocab_size=config.vocab_size,
            max_positions=config.max_position_embeddings,
            eos_token_ids=eos_token_ids,
            parameters=sum(math.prod(shape) for shape in config.shapes().values()),
            dtype=precision.weights,
            device=str(device),
            engine=computes,
            mixes=True,
            grown=grown,
            stored=stored,
            work=_work(reader, precision),
        )

    def narrow(self, first: int = FIRST) -> None:
        """From now on the kernels compute the logits of likely tokens alone (likely.py), for a draft model; of a small
        vocabulary, and in other engines, of all. ``first``: as many of the vocabulary's first tokens are among them."""
        if not isinstance(self._decoder, KernelDecoder) or 2 * first > self.config.vocab_size:
            return
        likely = LikelyTokens(self.config.vocab_size, self.info.eos_token_ids, first)
        self._decoder.likely = likely
        spared = (1 - likely.share) * self.config.vocab_size * self.config.hidden_size  # products
        work = self.info.work
        read = round(work.bytes - spared * work.bytes / work.products)  # as if all matrices were of one format
        self.info = replace(self.info, work=replace(work, bytes=read, products=round(work.products - spared)))

    def open(self) -> KVCache:
        shape = (self.config.num_hidden_layers, self.config.num_key_value_heads, self.config.head_dim)
        step = 1024 if isinstance(self._decoder, StaticDecoder) else 256
        return KVCache(shape, self._dtype, self._device, step, self._buffers)

    @torch.inference_mode()
    def prefill(self, slot: Slot, token_ids: Sequence[int]) -> None:
        cache = _own(slot)
        for start in range(0, len(token_ids), PREFILL_CHUNK):
            self._decoder.forward([Block(cache, token_ids[start : start + PREFILL_CHUNK], None)], ())

    @torch.inference_mode()
    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        blocks = [Block(_own(r.slot), r.catch_up, r.tree) for r in requests]
        wanted: list[int] = []  # rows of the whole forward
        counts = []
        first = 0
        for request, block in zip(requests, blocks, strict=True):
            offset = first + len(block.catch_up) - block.pending
            nodes = range(block.pending, len(request.tree)) if request.rows is None else request.rows
            wanted.extend(offset + node for node in nodes)
            counts.append(len(nodes))
            first += len(block)
        return list(self._decoder.forward(blocks, wanted).split(counts))


def _work(reader: Reader, precision: Precision) -> Work:
    """What a forward reads and multiplies: all matrices once, the output matrix among them."""
    config, source = reader.config, reader.source
    matrices = {name: shape for name, shape in config.shapes().items() if len(shape) == 2}
    embedding = matrices.pop("model.embed_tokens.weight")  # one row of it is read for each token
    if precision.weights == STORED and isinstance(source, StoredSource):
        tied = config.tie_word_embeddings
        names = [*matrices, "model.embed_tokens.weight"] if tied else matrices
        read = sum(stored_bytes(source, name) for name in names)
    matrices["lm_head.weight"] = matrices.get("lm_head.weight", embedding)
    if precision.weights != STORED:
        read = weight_bytes(matrices, precision.weights)
    size = precision.rows.itemsize
    layers, heads = config.num_hidden_layers, config.num_attention_heads * config.head_dim
    return Work(
        bytes=read,
        products=sum(math.prod(shape) for shape in matrices.values()),
        cache_bytes=2 * layers * config.num_key_value_heads * config.head_dim * size,
        cache_products=2 * layers * heads,
        layers=layers,
    )


def check_engine(engine: str) -> None:
    """
    Raises:
        InputError: no such engine.
    """
    if engine not in ENGINES:
        raise InputError(f"engine must be one of {', '.join(ENGINES)}, not {engine!r}")


def _decoder(reader: Reader, engine: str, weights: str) -> tuple[Decoder, str]:
    """What computes with weights of this format, and what it calls itself."""
    check_engine(engine)
    graphs = reader.device.type == "cuda"
    plain = weights if weights in QUANTISED else "plain"
    if engine == "static" or (engine == "auto" and graphs):
        return StaticDecoder(reader, plain, graphs), "static, CUDA graphs" if graphs else "static"
    reason = "not asked for"
    if engine in ("auto", "kernels"):
        reason = unsupported(reader.config, reader.dtype, reader.device, weights) or ""
        if not reason:
            return KernelDecoder(reader, weights), "kernels"
    if engine == "kernels":
        raise InputError(f"the CPU kernels cannot be had here: {reason}")
    packed = engine != "plain" and plain == "plain" and packs(reader.dtype, reader.device)
    if engine == "packed" and not packed:
        raise InputError("oneDNN does not pack these weights here (it does bfloat16 on some CPUs)")
    return OperatorDecoder(reader, "packed" if packed else plain), f"{'packed' if packed else 'plain'} ({reason})"


def _own(slot: Slot) -> KVCache:
    assert isinstance(slot, KVCache), "a slot belongs to the model that opened it"
    return slot
