"""KernelDecoder: packed weights, and one call for a whole forward.

Numerics: rows are fp32 from layer to layer; what enters a matrix product, and the cache, has the model's type; sums are
fp32. A row's result does not depend on the other rows of its forward, on threads, or on where in the cache its path
lies: in every type, a node of a tree gets the bits that plain decoding of the same text gives.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from ouroboros.kernels.library import library
from ouroboros.models.block import Block
from ouroboros.models.config import DecoderConfig
from ouroboros.models.likely import OUTSIDE, LikelyTokens
from ouroboros.models.packed import FORMATS, STORED, Arena, Matrix, Packer, RoundedPacker, StoredPacker, floats
from ouroboros.models.rotary import rotary_frequencies
from ouroboros.models.weights import Reader, StoredSource

__all__ = ["FORMATS", "KernelDecoder", "unsupported"]

_Int, _Float, _Pointer = ctypes.c_int, ctypes.c_float, ctypes.c_void_p


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, Matrix) for name in ("qkv", "out", "gate_up", "down")),
        *((name, _Pointer) for name in ("input_norm", "post_norm", "q_norm", "k_norm", "attention_norm", "mlp_norm")),
        *((name, _Int) for name in ("window", "rotary", "rope")),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *((n, _Int) for n in ("format", "vocabulary", "hidden", "inner", "layers", "heads", "kv_heads", "head_size")),
        ("gelu", _Int),
        *((n, _Float) for n in ("eps", "attention_scale", "embedding_multiplier", "residual_multiplier", "divisor")),
        *((n, _Float) for n in ("attention_cap", "logits_cap")),
        ("embedding", _Pointer),
        ("norm", _Pointer),
        ("head", Matrix),
        ("layer", _Pointer),
    )


class _Sequence(ctypes.Structure):
    _fields_ = (
        ("cache", _Pointer),
        ("capacity", ctypes.c_int64),
        *((name, _Int) for name in ("length", "catch_up", "pending", "nodes")),
        ("parents", _Pointer),
    )


_MIRRORED = (Matrix, _Layer, _Model, _Sequence)  # in the order of ouroboros_sizes
# What ouroboros_check finds (kernels/checks.h).
_WRONG = ("", "the model's shape", "lengths", "a cache's capacity", "parents", "positions", "the wanted rows", "tiles")


def unsupported(
    config: DecoderConfig, dtype: torch.dtype, device: torch.device, weights: str | None = None
) -> str | None:
    """Why the kernels cannot compute this model here, in a few words; None if they can. ``weights``: their format,
    where it is not the ``dtype``."""
    if device.type != "cpu":
        return f"no kernels for {device.type}"
    if str(dtype) not in ("torch.float32", "torch.bfloat16"):
        return f"no kernels for {str(dtype).removeprefix('torch.')}"
    sizes = (config.hidden_size, config.intermediate_size, config.num_attention_heads * config.head_dim)
    if dtype == torch.bfloat16 and any(size % 2 for size in sizes):
        return "no bfloat16 kernels for odd sizes"
    if weights == "int4" and any(size % 4 for size in sizes):
        return "no int4 kernels for sizes that are no multiples of 4"
    found = library()
    return found if isinstance(found, str) else _other_structs(found)


def _other_structs(found: ctypes.CDLL) -> str | None:
    """Whether the library's structs are as large as those here."""
    sizes = array("q", bytes(8 * len(_MIRRORED)))
    found.ouroboros_sizes(sizes.buffer_info()[0])
    for mirror, size in zip(_MIRRORED, sizes, strict=True):
        if ctypes.sizeof(mirror) != size:
            return f"the kernels' {mirror.__name__.strip('_')} has {size} bytes, not {ctypes.sizeof(mirror)}"
    return None


