"""What Python hands to the C++ side is checked where a wrong value would be read or written beyond a buffer."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ouroboros.kernels.library import library
from ouroboros.models import kernels
from ouroboros.models.base import ScoreRequest
from ouroboros.models.rows import keep
from ouroboros.sampling.rows import choose, guess
from ouroboros.tree import Origin, TokenTree
from tests.pairs import native, random_weights, tiny_config

pytestmark = pytest.mark.skipif(isinstance(library(), str), reason="no kernels here")


def found() -> Any:
    return library()


def fields(**values: int) -> tuple[Any, Any, tuple[Any, ...]]:
    """A model's and one sequence's struct, sound but for ``values``; and what they point to."""
    memory = ctypes.create_string_buffer(64)
    parents = array("i", [-1, 0, 1, 0])
    model = kernels._Model(heads=4, kv_heads=2, head_size=4, vocabulary=40)
    sequence = kernels._Sequence(cache=ctypes.addressof(memory), capacity=16, length=3, catch_up=2, pending=0, nodes=4)
    for name, value in values.items():
        if name.startswith("parent"):
            parents[int(name[-1])] = value
        else:
            setattr(model if hasattr(model, name) else sequence, name, value)
    sequence.parents = parents.buffer_info()[0]
    return model, sequence, (memory, parents)


def checked(positions: int = 9, wanted: tuple[int, ...] = (0, 5), tiles: tuple[int, ...] = (), **values: int) -> str:
    model, sequence, _held = fields(**values)
    rows, chosen = array("i", wanted), array("i", tiles)
    given = ctypes.addressof(model), ctypes.addressof(sequence), 1
    return kernels._WRONG[found().ouroboros_check(*given, positions, *rows.buffer_info(), *chosen.buffer_info())]


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        ({}, ""),
        ({"wanted": ()}, ""),
        ({"catch_up": 0, "pending": 2, "wanted": (0, 1)}, ""),
        ({"kv_heads": 0}, "the model's shape"),
        ({"kv_heads": 3}, "the model's shape"),
        ({"heads": -4}, "the model's shape"),
        ({"head_size": 0}, "the model's shape"),
        ({"length": -1}, "lengths"),
        ({"catch_up": -1}, "lengths"),
        ({"pending": -1}, "lengths"),
        ({"pending": 5, "catch_up": 0}, "lengths"),
        ({"pending": 1}, "lengths"),
        ({"nodes": -1}, "lengths"),
        ({"capacity": 8}, "a cache's capacity"),
        ({"length": 2**31 - 1}, "a cache's capacity"),
        ({"cache": 0}, "a cache's capacity"),
        ({"parent0": 0}, "parents"),
        ({"parent2": 2}, "parents"),
        ({"parent3": -1}, "parents"),
        ({"parent1": 2**30}, "parents"),
        ({"positions": 8}, "positions"),
        ({"wanted": (6,)}, "the wanted rows"),
        ({"wanted": (-1,)}, "the wanted rows"),
        ({"tiles": (0, 1)}, ""),
        ({"tiles": (2,)}, "tiles"),
        ({"tiles": (-1,)}, "tiles"),
    ],
    ids=str,
)
def test_a_forwards_arguments(values: dict[str, Any], wrong: str) -> None:
    assert checked(**values) == wrong


@pytest.mark.parametrize("spoil", ["rows", "cache"])
def test_a_decoder_says_what_is_wrong(spoil: str) -> None:
    model = native(tiny_config(), random_weights(tiny_config(), 1), torch.float32)
    assert model.info.engine == "kernels"
    slot: Any = model.open()
    tree = TokenTree(3)
    tree.add(0, 4, Origin.DRAFT)
    model.score([ScoreRequest(slot, tree)])
    if spoil == "cache":
        slot.commit([0, 1])
        slot._length = 10**6
        slot.reserve = lambda rows: None
        with pytest.raises(AssertionError, match="a forward's arguments are wrong: a cache's capacity"):
            model.prefill(slot, [1, 2])
        return
    for rows in ([7], [-3]):
        with pytest.raises((AssertionError, IndexError)):
            model.score([ScoreRequest(model.open(), tree, rows=rows)])


def test_structs_of_another_size_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels._other_structs(found()) is None

    class Longer(ctypes.Structure):
        _fields_ = (("one", kernels._Sequence), ("more", ctypes.c_int))

    monkeypatch.setattr(kernels, "_MIRRORED", (*kernels._MIRRORED[:-1], Longer))
    assert kernels._other_structs(found()) == "the kernels' Longer has 40 bytes, not 48"


def test_rows_of_a_cache() -> None:
    def moved(base: int, path: list[int]) -> torch.Tensor:
        buffer = torch.arange(40.0).view(2, 10, 2).clone()
        keep([buffer], base, path)
        return buffer[0, :, 0]

    assert moved(4, [1, 3])[4:6].tolist() == [10, 14]
    for base, path in ((4, [1, 6]), (4, [2**28]), (-1, [1])):
        with pytest.raises(AssertionError, match="do not lie within 10"):
            moved(base, path)
    blocks = array("i", [3, 2])
    buffer = torch.zeros(1, 10, 2)
    assert not found().ouroboros_keep(buffer.data_ptr(), 1, 80, 8, 0, blocks.buffer_info()[0], 2)


def test_rows_of_logits() -> None:
    logits_RV = torch.randn(2, 9)
    right: Callable[..., Any] = lambda pairs: choose(logits_RV, 9, 2, pairs=pairs)  # noqa: E731
    assert right([(0, 8), (1, 0)]) is not None
    for pair in ((0, 9), (2, 0), (-1, 0), (0, -1), (0, 2**30)):
        assert right([pair]) is None
    ids, logs = array("i", range(65)), array("f", [-1.0] * 65)
    assert guess(1, 2, 1.0, ids[:64], logs[:64], 3) is not None
    assert guess(1, 2, 1.0, ids, logs, 3) is None
    assert guess(1, 2, 1.0, ids[:4], logs[:4], 0) is None
