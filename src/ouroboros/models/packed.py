"""Matrices as the C++ kernels read them, and the memory that they lie in."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from ouroboros.models.quantised import head_format
from ouroboros.models.stored import StoredWeights
from ouroboros.models.weights import LayerWeights, Reader, StoredSource

__all__ = ["FORMATS", "STORED", "Arena", "Matrix", "Packer", "RoundedPacker", "StoredPacker", "floats", "stored_bytes"]

STORED = "stored"  # the format of weights as a GGUF file has them
FORMATS = {"float32": 0, "bfloat16": 1, "int8": 2, "int4": 3, "w8a8": 4, STORED: 5}
# ggml's numbers of its types, as kernels/stored/blocks.h has them.
KINDS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q5_0": 6, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "BF16": 30}
ALIGNMENT = 64
LARGE_PAGE = 1 << 21

_Int, _Pointer = ctypes.c_int, ctypes.c_void_p


class Part(ctypes.Structure):
    _fields_ = (("weights", _Pointer), ("kind", _Int), ("outputs", _Int))


class Matrix(ctypes.Structure):
    _fields_ = (
        *((name, _Pointer) for name in ("weights", "bias", "scale")),
        *((name, _Int) for name in ("outputs", "inputs")),
        ("part", _Pointer),
        *((name, _Int) for name in ("parts", "paired")),
    )


class Arena:
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


def stored_bytes(source: StoredSource, name: str) -> int:
    """Of a matrix in the file, and packed."""
    return source.stored(name).bytes_RB.nbytes


def floats(arena: Arena, tensor: Tensor | None) -> int | None:
    """The address of a copy in fp32."""
    if tensor is None:
        return None
    wide = tensor.float().contiguous()
    address = arena.take(wide.nbytes)
    ctypes.memmove(address, wide.data_ptr(), wide.nbytes)
    return address


def tiled(bias: Tensor | None) -> Tensor | None:
    """A bias of gate and up in the order of their tiles: 16 gates and the same 16 of up, the last filled with zeros."""
    if bias is None:
        return None
    inner = bias.shape[0] // 2
    tiles = -(-inner // 16)
    both = bias.new_zeros(2, tiles * 16)
    both[:, :inner] = bias.view(2, inner)
    return both.view(2, tiles, 16).transpose(0, 1).flatten()


class Packer(Protocol):
    """Packs one model's matrices, each when it is asked for. ``held``: what they lie in."""

    @property
    def held(self) -> Sequence[object]: ...

    def head(self) -> Matrix: ...

    def embedding(self) -> int | None:
        """The address of the embeddings, None where they are the head's."""

    def qkv(self, tensors: LayerWeights) -> Matrix: ...

    def out(self, tensors: LayerWeights) -> Matrix: ...

    def gate_up(self, tensors: LayerWeights) -> Matrix: ...

    def down(self, tensors: LayerWeights) -> Matrix: ...


