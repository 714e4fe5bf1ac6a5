"""A GGUF file, or the parts that one was split into: metadata, and tensors where they lie, mapped into memory."""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np
import torch

from ouroboros.errors import LoadError
from ouroboros.files import regular
from ouroboros.models.gguf_reader import GGUFReader, Place, Value
from ouroboros.models.stored import StoredWeights

__all__ = ["SPLIT", "GGUFFile"]

SPLIT = re.compile(r"(?P<stem>.*)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf$")
MOST_PARTS = 10_000


class GGUFFile:
    """A file, or all parts of a split one of which ``path`` is any.

    Attributes:
        metadata: by key, of the first part.

    Raises:
        LoadError: no GGUF file, a damaged one, or a part that is missing.
    """

    def __init__(self, path: Path) -> None:
        self.metadata: Mapping[str, Value]
        self._places: dict[str, Place] = {}
        self._maps = []
        files = _parts(path)
        for number, file in enumerate(files):
            try:
                reader = GGUFReader(file)
                metadata = reader.header()
                if number == 0:
                    self.metadata = metadata
                if len(files) > 1 and metadata.get("split.no") != number:
                    raise LoadError(f"it says that it is part {metadata.get('split.no')!r:.40}, counted from 0")
                for name, place in reader.tensors(number).items():
                    if name in self._places:
                        raise LoadError(f"it holds the tensor {name!r:.80} twice")
                    self._places[name] = place
            except LoadError as error:
                raise LoadError(f"{file.name}: {error}" if len(files) > 1 else str(error)) from error
            self._maps.append(reader.data)
        for key, count in (("split.count", len(files)), ("split.tensors.count", len(self._places))):
            if len(files) > 1 and self.metadata.get(key) != count:
                raise LoadError(
                    f"{key} is {self.metadata.get(key)!r:.40}, and the files that there are make it {count}"
                )
            if len(files) == 1 and key == "split.count" and self.metadata.get(key, 1) not in (0, 1):
                raise LoadError(f"it is one of {self.metadata[key]!r:.40} parts, and its name does not say which")

    @property
    def names(self) -> list[str]:
        return list(self._places)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """None where there is no such tensor."""
        return self._places[name].shape if name in self._places else None

    def kind(self, name: str) -> str:
        """ggml's name of the tensor's type."""
        return self._places[name].kind

    def tensor(self, name: str) -> StoredWeights:
        """The tensor as rows of its last dimension, where they lie in the file."""
        place = self._places[name]
        data = np.frombuffer(self._maps[place.part], np.uint8, place.size, place.start)
        rows = prod(place.shape[:-1])
        return StoredWeights(place.kind, torch.from_numpy(data).view(rows, -1), place.shape[-1])

    def release(self, name: str) -> None:
        """Lets go of the tensor's pages: they count as this process's memory until then. They can be read again."""
        place = self._places[name]
        first = -(-place.start // mmap.PAGESIZE) * mmap.PAGESIZE
        size = (place.start + place.size - first) // mmap.PAGESIZE * mmap.PAGESIZE
        if size > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._maps[place.part].madvise(mmap.MADV_DONTNEED, first, size)


def _parts(path: Path) -> list[Path]:
    """The files that make one model, in order."""
    match = SPLIT.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["parts"])
    if not 1 <= count <= MOST_PARTS or not 1 <= int(match["part"]) <= count:
        raise LoadError(f"the name {path.name!r:.80} says that it is part {match['part']} of {match['parts']}")
    names = [f"{match['stem']}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]
    missing = next((name for name in names if not regular(path.with_name(name))), None)
    if missing is not None:
        raise LoadError(f"it is one of {count} parts, and {missing!r:.120} is not beside it")
    return [path.with_name(name) for name in names]
