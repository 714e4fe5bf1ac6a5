"""Pool files are not believed, and are written so that nobody loses anything: modes, links, kills, two at once."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import ouroboros
from ouroboros.directories import write_json
from ouroboros.errors import PoolFileError
from ouroboros.files import stale_files, write_whole
from ouroboros.phrases.lock import PoolLock
from ouroboros.phrases.memory import Memory
from ouroboros.phrases.storage import load_pool, save_pool
from ouroboros.tree import Origin
from tests.test_cli import environment

VOCAB = 50
ROOT = Path(__file__).parent.parent


def filled() -> Memory:
    memory = Memory()
    memory.phrases.insert([1, 2], [3, 4, 5], Origin.VERIFIED)
    memory.outputs.restore([1, 2, 3])
    memory.successors[7] = (8, 9)
    memory.predictions.learn(1, 2, [3, 4], [-0.5, -1.5])
    return memory


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_pool(filled(), tmp_path / "pool", "words")
    return tmp_path / "pool"


Change = Callable[[dict[str, np.ndarray[Any, Any]], dict[str, str]], object]


def rewrite(path: Path, change: Change) -> None:
    with safe_open(path, framework="numpy") as file:
        arrays, meta = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    change(arrays, meta)
    save_file(arrays, path, meta)


def refused(path: Path, *words: str) -> None:
    with pytest.raises(PoolFileError) as caught:
        load_pool(path, "words", VOCAB)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    assert str(path) in message
    for word in words:
        assert word in message


def put(name: str, place: Any, value: Any) -> Change:
    def change(arrays: dict[str, np.ndarray[Any, Any]], meta: dict[str, str]) -> None:
        arrays[name][place] = value

    return change


def swap(name: str, value: Any) -> Change:
    def change(arrays: dict[str, np.ndarray[Any, Any]], meta: dict[str, str]) -> None:
        arrays[name] = value(arrays[name]) if callable(value) else value

    return change


def bounds(**changes: Any) -> Change:
    def change(arrays: dict[str, np.ndarray[Any, Any]], meta: dict[str, str]) -> None:
        meta["bounds"] = json.dumps(json.loads(meta["bounds"]) | changes)

    return change


# ------------------------------------------------------------------------------------------------------- contents


@pytest.mark.parametrize("token", [VOCAB, 2**31 - 1, 5_000_000, -2, -(2**31)])
@pytest.mark.parametrize("name", ["keys", "tokens", "outputs", "successors", "predictions"])
def test_tokens_that_the_vocabulary_does_not_have(path: Path, name: str, token: int) -> None:
    rewrite(path, put(name, 0 if name == "outputs" else (0, 1), token))
    refused(path, "damaged", name, f"token id {token}", f"0 to {VOCAB - 1}")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("logs", (0, 0), np.inf), "logs hold inf"),
        (put("logs", (0, 0), np.nan), "logs hold nan"),
        (put("logs", (0, 0), 60_000), "logs hold 60000"),
        (put("logs", (0, 0), 0.5), "logs hold 0.5"),
        (put("logs", 0, 0), "more than 1"),
        (put("predictions", (0, 3), 3), "name a token twice"),
        (put("predictions", (0, 2), -1), "empty entry"),
        (put("counts", (0, 0), 4), "origin is 4"),
        (put("counts", (0, 0), -1), "origin is -1"),
        (put("counts", (0, 1), 0), "seen is 0"),
        (put("counts", (0, 1), 2**62), "seen is 4611686018427387904"),
        (put("counts", (0, 2), -1), "offered is -1"),
        (put("counts", (0, 3), 2**63 - 1), "accepted is"),
        (put("counts", (0, 3), 1), "accepted than offered"),
        (put("keys", (0, 0), -1), "keys has an empty entry"),
        (put("tokens", (0, 0), -1), "tokens has an empty entry"),
        (put("tokens", (0, 1), -1), "after an entry's end"),
        (swap("tokens", lambda a: a.astype(np.float32)), "tokens is of type F32, not I32"),
        (swap("tokens", lambda a: a.astype(np.int64)), "tokens is of type I64, not I32"),
        (swap("keys", lambda a: a.astype(np.uint32)), "keys is of type U32"),
        (swap("logs", lambda a: a.astype(np.float32)), "logs is of type F32"),
        (swap("logs", lambda a: a[:, :1].copy()), "predictions and logs have the shapes"),
        (swap("logs", lambda a: a[:1].copy()), "shapes [2, 4] and [1, 2]"),
        (swap("counts", lambda a: a[:, :3].copy()), "not of the same length"),
        (swap("tokens", lambda a: a[:1].copy()), "keys, tokens and counts are not"),
        (swap("keys", lambda a: a.reshape(-1)), "keys has the shape"),
        (swap("outputs", lambda a: a[:, None].copy()), "outputs has the shape"),
        (swap("successors", np.zeros((2**30, 0), np.int32)), "successors has the shape [1073741824, 0]"),
        (swap("predictions", np.zeros((2**40, 0), np.int32)), "predictions has the shape"),
        (bounds(max_keys=0), "max_keys is 0"),
        (bounds(max_keys=10**30), "max_keys is 1000"),
        (bounds(phrases_per_key=2**31), "phrases_per_key is"),
        (bounds(max_tokens=True), "max_tokens is True"),
        (bounds(max_tokens="8"), "max_tokens is '8'"),
        (bounds(more=1), "its bounds are"),
        (lambda arrays, meta: meta.update(bounds="[" * 900), "is damaged"),
        (lambda arrays, meta: meta.update(bounds="[" * 200_000), "200000 characters"),
        (lambda arrays, meta: meta.update(bounds="{"), "damaged"),
        (lambda arrays, meta: meta.pop("bounds"), "bounds"),
        (lambda arrays, meta: arrays.pop("counts"), "lacks counts"),
        (lambda arrays, meta: arrays.pop("logs"), "must be there both"),
    ],
)
def test_what_no_pool_has(path: Path, change: Change, words: str) -> None:
    rewrite(path, change)
    refused(path, words)


def test_what_a_pool_may_have(path: Path) -> None:
    """Tokens that the target rules out are kept as such; they are never drafted."""
    pool = filled()
    pool.predictions.learn(5, 6, [3, 4, 5], [-0.1, -1e9, float("-inf")])
    pool.predictions.learn(6, 7, [3, 4], [1e-7, float("nan")])  # sums of 32 bits; a broken target
    save_pool(pool, path, "words")
    rows = {(before, last): row for before, last, row in load_pool(path, "words", VOCAB).predictions.items()}
    assert rows[5, 6].ids.tolist() == [3, 4, 5]
    assert max(rows[6, 7].logs) <= 0
    rewrite(path, put("logs", (0, 1), -np.inf))
    assert [len(row.ids) for _, _, row in load_pool(path, "words", VOCAB).predictions.items()][:2] == [1, 3]


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "no regular file")
    refused(tmp_path, "no regular file")
    with pytest.raises(PoolFileError, match="no regular file"):
        ouroboros.load(method="lookahead", pool=tmp_path / "pipe")
    with open(tmp_path / "large", "wb") as file:
        file.truncate(2**31)  # no byte of it is on the disk
    refused(tmp_path / "large", "at most")


def fuzz(first: int, count: int) -> None:
    """In a process of its own: nothing may kill it."""
    command = [sys.executable, "-m", "tests.pool_fuzz", str(first), str(count)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=1500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert outcomes["refused"] + outcomes["read"] == count
    assert min(outcomes.values()) > count // 20


def test_damaged_files_are_refused_or_the_text_is_right() -> None:
    fuzz(0, 300)


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_five_thousand_damaged_files() -> None:
    fuzz(300, 5000)


# -------------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444])
def test_a_file_keeps_its_mode(path: Path, mode: int) -> None:
    path.chmod(mode)
    save_pool(filled(), path, "words")
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_a_new_file_has_what_the_umask_leaves(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        save_pool(filled(), tmp_path / "new", "words")
        write_json({"a": 1}, tmp_path / "made" / "json")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "made" / "json").stat().st_mode) == mode


def test_a_link_stays_a_link(path: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    link, real = tmp_path / "link", tmp_path / "other" / "real"
    link.symlink_to(real)
    for memory in (Memory(), filled()):  # what it leads to is made, and written again
        save_pool(memory, link, "words")
        assert link.is_symlink()
        assert len(load_pool(real, "words", VOCAB).phrases) == len(memory.phrases)
    assert sorted(file.name for file in (tmp_path / "other").iterdir()) == ["real"]


def test_a_full_disk_leaves_nothing_behind(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(PoolFileError, match="No space left on device"):
        save_pool(filled(), path, "words")
    monkeypatch.undo()
    assert [file.name for file in path.parent.iterdir()] == ["pool"]
    assert path.read_bytes() == before


def test_what_a_kill_leaves_is_gone_after_the_next_save(path: Path) -> None:
    code = (
        "import os, sys, signal, pathlib, ouroboros.files as files\n"
        "from ouroboros.phrases.lock import PoolLock\n"
        "lock = PoolLock(sys.argv[1])\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.write_whole(pathlib.Path(sys.argv[1]), b'half')\n"
    )
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", code, str(path)], env=environment(), check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert len(list(path.parent.iterdir())) == 3  # the pool, what was written of the next one, the lock's file
    assert len(stale_files(path)) == 1
    assert path.read_bytes() == before
    others = [path.parent / name for name in ("pool.deadbeef", ".pool.deadbeef", ".pool2.deadbeef.part")]
    for other in others:  # no files of ours
        other.write_text("kept")
    save_pool(filled(), path, "words")
    assert sorted(path.parent.iterdir()) == sorted([path, *others])


def test_a_second_process_is_told(path: Path) -> None:
    code = "import sys, ouroboros; ouroboros.load(method='lookahead', pool=sys.argv[1])"
    with PoolLock(path):
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], env=environment(), capture_output=True, text=True, check=False
        )
    last = done.stderr.strip().splitlines()[-1]
    assert f"in use by process {os.getpid()}" in last
    assert "pool_read_only" in last


def test_two_decoders_of_one_pool(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    first = ouroboros.load(method="lookahead", pool=path)
    with pytest.raises(PoolFileError, match=r"in use in this process.*only one at a time"):
        ouroboros.load(method="lookahead", pool=path)
    with pytest.raises(PoolFileError, match="in use"):
        save_pool(Memory(), path, first.fingerprint)
    first.generate("def f(x):", max_new_tokens=4)
    first.close()
    second = ouroboros.load(method="lookahead", pool=path)
    reader = ouroboros.load(method="lookahead", pool=path, pool_read_only=True)
    assert first.pool is not None
    assert reader.pool is not None
    assert len(reader.pool) == len(first.pool) > 0
    with pytest.raises(PoolFileError, match="in use"):
        first.close()  # it saved, and somebody else has gone on from there
    second.close()
    first.close()
    assert [file.name for file in tmp_path.iterdir()] == ["pool"]


def test_a_lost_decoder_gives_its_pool_back(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    ouroboros.load(method="lookahead", pool=path)
    with ouroboros.load(method="lookahead", pool=path):
        pass
    path.write_bytes(b"damaged")
    with pytest.raises(PoolFileError, match="damaged") as caught:
        ouroboros.load(method="lookahead", pool=path)
    PoolLock(path).release()
    assert caught.tb is not None  # the failed call is still held
    with pytest.raises(PoolFileError, match=r"Not a directory|No such file"):
        PoolLock(path / "x" / "pool")


def test_a_write_that_is_interrupted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "file", b"data")
    assert list(tmp_path.iterdir()) == []
