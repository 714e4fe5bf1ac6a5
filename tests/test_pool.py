"""The phrase pool: bounds, no duplicates, ranking, forgetting; harvest; the file."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from ouroboros.errors import PoolFileError
from ouroboros.phrases.harvest import TextHarvest, corrections
from ouroboros.phrases.memory import Memory
from ouroboros.phrases.pool import KEYS, Held, Phrase, PhrasePool
from ouroboros.phrases.storage import load_pool, save_pool
from ouroboros.tree import Origin, TokenTree

inserts = st.lists(
    st.tuples(
        st.lists(st.integers(0, 3), min_size=1, max_size=9),
        st.lists(st.integers(0, 3), max_size=6),
        st.sampled_from([Origin.VERIFIED, Origin.CORRECTED, Origin.PROMPT, Origin.WINDOW]),
    ),
    max_size=80,
)


def contents(pool: PhrasePool) -> list[tuple[object, ...]]:
    return [(key, p.tokens, p.origin, p.seen, p.offered, p.accepted) for key, p in pool.items()]


@given(inserts, st.integers(1, 12), st.integers(1, 3), st.integers(1, 5))
def test_bounds_and_no_duplicates(
    entries: list[tuple[list[int], list[int], Origin]], keys: int, per_key: int, length: int
) -> None:
    pool = PhrasePool(max_keys=keys, phrases_per_key=per_key, max_tokens=length)
    for context, tokens, origin in entries:
        pool.insert(context, tokens, origin)
        assert pool.keys <= keys
    by_key: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for key, phrase in pool.items():
        assert len(key) in KEYS
        assert 1 <= len(phrase.tokens) <= length
        by_key.setdefault(key, []).append(phrase.tokens)
    assert len(pool) == sum(map(len, by_key.values()))
    for phrases in by_key.values():
        assert len(phrases) <= per_key
        for a in phrases:
            assert sum(a == b[: len(a)] for b in phrases) == 1  # none is a prefix of another


@given(inserts, st.lists(st.integers(0, 3), min_size=1, max_size=4), st.integers(0, 5), st.integers(1, 6))
def test_lookup_is_a_trie_of_what_is_known(
    entries: list[tuple[list[int], list[int], Origin]], context: list[int], branches: int, length: int
) -> None:
    pool = PhrasePool()
    for known, tokens, origin in entries:
        pool.insert(known, tokens, origin)
    found = pool.lookup(context, branches, length)
    assert found.tree.tokens[0] == context[-1]
    assert len(found.phrases) <= branches
    paths = {tuple(found.tree.path_tokens(node)) for node in range(len(found.tree))}
    assert paths == {p.tokens[:n] for p in found.phrases for n in range(min(length, len(p.tokens)) + 1)} | {()}
    ranks = [phrase.expected for phrase in found.phrases]
    assert ranks == sorted(ranks, reverse=True)
    if branches and any(tokens and known[-1] == context[-1] for known, tokens, _ in entries):
        assert found.phrases


def test_longer_matches_and_better_origins_come_first() -> None:
    pool = PhrasePool()
    for i, origin in enumerate((Origin.WINDOW, Origin.PROMPT, Origin.CORRECTED, Origin.VERIFIED)):
        pool.insert([9], [i], origin)
    assert [p.origin for p in pool.lookup([9], 4, 1).phrases] == [
        Origin.VERIFIED,
        Origin.PROMPT,
        Origin.CORRECTED,
        Origin.WINDOW,
    ]
    pool.insert([7, 8, 9], [5], Origin.PROMPT)
    assert pool.lookup([7, 8, 9], 1, 1).phrases[0].tokens == (5,)


def test_success_overrules_the_prior() -> None:
    pool = PhrasePool()
    pool.insert([1], [2], Origin.WINDOW)
    pool.insert([1], [3], Origin.VERIFIED)
    for _ in range(20):
        found = pool.lookup([1], 2, 1)
        pool.credit([1], found, [2])
    assert [phrase.tokens for phrase in pool.lookup([1], 2, 1).phrases] == [(2,), (3,)]
    assert pool.lookup([1], 1, 1).phrases[0].rate > 0.4


def test_window_junk_does_not_evict_verified_phrases() -> None:
    pool = PhrasePool(phrases_per_key=2)
    pool.insert([1], [2], Origin.VERIFIED)
    pool.insert([1], [3], Origin.VERIFIED)
    for junk in range(10, 200):
        pool.insert([1], [junk], Origin.WINDOW)
    assert {phrase.tokens for _, phrase in pool.items()} == {(2,), (3,)}


def test_useful_keys_get_a_second_chance() -> None:
    pool = PhrasePool(max_keys=4)
    pool.insert([1], [2], Origin.VERIFIED)
    pool.credit([1], pool.lookup([1], 1, 1), [2])
    for key in range(10, 14):
        pool.insert([key], [0], Origin.WINDOW)
    assert pool.lookup([1], 1, 1).phrases
    for key in range(20, 29):  # its second chance is used up
        pool.insert([key], [0], Origin.WINDOW)
    assert not pool.lookup([1], 1, 1).phrases


def test_text_harvest_knows_every_ngram_as_if_it_had_come_at_once() -> None:
    rng = random.Random(0)
    text = rng.choices(range(5), k=60)
    steps, at_once = PhrasePool(max_tokens=4, phrases_per_key=1000), PhrasePool(max_tokens=4, phrases_per_key=1000)
    harvest = TextHarvest(steps, prompt_length=20)
    length = 20
    while length < 60:
        harvest.learn(text[:length])
        length += rng.randint(1, 4)
    harvest.learn(text)
    TextHarvest(at_once, prompt_length=20).learn(text)

    def phrases(pool: PhrasePool) -> list[tuple[object, ...]]:
        return sorted((key, phrase.tokens) for key, phrase in pool.items())

    assert phrases(steps) == phrases(at_once)
    assert sum(phrase.seen for _, phrase in at_once.items()) == sum(
        length <= i for i in range(1, 60) for length in KEYS
    )
    for start in range(3, 56):
        assert any(
            phrase.tokens == tuple(text[start : start + 4]) for phrase in steps.lookup(text[:start], 1000, 4).phrases
        )


def test_corrections_are_runs_that_begin_anew_after_a_disagreement() -> None:
    tree = TokenTree(0)
    tree.extend(0, [1, 2, 3, 4, 5], Origin.DRAFT)
    # behind 0 the target wants 9; behind 1: 2 (agrees); behind 2: 8 (corrects 3); behind 3: 4, 4: 5, 5: 6
    found = list(corrections(tree, [0], [9, 2, 8, 4, 5, 6]))
    assert found == [([1], [2, 8]), ([1, 2, 3], [4, 5, 6])]


def test_corrections_treat_branches_alike_and_leave_accepted_nodes_out() -> None:
    tree = TokenTree(0)
    one = tree.add(0, 1, Origin.DRAFT)
    tree.extend(one, [2, 3], Origin.VERIFIED)
    tree.extend(one, [4, 5], Origin.VERIFIED)
    predictions = [1, 4, 3, 7, 6, 8]  # accepted: 1, 4; then the target wants 6 where the branch has 5
    assert list(corrections(tree, [0, 1, 4], predictions)) == [([1, 2], [3, 7]), ([1, 4, 5], [8])]


# --- the file --------------------------------------------------------------------------------------------------------


@given(entries=inserts)
def test_a_stored_pool_is_the_same_pool(
    entries: list[tuple[list[int], list[int], Origin]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "pool"
    pool = PhrasePool(max_keys=50, phrases_per_key=4, max_tokens=5)
    for context, tokens, origin in entries:
        pool.insert(context, tokens, origin)
        pool.credit(context, pool.lookup(context, 2, 3), [0, 1, 2])
    save_pool(Memory(pool), path, "words")
    again = load_pool(path, "words", 100)
    assert contents(again.phrases) == contents(pool)
    bounds = again.phrases.max_keys, again.phrases.phrases_per_key, again.phrases.max_tokens
    assert bounds == (50, 4, 5)


def test_a_file_keeps_what_other_methods_remember(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    memory = Memory()
    for tokens in ([1, 2, 3], [4, 5], [1, 2, 6]):
        text = memory.outputs.start()
        text.add(tokens)
        if tokens != [1, 2, 6]:  # the last one is still being written
            text.stop()
    memory.successors.update({7: (8, 9), 3: (), 0: (1, 2, 3)})
    memory.predictions.learn(None, 1, [2, 3], [-0.5, -1.5])
    memory.predictions.learn(1, 2, [3], [-0.25])
    save_pool(memory, path, "words")
    again = load_pool(path, "words", 100)
    assert list(again.predictions.items()) == list(memory.predictions.items())
    assert again.outputs.tokens == [1, 2, 3, -1, 4, 5, -1, 1, 2, 6, -1]
    assert again.successors == memory.successors
    save_pool(again, path, "words")
    assert load_pool(path, "words", 100).outputs.tokens == again.outputs.tokens
    with safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in ("keys", "tokens", "counts")}
        save_file(arrays, path, file.metadata())
    before = load_pool(path, "words", 100)  # as files were once
    assert len(before.outputs) == len(before.predictions) == 0


def _one_line(error: pytest.ExceptionInfo[PoolFileError], path: Path) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("data", [b"", b"hello, world", b"\x00" * 100, b'{"a": 1}'])
def test_a_file_that_is_no_pool(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "pool"
    path.write_bytes(data)
    with pytest.raises(PoolFileError) as error:
        load_pool(path, "words", 100)
    assert "no phrase pool" in _one_line(error, path)


def test_other_files_and_other_vocabularies(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    save_file({"keys": np.zeros(3)}, path)
    with pytest.raises(PoolFileError, match="no phrase pool"):
        load_pool(path, "words", 100)
    pool = PhrasePool()
    pool.insert([1], [2, 3], Origin.VERIFIED)
    save_pool(Memory(pool), path, "words")
    with pytest.raises(PoolFileError, match="another vocabulary"):
        load_pool(path, "other words", 100)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(PoolFileError) as error:
        load_pool(path, "words", 100)
    _one_line(error, path)
    with pytest.raises(PoolFileError) as error:
        load_pool(tmp_path / "missing", "words", 100)
    assert "No such file" in _one_line(error, tmp_path / "missing")


def test_a_file_with_other_keys_loads_what_is_under_these(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "keys": np.array([[1, -1, -1], [2, 1, -1], [3, 2, 1]], np.int32),
        "tokens": np.full((3, 2), 5, np.int32),
        "counts": np.ones((3, 4), np.int64),
    }
    bounds = json.dumps({"max_keys": 5, "phrases_per_key": 5, "max_tokens": 5})
    meta = {"format": "ouroboros-phrase-pool", "version": "1", "fingerprint": "words", "bounds": bounds}
    save_file(arrays, path, meta)
    pool = load_pool(path, "words", 100).phrases
    assert [key for key, _ in pool.items()] == [(1,), (2, 1)]
    assert all((phrase.seen, phrase.offered, phrase.accepted) == (1, 1, 1) for _, phrase in pool.items())


def test_damaged_entries_and_versions(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "keys": np.full((1, 3), -1, np.int32),
        "tokens": np.ones((1, 2), np.int32),
        "counts": np.zeros((1, 4), np.int64),
    }
    bounds = json.dumps({"max_keys": 5, "phrases_per_key": 5, "max_tokens": 5})
    meta = {"format": "ouroboros-phrase-pool", "version": "1", "fingerprint": "words", "bounds": bounds}
    save_file(arrays, path, meta)
    with pytest.raises(PoolFileError, match="damaged"):
        load_pool(path, "words", 100)
    save_file(arrays, path, {**meta, "version": "99"})
    with pytest.raises(PoolFileError, match="version '99'"):
        load_pool(path, "words", 100)
    save_file(arrays, path, {**meta, "bounds": "[]"})
    with pytest.raises(PoolFileError, match="damaged"):
        load_pool(path, "words", 100)


def test_saving_where_one_cannot(tmp_path: Path) -> None:
    with pytest.raises(PoolFileError, match="cannot write"):
        save_pool(Memory(), tmp_path / "no" / "pool", "words")
    save_pool(Memory(), tmp_path / "pool", "words")
    assert [path.name for path in tmp_path.iterdir()] == ["pool"]  # no temporary file is left behind
    assert len(load_pool(tmp_path / "pool", "words", 100).phrases) == 0


def test_expected_tokens_and_rate() -> None:
    phrase = Phrase((1, 2), Origin.VERIFIED, 4)
    assert phrase.expected == pytest.approx(2.0)
    phrase.note(Origin.VERIFIED, 1, 8, 4)
    assert phrase.expected == pytest.approx((4 + 2 * 2.0) / 10)
    assert phrase.rate == pytest.approx(phrase.expected / (1 + phrase.expected))


class _Anew(PhrasePool):
    """Puts every occurrence in anew, however far it was known."""

    def insert(
        self,
        context: Sequence[int],
        tokens: Sequence[int],
        origin: Origin,
        again: bool = False,
        held: Held | None = None,
    ) -> Held:
        return super().insert(context, tokens, origin, again)


@pytest.mark.parametrize("seed", range(40))
def test_lengthening_what_is_held_is_putting_it_in_anew(seed: int) -> None:
    """Small vocabularies and bounds: phrases meet, part, are forgotten and come again."""
    chance = random.Random(seed)
    vocabulary, bounds = chance.choice([2, 3, 6, 30]), (chance.choice([10, 50, 10**6]), chance.choice([1, 2, 8]))
    longest = chance.choice([3, 10])
    pools = [PhrasePool(*bounds, longest), _Anew(*bounds, longest)]
    for _ in range(4):
        text = [chance.randrange(vocabulary) for _ in range(chance.randrange(1, 12))]
        most = chance.choice([None, 5])
        harvests = [TextHarvest(pool, len(text), most) for pool in pools]
        for _ in range(25):
            correction = [chance.randrange(vocabulary) for _ in range(chance.randrange(1, 5))]
            written = [chance.randrange(vocabulary) for _ in range(3)]
            offers = chance.random() < 0.5
            for pool, harvest in zip(pools, harvests, strict=True):
                harvest.learn(text)
                if offers:
                    pool.insert(text[-3:], correction, Origin.CORRECTED)
                    pool.credit(text[-4:], pool.lookup(text[-4:], 3, 4), written)
            text = text + written[: chance.randrange(1, 4)]
        ours, theirs = (
            [(key, p.tokens, p.origin, p.seen, p.offered, p.accepted, p.expected) for key, p in pool.items()]
            for pool in pools
        )
        assert ours == theirs
        assert len(pools[0]) == len(pools[1])
