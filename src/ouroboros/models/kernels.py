"""KernelDecoder: packed weights, and one call for a whole forward.

Numerics: rows are fp32 from layer to layer; what enters a matrix product, and the cache, has the model's type; sums are
fp32. A row's result does not depend on the other rows of its forward, on threads, or on where in the cache its path
lies: in every type, a node of a tree gets the bits that plain decoding of the same text gives.
"""

from __future__ import annotations

import ctypes
import mmap
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from ouroboros.kernels.library import library
from ouroboros.models.block import Block
from ouroboros.models.config import DecoderConfig
from ouroboros.models.quantised import head_format
from ouroboros.models.rotary import rotary_frequencies
from ouroboros.models.weights import Reader

__all__ = ["FORMATS", "KernelDecoder", "unsupported"]

FORMATS = {"float32": 0, "bfloat16": 1, "int8": 2, "int4": 3, "w8a8": 4}  # of the weights
ALIGNMENT = 64
LARGE_PAGE = 1 << 21

_Int, _Float, _Pointer = ctypes.c_int, ctypes.c_float, ctypes.c_void_p


class _Matrix(ctypes.Structure):
    _fields_ = (
        *((name, _Pointer) for name in ("weights", "bias", "scale")),
        *((name, _Int) for name in ("outputs", "inputs")),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Matrix) for name in ("qkv", "out", "gate_up", "down")),
        *((name, _Pointer) for name in ("input_norm", "post_norm", "q_norm", "k_norm")),
        *((name, _Int) for name in ("window", "rotary")),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *((n, _Int) for n in ("format", "vocabulary", "hidden", "inner", "layers", "heads", "kv_heads", "head_size")),
        *((n, _Float) for n in ("eps", "attention_scale", "embedding_multiplier", "residual_multiplier", "divisor")),
        ("embedding", _Pointer),
        ("norm", _Pointer),
        ("head", _Matrix),
        ("layer", _Pointer),
    )


class _Sequence(ctypes.Structure):
    _fields_ = (
        ("cache", _Pointer),
        ("capacity", ctypes.c_int64),
        *((name, _Int) for name in ("length", "catch_up", "pending", "nodes")),
        ("parents", _Pointer),
    )


_MIRRORED = (_Matrix, _Layer, _Model, _Sequence)  # in the order of ouroboros_sizes
# What ouroboros_check finds (kernels/checks.h).
_WRONG = ("", "the model's shape", "lengths", "a cache's capacity", "parents", "positions", "the wanted rows")


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


