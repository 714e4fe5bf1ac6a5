"""The GGUF format: one file's metadata, and where its tensors lie.

Nothing in a file is believed: every count is held against the bytes that are left before anything is made of it. After
the format's specification (ggml/docs/gguf.md), versions 2 and 3. It knows nothing of what metadata and tensors mean.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from ouroboros.errors import LoadError
from ouroboros.files import regular
from ouroboros.models.stored import BLOCKS

__all__ = ["GGUFReader", "Place", "Value", "is_gguf"]

Value = int | float | bool | str | list[str] | np.ndarray  # arrays of numbers are NumPy's

MAGIC = b"GGUF"
SCALARS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 10: "<u8", 11: "<i8", 12: "<f8"}
BOOL, STRING, ARRAY = 7, 8, 9
KINDS = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip
LEAST = {"metadata": 13, "tensors": 32}  # bytes that an entry takes at least


@dataclass(frozen=True, slots=True)
class Place:
    kind: str
    shape: tuple[int, ...]  # rows before columns, as PyTorch has it
    part: int
    start: int  # byte of that part's file
    size: int  # bytes


def is_gguf(path: Path) -> bool:
    """Whether it is a file that begins as one; names say nothing, where programs keep their files by content.

    Raises:
        LoadError: it is no regular file. OSError: it cannot be read.
    """
    if not regular(path):
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


class GGUFReader:
    """Goes through one file from its beginning."""

    def __init__(self, path: Path) -> None:
        if not regular(path):
            raise LoadError(f"there is no file {path.name!r:.80}")
        try:
            with path.open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                if self.size < 24 or file.read(len(MAGIC)) != MAGIC:
                    raise LoadError("it does not begin as a GGUF file does")
                # Pages that are only ever written to in memory, which nobody does: PyTorch wants no read-only arrays.
                self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise LoadError(f"it cannot be read ({getattr(error, 'strerror', None) or error})") from error
        self._at = len(MAGIC)

    def header(self) -> dict[str, Value]:
        version = self._number("<u4")
        if version not in (2, 3):
            big = "; it may be of a big-endian machine" if version % 65536 == 0 else ""
            raise LoadError(f"its version of the format is {version} (supported: 2, 3){big}")
        self._tensor_count, count = self._number("<u8"), self._number("<u8")
        self._check("metadata", count)
        metadata: dict[str, Value] = {}
        for _ in range(count):
            key = self._string()
            if key in metadata:
                raise LoadError(f"it holds the key {key!r:.80} twice")
            metadata[key] = self._value(self._number("<u4"), key)
        alignment = metadata.get("general.alignment", 32)
        if isinstance(alignment, bool) or not isinstance(alignment, int) or not 8 <= alignment <= 1 << 20:
            raise LoadError(f"general.alignment must be a multiple of 8, not {alignment!r:.40}")
        if alignment % 8:
            raise LoadError(f"general.alignment must be a multiple of 8, not {alignment}")
        self._alignment = alignment
        self._check("tensors", self._tensor_count)
        return metadata

    def tensors(self, part: int) -> dict[str, Place]:
        found: dict[str, tuple[str, tuple[int, ...], int]] = {}
        for _ in range(self._tensor_count):
            name = self._string()
            dimensions = self._number("<u4")
            if not 1 <= dimensions <= 4:
                raise LoadError(f"tensor {name!r:.80} has {dimensions} dimensions (allowed: 1 to 4)")
            shape = tuple(self._number("<u8") for _ in range(dimensions))[::-1]
            kind, offset = self._number("<u4"), self._number("<u8")
            if KINDS.get(kind) not in BLOCKS:
                told = f"{KINDS.get(kind, f'type {kind}')}, which is not supported (supported: {', '.join(BLOCKS)})"
                raise LoadError(f"tensor {name!r:.80} is stored as {told}")
            if name in found:
                raise LoadError(f"it holds the tensor {name!r:.80} twice")
            found[name] = KINDS[kind], shape, offset
        begin = -(-self._at // self._alignment) * self._alignment
        places = {}
        for name, (kind_name, shape, offset) in found.items():
            block = BLOCKS[kind_name]
            if 0 in shape or shape[-1] % block.numbers:
                rows = f"rows of {shape[-1]} numbers" if 0 not in shape else f"shape {list(shape)}"
                raise LoadError(f"tensor {name!r:.80} has {rows}, and {kind_name} has blocks of {block.numbers}")
            size = prod(shape) // block.numbers * block.bytes
            if offset % self._alignment or begin + offset + size > self.size:
                where = f"bytes {begin + offset} to {begin + offset + size}, and it has {self.size}"
                raise LoadError(f"tensor {name!r:.80} is to lie at {where}: the file is cut short or damaged")
            places[name] = Place(kind_name, shape, part, begin + offset, size)
        return places

    def _value(self, kind: int, key: str) -> Value:
        if kind in SCALARS:
            value = np.frombuffer(self._take(np.dtype(SCALARS[kind]).itemsize), SCALARS[kind])[0]
            return float(value) if kind in (6, 12) else int(value)
        if kind == BOOL:
            return self._take(1) != b"\0"
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            raise LoadError(f"the value of {key!r:.80} has the unknown type {kind}")
        inner, count = self._number("<u4"), self._number("<u8")
        if inner == STRING:
            self._check(key, count, 8)
            return self._strings(count)
        if inner not in SCALARS and inner != BOOL:
            raise LoadError(f"the array {key!r:.80} has elements of type {inner}, which is not supported")
        dtype = np.dtype(SCALARS.get(inner, "?"))
        self._check(key, count, dtype.itemsize)
        return np.frombuffer(self._take(count * dtype.itemsize), np.uint8 if inner == BOOL else dtype)

    def _string(self) -> str:
        size = self._number("<u8")
        try:
            return str(self._take(size), "utf-8")
        except UnicodeDecodeError as error:
            raise LoadError(f"a text in it is no UTF-8 ({error.reason})") from error

    def _strings(self, count: int) -> list[str]:
        """As so many ``_string``, at a third of the time: vocabularies have hundreds of thousands."""
        data, at, end, found = self.data, self._at, self.size, []
        read = struct.Struct("<Q").unpack_from
        try:
            for _ in range(count):
                start = at + 8
                at = start + read(data, at)[0]
                if at > end:
                    raise LoadError(f"it ends at byte {end}, in the middle of a text: it is cut short")
                found.append(str(data[start:at], "utf-8"))
        except struct.error:
            raise LoadError(f"it ends at byte {end}, in the middle of texts: it is cut short") from None
        except UnicodeDecodeError as error:
            raise LoadError(f"a text in it is no UTF-8 ({error.reason})") from error
        self._at = at
        return found

    def _number(self, kind: str) -> int:
        found: tuple[int] = struct.unpack("<I" if kind == "<u4" else "<Q", self._take(4 if kind == "<u4" else 8))
        return found[0]

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > self.size:
            raise LoadError(
                f"it ends at byte {self.size}, where {size} more were to follow byte {self._at}: it is cut short"
            )
        found = self.data[self._at : end]
        self._at = end
        return found

    def _check(self, what: str, count: int, least: int | None = None) -> None:
        """Whether the file can hold so many."""
        least = LEAST[what] if least is None else least
        if count * least > self.size - self._at:
            left = self.size - self._at
            raise LoadError(
                f"it says that it has {count} entries of {what!r:.80}, and {left} bytes are left: it is damaged"
            )
