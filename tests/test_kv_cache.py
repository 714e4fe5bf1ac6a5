"""KVCache alone: every row bears a number of its own, so that a row out of its place shows."""

from __future__ import annotations

import random

import pytest
import torch

from ouroboros.models.kv_cache import KVCache

LAYERS, HEADS, SIZE = 3, 2, 4


def new(step: int = 8) -> KVCache:
    return KVCache((LAYERS, HEADS, SIZE), torch.float64, torch.device("cpu"), step)


def rows(numbers: list[int], layer: int, values: bool) -> torch.Tensor:
    """[heads, rows, size]: contents by which row, layer, head, and key or value can be told."""
    row = torch.tensor(numbers, dtype=torch.float64)[None, :, None] * 1000
    head = torch.arange(HEADS)[:, None, None] * 10
    return (row + layer * 100 + head + int(values)).expand(HEADS, len(numbers), SIZE)


def append(cache: KVCache, numbers: list[int], *, pending: bool = False) -> None:
    cache.reserve(len(numbers))
    for layer in range(LAYERS):
        cache.write(layer, rows(numbers, layer, False), rows(numbers, layer, True))
    cache.advance(0 if pending else len(numbers), len(numbers) if pending else 0)


def check(cache: KVCache, numbers: list[int], pending: int = 0) -> None:
    """These rows and no others, in every layer; the last ``pending`` of them are pending."""
    assert (cache.length, cache.pending) == (len(numbers) - pending, pending)
    nothing = torch.empty(HEADS, 0, SIZE, dtype=torch.float64)
    for layer in range(LAYERS):
        keys, values = cache.write(layer, nothing, nothing)
        assert torch.equal(keys, rows(numbers, layer, False))
        assert torch.equal(values, rows(numbers, layer, True))


def place(cache: KVCache) -> int:
    """Where the buffer lies: as long as it does not change, nothing was allocated anew."""
    nothing = torch.empty(HEADS, 0, SIZE, dtype=torch.float64)
    return cache.write(0, nothing, nothing)[0].untyped_storage().data_ptr()


def test_a_new_cache_holds_nothing() -> None:
    cache = new()
    check(cache, [])
    assert cache.capacity == 0
    cache.commit([])
    cache.truncate(0)
    cache.rewind(0)
    check(cache, [])


def test_growth_keeps_rows_and_goes_in_steps() -> None:
    cache = new(step=8)
    capacities = []
    for number in range(100):
        append(cache, [number], pending=number >= 90)
        capacities.append(cache.capacity)
    check(cache, list(range(100)), pending=10)
    assert all(capacity % 8 == 0 and capacity > number for number, capacity in enumerate(capacities))
    assert capacities[:8] == [8] * 8
    assert len(set(capacities)) <= 12


def test_long_texts_are_copied_seldom() -> None:
    cache = new(step=1)
    append(cache, list(range(1000)))
    capacities = set()
    for number in range(1000, 2000):
        append(cache, [number])
        capacities.add(cache.capacity)
    assert len(capacities) <= 5  # a quarter more each time
    assert cache.capacity <= 2000 * 5 / 4
    check(cache, list(range(2000)))


def test_reserved_room_is_used() -> None:
    cache = new()
    append(cache, [0, 1])
    cache.reserve(60)
    before, capacity = place(cache), cache.capacity
    for number in range(2, 62):
        append(cache, [number])
    assert (place(cache), cache.capacity) == (before, capacity)
    check(cache, list(range(62)))


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("path", [[], [0], [0, 1, 2, 3, 4, 5], [0, 1, 3], [0, 2, 5], [0, 5], [3, 4], [5]], ids=str)
def test_commit_keeps_a_path(path: list[int], kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernels:
        monkeypatch.setattr("ouroboros.models.rows.library", lambda: "no C++ compiler")
    cache = new()
    append(cache, [1, 2, 3])
    append(cache, [10, 11, 12, 13], pending=True)
    append(cache, [14, 15], pending=True)
    before = place(cache)
    cache.commit(path)
    assert place(cache) == before
    check(cache, [1, 2, 3, *(10 + node for node in path)])
    append(cache, [20], pending=True)
    check(cache, [1, 2, 3, *(10 + node for node in path), 20], pending=1)


def test_rewind_and_truncate_move_nothing() -> None:
    cache = new()
    append(cache, list(range(6)))
    append(cache, [10, 11, 12, 13], pending=True)
    before = place(cache)
    cache.truncate(4)
    check(cache, [0, 1, 2, 3, 4, 5, 10, 11, 12, 13], pending=4)
    cache.truncate(1)
    check(cache, [0, 1, 2, 3, 4, 5, 10], pending=1)
    cache.rewind(6)
    check(cache, [0, 1, 2, 3, 4, 5])
    cache.rewind(2)
    check(cache, [0, 1])
    append(cache, [7])
    check(cache, [0, 1, 7])
    cache.rewind(0)
    check(cache, [])
    assert place(cache) == before


def test_broken_invariants_are_caught() -> None:
    cache = new()
    append(cache, [0, 1])
    append(cache, [10, 11], pending=True)
    for path in ([2], [1, 0], [0, 0], [0, 2]):
        with pytest.raises(AssertionError):
            cache.commit(path)
    for pending in (-1, 3):
        with pytest.raises(AssertionError):
            cache.truncate(pending)
    for length in (-1, 3):
        with pytest.raises(AssertionError):
            cache.rewind(length)
    with pytest.raises(AssertionError, match="behind pending"):
        cache.advance(1, 0)
    check(cache, [0, 1, 10, 11], pending=2)


@pytest.mark.parametrize("seed", range(5))
def test_any_life(seed: int) -> None:
    """Random calls against a plain list."""
    source, cache = random.Random(seed), new(step=4)
    committed: list[int] = []
    pending: list[int] = []
    for number in range(300):
        match source.choice(["append", "propose", "propose", "commit", "truncate", "rewind"]):
            case "append" if not pending:
                committed.append(number)
                append(cache, [number])
            case "propose":
                new_rows = [1000 * number + i for i in range(source.randint(1, 5))]
                pending += new_rows
                append(cache, new_rows, pending=True)
            case "commit":
                path = sorted(source.sample(range(len(pending)), source.randint(0, len(pending))))
                committed += [pending[node] for node in path]
                pending = []
                cache.commit(path)
            case "truncate":
                del pending[source.randint(0, len(pending)) :]
                cache.truncate(len(pending))
            case "rewind" if source.random() < 0.2:
                del committed[source.randint(0, len(committed)) :]
                pending = []
                cache.rewind(len(committed))
        check(cache, committed + pending, len(pending))