class _Arena:
    """Memory for what the structs point to, handed out in order; on large pages where there are any.

    It is apart from PyTorch's allocator: small tensors there that outlive large ones keep the large ones' memory.
    """

    def __init__(self, block: int) -> None:
        self._block, self._next, self._end = block, 0, 0
        self._held: list[object] = []

    def take(self, size: int) -> int:
        """The address of ``size`` bytes, aligned."""
        size = -(-size // ALIGNMENT) * ALIGNMENT
        if self._next + size > self._end:
            memory = mmap.mmap(-1, max(size, self._block), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if hasattr(mmap, "MADV_HUGEPAGE") and self._block > LARGE_PAGE:
                memory.madvise(mmap.MADV_HUGEPAGE)
            view = ctypes.c_char.from_buffer(memory)  # keeps the memory where it is; it begins with a page
            self._held.append(view)
            self._next = ctypes.addressof(view)
            self._end = self._next + len(memory)
        address, self._next = self._next, self._next + size
        return address


class KernelDecoder:
    """Computes forwards of one model (see llama.Decoder).

    Args:
        weights: of FORMATS; with the last three rows are bfloat16. ``unsupported`` must be None.
    """

    def __init__(self, reader: Reader, weights: str) -> None:
        found = library()
        assert not isinstance(found, str)
        config = reader.config
        self._library, self._format, self._vocabulary = found, FORMATS[weights], config.vocab_size
        head_weights = FORMATS[head_format(weights)]
        self._small = _Arena(1 << 20)  # norms, biases, scales
        heads, kv_heads, head = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        hidden, inner = config.hidden_size, config.intermediate_size
        shapes = [((heads + 2 * kv_heads) * head, hidden, 0), (hidden, heads * head, 0), (2 * inner, hidden, 1)]
        sizes = [found.ouroboros_packed_size(self._format, *shape) for shape in [*shapes, (hidden, inner, 0)]]
        head_size = found.ouroboros_packed_size(head_weights, config.vocab_size, hidden, 0)
        self._large = _Arena(config.num_hidden_layers * sum(sizes) + head_size)
        self._embedding = None if config.tie_word_embeddings else reader.embedding()
        # The largest matrix comes first, while little else is in memory: it is there twice until it is packed.
        packed_head = self._pack(reader.head(), None, config.vocab_size, 0, head_weights)
        self._layers = (_Layer * config.num_hidden_layers)()
        for i, layer in enumerate(self._layers):
            tensors = reader.layer(i)
            layer.qkv, layer.out = self._matrix(*tensors.qkv()), self._matrix(*tensors.out())
            layer.gate_up, layer.down = self._gate_up(*tensors.gate_up()), self._matrix(*tensors.down())
            layer.input_norm, layer.post_norm = self._floats(tensors.input_norm()), self._floats(tensors.post_norm())
            layer.q_norm, layer.k_norm = (self._floats(norm) for norm in tensors.qk_norm() or (None, None))
            layer.window, layer.rotary = config.windows.get(i, 0), i not in config.without_rotary
        scale = head**-0.5 if config.attention_scale is None else config.attention_scale
        self._model = _Model(
            *(self._format, config.vocab_size, hidden, inner, config.num_hidden_layers, heads, kv_heads, head),
            *(config.rms_norm_eps, scale, config.embedding_multiplier, config.residual_multiplier),
            config.logits_divisor,
            None if self._embedding is None else self._embedding.data_ptr(),
            self._floats(reader.norm()),
            packed_head,
            ctypes.addressof(self._layers),
        )
        self._dtype = reader.dtype
        inverse, self._rope_factor = rotary_frequencies(head, config.rope, config.max_position_embeddings)
        self._inverse = inverse.float()
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
        cos, sin = self._tables
        given = ctypes.addressof(self._model), ctypes.addressof(sequences), len(blocks)
        wrong = self._library.ouroboros_check(*given, cos.shape[0], rows.buffer_info()[0], len(rows))
        assert len(tokens) == sum(len(block) for block in blocks)
        if wrong:  # by no assert: the kernels would go beyond their buffers
            raise AssertionError(f"a forward's arguments are wrong: {_WRONG[wrong]}")
        logits = torch.empty((len(wanted), self._vocabulary), dtype=self._dtype)
        failed = self._library.ouroboros_forward(
            *given,
            tokens.buffer_info()[0],
            cos.data_ptr(),
            sin.data_ptr(),
            rows.buffer_info()[0],
            len(rows),
            logits.data_ptr(),
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError(f"no memory for a forward over {len(tokens)} rows")
        for block in blocks:
            block.advance()
        return logits

    def _floats(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        wide = tensor.float().contiguous()
        address = self._small.take(wide.nbytes)
        ctypes.memmove(address, wide.data_ptr(), wide.nbytes)
        return address

    def _matrix(self, weight: Tensor, bias: Tensor | None) -> _Matrix:
        return self._pack(weight, bias, weight.shape[0], 0, self._format)

    def _gate_up(self, weight: Tensor, bias: Tensor | None) -> _Matrix:
        """Tiles of 16 gates and the same 16 of up, the last one filled with zeros."""
        inner = weight.shape[0] // 2
        tiles = -(-inner // 16)
        if bias is not None:
            both = bias.new_zeros(2, tiles * 16)
            both[:, :inner] = bias.view(2, inner)
            bias = both.view(2, tiles, 16).transpose(0, 1).flatten()
        return self._pack(weight, bias, tiles * 32, 1, self._format)

    def _pack(self, weight: Tensor, bias: Tensor | None, outputs: int, gate_up: int, weights: int) -> _Matrix:
        shape = (*weight.shape, gate_up)
        to = self._large.take(self._library.ouroboros_packed_size(weights, *shape))
        scale = self._small.take(4 * outputs) if weights in (FORMATS["int8"], FORMATS["w8a8"]) else None
        self._library.ouroboros_pack(weights, weight.data_ptr(), *shape, to, scale)
        return _Matrix(to, self._floats(bias), scale, outputs, weight.shape[1])

    def _rotary_tables(self, size: int) -> tuple[Tensor, Tensor]:
        angles = torch.outer(torch.arange(size).float(), self._inverse)
        return angles.cos() * self._rope_factor, angles.sin() * self._rope_factor