class RoundedPacker:
    """Of tensors in the rows' type, to any format but STORED. ``small``: for biases and scales."""

    def __init__(self, library: ctypes.CDLL, reader: Reader, weights: str, small: Arena) -> None:
        config = reader.config
        self._library, self._reader, self._small = library, reader, small
        self._format, self._head = FORMATS[weights], FORMATS[head_format(weights)]
        heads, kv_heads, head = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        hidden, inner = config.hidden_size, config.intermediate_size
        shapes = [((heads + 2 * kv_heads) * head, hidden, 0), (hidden, heads * head, 0), (2 * inner, hidden, 1)]
        sizes = [library.ouroboros_packed_size(self._format, *shape) for shape in [*shapes, (hidden, inner, 0)]]
        head_size = library.ouroboros_packed_size(self._head, config.vocab_size, hidden, 0)
        self._large = Arena(config.num_hidden_layers * sum(sizes) + head_size)
        self.held: list[object] = [self._large]

    def head(self) -> Matrix:
        return self._pack(self._reader.head(), None, self._reader.config.vocab_size, 0, self._head)

    def embedding(self) -> int | None:
        if self._reader.config.tie_word_embeddings:
            return None
        embedding = self._reader.embedding()
        self.held.append(embedding)
        return embedding.data_ptr()

    def qkv(self, tensors: LayerWeights) -> Matrix:
        return self._matrix(*tensors.qkv())

    def out(self, tensors: LayerWeights) -> Matrix:
        return self._matrix(*tensors.out())

    def gate_up(self, tensors: LayerWeights) -> Matrix:
        """Tiles of 16 gates and the same 16 of up, the last one filled with zeros."""
        weight, bias = tensors.gate_up()
        return self._pack(weight, tiled(bias), -(-weight.shape[0] // 32) * 32, 1, self._format)

    def down(self, tensors: LayerWeights) -> Matrix:
        return self._matrix(*tensors.down())

    def _matrix(self, weight: Tensor, bias: Tensor | None) -> Matrix:
        return self._pack(weight, bias, weight.shape[0], 0, self._format)

    def _pack(self, weight: Tensor, bias: Tensor | None, outputs: int, gate_up: int, weights: int) -> Matrix:
        shape = (*weight.shape, gate_up)
        to = self._large.take(self._library.ouroboros_packed_size(weights, *shape))
        scale = self._small.take(4 * outputs) if weights in (FORMATS["int8"], FORMATS["w8a8"]) else None
        self._library.ouroboros_pack(weights, weight.data_ptr(), *shape, to, scale)
        return Matrix(to, floats(self._small, bias), scale, outputs, weight.shape[1], None, 0, 0)


class StoredPacker:
    """Of a GGUF file's blocks, in as many bytes and another order. The file's pages are let go when they are read."""

    def __init__(self, library: ctypes.CDLL, reader: Reader, source: StoredSource, small: Arena) -> None:
        self._library, self._reader, self._source, self._small = library, reader, source, small
        matrices = [name for name, shape in reader.config.shapes().items() if len(shape) == 2]
        self._large = Arena(sum(self._size(source.stored(name)) for name in matrices))
        self.held: list[object] = [self._large]

    def head(self) -> Matrix:
        tied = self._reader.config.tie_word_embeddings
        return self._matrix(["model.embed_tokens.weight" if tied else "lm_head.weight"], None)

    def embedding(self) -> int | None:
        if self._reader.config.tie_word_embeddings:
            return None
        return self._parts(["model.embed_tokens.weight"], 1)[1]

    def qkv(self, tensors: LayerWeights) -> Matrix:
        names, bias = tensors.names("self_attn.", tuple(self._reader.config.qkv())), tensors.qkv_bias()
        return self._matrix(names, bias)

    def out(self, tensors: LayerWeights) -> Matrix:
        return self._matrix(tensors.names("self_attn.", ["o_proj"]), tensors.out_bias())

    def gate_up(self, tensors: LayerWeights) -> Matrix:
        names = tensors.names("mlp.", tuple(self._reader.config.gate_up()))
        return self._matrix(names, tiled(tensors.gate_up_bias()), paired=True)

    def down(self, tensors: LayerWeights) -> Matrix:
        return self._matrix(tensors.names("mlp.", ["down_proj"]), tensors.down_bias())

    def _matrix(self, names: Sequence[str], bias: Tensor | None, paired: bool = False) -> Matrix:
        split = 2 if paired and len(names) == 1 else 1
        parts, address, outputs, inputs = self._parts(names, split)
        return Matrix(None, floats(self._small, bias), None, outputs, inputs, address, parts, paired)

    def _parts(self, names: Sequence[str], split: int) -> tuple[int, int, int, int]:
        """How many, where they are, their outputs in all, and their inputs. ``split``: a tensor's parts."""
        found, columns = [], 0
        for name in names:
            stored = self._source.stored(name)
            columns = stored.columns
            rows = stored.bytes_RB.shape[0] // split
            for part in stored.bytes_RB.split(rows):
                found.append(self._pack(StoredWeights(stored.kind, part.contiguous(), columns)))
            del stored, part
            self._source.release(name)
        array = (Part * len(found))(*found)
        self.held.append(array)
        return len(found), ctypes.addressof(array), sum(part.outputs for part in found), columns

    def _pack(self, stored: StoredWeights) -> Part:
        kind, (outputs, inputs) = KINDS[stored.kind], stored.shape
        to = self._large.take(self._size(stored))
        self._library.ouroboros_stored_pack(kind, stored.bytes_RB.data_ptr(), outputs, inputs, to)
        return Part(to, kind, outputs)

    def _size(self, stored: StoredWeights) -> int:
        size: int = self._library.ouroboros_stored_size(KINDS[stored.kind], *stored.shape)
        assert size, "a file's rows are whole blocks"
        return -(-size // ALIGNMENT) * ALIGNMENT