class KernelDecoder:
    """Computes forwards of one model (see llama.Decoder).

    Args:
        weights: of FORMATS; with int8, int4 and w8a8 rows are bfloat16, with STORED float32. ``unsupported``
            must be None.
    """

    likely: LikelyTokens | None = None  # those whose logits are computed; None for all

    def __init__(self, reader: Reader, weights: str) -> None:
        found = library()
        assert not isinstance(found, str)
        config = reader.config
        self._library, self._format, self._vocabulary = found, FORMATS[weights], config.vocab_size
        self._small = Arena(1 << 20)  # norms, biases, scales
        heads, kv_heads, head = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        hidden, inner = config.hidden_size, config.intermediate_size
        # The largest matrix comes first, while little else is in memory: it may be there twice until it is packed.
        packer = _packer(found, reader, weights, self._small)
        packed_head, embedding = packer.head(), packer.embedding()
        self._layers = (_Layer * config.num_hidden_layers)()
        for i, layer in enumerate(self._layers):
            tensors = reader.layer(i)
            layer.qkv, layer.out = packer.qkv(tensors), packer.out(tensors)
            layer.gate_up, layer.down = packer.gate_up(tensors), packer.down(tensors)
            layer.input_norm, layer.post_norm = self._floats(tensors.input_norm()), self._floats(tensors.post_norm())
            layer.q_norm, layer.k_norm = (self._floats(norm) for norm in tensors.qk_norm() or (None, None))
            norms = tensors.output_norms() or (None, None)
            layer.attention_norm, layer.mlp_norm = (self._floats(norm) for norm in norms)
            layer.window, layer.rotary = config.windows.get(i, 0), i not in config.without_rotary
            layer.rope = config.rope_of(i)
        self._held = packer.held
        scale = head**-0.5 if config.attention_scale is None else config.attention_scale
        self._model = _Model(
            *(self._format, config.vocab_size, hidden, inner, config.num_hidden_layers, heads, kv_heads, head),
            config.activation == "gelu_tanh",
            *(config.rms_norm_eps, scale, config.embedding_multiplier, config.residual_multiplier),
            *(config.logits_divisor, config.attention_softcap or 0, config.logits_softcap or 0),
            embedding,
            self._floats(reader.norm()),
            packed_head,
            ctypes.addressof(self._layers),
        )
        self._dtype = reader.dtype
        self._ropes = [rotary_frequencies(head, rope, config.max_position_embeddings) for rope in config.ropes()]
        self._tables = self._rotary_tables(512)

    def forward(self, blocks: Sequence[Block], wanted: Sequence[int]) -> Tensor:
        # Arrays of the standard library: ctypes would make a type of each new length, which takes many microseconds.
        tokens, rows = array("i", [token for block in blocks for token in block.tokens]), array("i", wanted)
        sequences = (_Sequence * len(blocks))()
        held = []  # arrays that the structs point to
        last = 0
        for sequence, block in zip(sequences, blocks, strict=True):
            cache = block.cache
            cache.reserve(len(block))
            parents = [] if block.tree is None else block.tree.parents
            sequence.cache, sequence.capacity = cache.buffer.data_ptr(), cache.capacity
            sequence.length, sequence.catch_up = cache.length, len(block.catch_up)
            sequence.pending, sequence.nodes = block.pending, len(parents)
            held.append(array("i", parents))
            sequence.parents = held[-1].buffer_info()[0]
            last = max(last, block.root + len(parents))
        if last > self._tables[0].shape[0]:
            self._tables = self._rotary_tables(2 * last)
        tables = array("Q", [table.data_ptr() for table in self._tables])
        tiles = self._tiles(tokens)
        given = ctypes.addressof(self._model), ctypes.addressof(sequences), len(blocks)
        asked = rows.buffer_info()[0], len(rows), *((None, 0) if tiles is None else tiles.buffer_info())
        wrong = self._library.ouroboros_check(*given, self._tables[0].shape[0], *asked)
        assert len(tokens) == sum(len(block) for block in blocks)
        if wrong:  # by no assert: the kernels would go beyond their buffers
            raise AssertionError(f"a forward's arguments are wrong: {_WRONG[wrong]}")
        logits = torch.empty((len(wanted), self._vocabulary), dtype=self._dtype)
        if tiles is not None:
            logits.fill_(OUTSIDE)
        failed = self._library.ouroboros_forward(
            *given,
            tokens.buffer_info()[0],
            tables.buffer_info()[0],
            *asked,
            logits.data_ptr(),
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError(f"no memory for a forward over {len(tokens)} rows")
        for block in blocks:
            block.advance()
        return logits

    def _tiles(self, tokens: Sequence[int]) -> array[int] | None:
        """Of the output matrix, behind these tokens; None for all."""
        if self.likely is None:
            return None
        self.likely.read(tokens)
        return self.likely.tiles()

    def _floats(self, tensor: Tensor | None) -> int | None:
        return floats(self._small, tensor)

    def _rotary_tables(self, size: int) -> list[Tensor]:
        """cos and sin of each rope."""
        found = []
        for inverse, factor in self._ropes:
            angles = torch.outer(torch.arange(size).float(), inverse.float())
            found += [angles.cos() * factor, angles.sin() * factor]
        return found


def _packer(found: ctypes.CDLL, reader: Reader, weights: str, small: Arena) -> Packer:
    if weights != STORED:
        return RoundedPacker(found, reader, weights, small)
    assert isinstance(reader.source, StoredSource)
    return StoredPacker(found, reader, reader.source, small)
