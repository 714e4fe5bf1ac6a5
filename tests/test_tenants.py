"""Memories of tenants: nobody sees another's phrases, and files outlive a process that is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ouroboros
from ouroboros import PoolFileError
from ouroboros.phrases.harvest import TextHarvest
from ouroboros.phrases.memory import Memory
from ouroboros.phrases.storage import load_pool, save_pool
from ouroboros.server.tenants import Tenants, file_of
from ouroboros.tree import Origin
from tests.servers import client_of, serving

SECRET = [101, 102, 103, 104, 105, 106, 107, 108]
SHARED = [201, 202, 203, 204, 205]
NOTHING = contextlib.nullcontext()


def learn(memory: Memory, tokens: list[int]) -> None:
    TextHarvest(memory.phrases, len(tokens)).learn(tokens)
    text = memory.outputs.start()
    text.add(tokens)
    text.stop()
    memory.predictions.learn(tokens[0], tokens[1], tokens[2:4], [-0.1, -3.0])


def knows(memory: Memory, tokens: list[int]) -> list[bool]:
    found = memory.phrases.lookup(tokens[:1], 3, 4).phrases
    speculation = memory.outputs.speculate(tokens[:1], 4, 4, 4, 0.0, 4, Origin.VERIFIED)
    return [
        any(phrase.tokens[0] == tokens[1] for phrase in found),
        speculation is not None,
        memory.predictions.look_up(tokens[0], tokens[1]) is not None,
    ]


def tenants(
    shared: Memory | None = None, directory: Path | None = None, most: int = 8, neighbours: bool = False
) -> Tenants:
    place = None if directory is None else str(directory)
    return Tenants(shared, NOTHING, place, "words", 1000, most, neighbours=neighbours)


def test_each_reads_their_own_and_what_is_shared() -> None:
    shared = Memory()
    learn(shared, SHARED)
    before = len(shared.phrases)
    found = tenants(shared)
    one, other, nobody = found.memory("a/"), found.memory("b/"), found.memory(None)
    learn(one, SECRET)
    assert knows(one, SECRET) == [True, True, True]
    for memory in (other, nobody, found.memory(None), shared):
        assert knows(memory, SECRET) == [False, False, False]
    for memory in (one, other, nobody):
        assert knows(memory, SHARED) == [True, True, True]
        offered = memory.phrases.lookup(SHARED[:1], 3, 4)
        memory.phrases.credit(SHARED[:1], offered, [999])
    assert found.memory("a/") is one
    assert len(shared.phrases) == before
    assert all(phrase.offered == 0 for _, phrase in shared.phrases.items())
    assert max(phrase.offered for _, phrase in other.phrases.items()) == 1  # what was refused is remembered above


def test_files_outlive_the_server_and_belong_to_one(tmp_path: Path) -> None:
    first = tenants(directory=tmp_path)
    learn(first.memory("a/"), SECRET)
    with pytest.raises(PoolFileError, match="in use"):
        tenants(directory=tmp_path)
    first.touch("a/")
    assert first.save() == 1
    assert first.save() == 0
    first.close()
    second = tenants(directory=tmp_path)
    assert knows(second.memory("a/"), SECRET) == [True, True, True]
    assert knows(second.memory("b/"), SECRET) == [False, False, False]
    second.close()
    other = Tenants(None, NOTHING, str(tmp_path), "other words", 1000, 8)
    assert knows(other.memory("a/"), SECRET) == [False, False, False]
    other.close()


def test_memories_in_ram_are_bounded(tmp_path: Path) -> None:
    found = tenants(directory=tmp_path, most=2)
    learn(found.memory("a/"), SECRET)
    for name in ("b/", "c/", "d/"):
        found.memory(name)
    assert len(found) == 2
    assert knows(found.memory("a/"), SECRET) == [True, True, True]
    found.close()


def test_a_damaged_file_is_a_memory_that_begins_anew(tmp_path: Path) -> None:
    found = tenants(directory=tmp_path)
    learn(found.memory("a/"), SECRET)
    found.close()
    (file,) = tmp_path.rglob("*.pool")
    file.write_bytes(file.read_bytes()[:100])
    again = tenants(directory=tmp_path)
    assert knows(again.memory("a/"), SECRET) == [False, False, False]
    again.close()


WRITER = """
import contextlib, sys
from ouroboros.server.tenants import Tenants
from tests.test_tenants import learn
found = Tenants(None, contextlib.nullcontext(), sys.argv[1], "words", 1000000, 8)
print("ready", flush=True)
for i in range(10**6):
    for name in ("a/", "b/"):
        learn(found.memory(name), [i % 900000 + (name == "b/") * 10**5 + j for j in range(40)])
        found.touch(name)
    found.save()
"""


@pytest.mark.slow
def test_files_can_be_read_whenever_the_server_is_killed(tmp_path: Path) -> None:
    for round in range(50):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        time.sleep(0.02 + 0.007 * (round % 11))
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        for name in ("a/", "b/"):
            for file in tmp_path.rglob(file_of(name)):
                memory = load_pool(file, "words", 1000000)
                tokens = {t for key, phrase in memory.phrases.items() for t in (*key, *phrase.tokens)}
                assert tokens
                assert all((t >= 10**5) == (name == "b/") for t in tokens)
    found = tenants(directory=tmp_path)
    assert list(tmp_path.rglob("*.part")) == []
    found.close()


def test_a_key_s_requests_are_drafted_from_their_own_memory_alone() -> None:
    decoder = ouroboros.load(method="suffix_decoding", dtype="float32")
    settings = {"model": "ouroboros", "prompt": "def add(a, b):\n", "max_tokens": 40, "temperature": 0.0}
    with serving(decoder, api_keys=("one", "two")) as server:

        def drafted(key: str, **more: object) -> int:
            before = server._service.metrics._accepted._value.get()
            client_of(server, key).completions.create(**settings, extra_body=more)  # type: ignore[call-overload]
            return int(server._service.metrics._accepted._value.get() - before)

        alone = drafted("one")
        assert drafted("one") > alone  # its own output comes again
        assert drafted("two") == alone  # as if nobody had asked before
        assert drafted("one", memory="other") == alone
        assert drafted("one", memory=False) == alone
        assert drafted("one", memory=False) == alone
        import openai

        for key in ("three", "on", ""):
            with pytest.raises((openai.AuthenticationError, openai.OpenAIError)):
                client_of(server, key).models.list()


def test_pools_are_made_of_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ouroboros.cli import main

    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("def add(a, b):\n    return a + b\n" * 3)
    (tmp_path / "src" / "b.bin").write_bytes(b"\xff\x00")
    rows = '{"text": "hello there"}\n{"messages": [{"role": "user", "content": "x y z"}]}\n'
    (tmp_path / "rows.jsonl").write_text(rows)
    one, two, all = (str(tmp_path / name) for name in ("one", "two", "all"))
    assert main(["pool", "build", one, str(tmp_path / "src")]) == 0
    assert main(["pool", "build", two, str(tmp_path / "rows.jsonl")]) == 0
    assert main(["pool", "merge", all, one, two]) == 0
    assert main(["pool", "info", all, "--json"]) == 0
    import json

    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["phrases"] > 10
    assert main(["pool", "prune", all, "--max-keys", "5"]) == 0
    with ouroboros.load(pool=all, pool_read_only=True) as decoder:
        assert decoder.pool is not None
        assert decoder.pool.keys == 5
    assert main(["pool", "info", str(tmp_path / "rows.jsonl")]) == 2
    assert main(["pool", "build", one, str(tmp_path / "missing")]) == 2
    other = Memory()
    save_pool(other, two, "other words")
    assert main(["pool", "merge", all, one, two]) == 2


def test_neighbours_read_what_the_others_have_learned_of_the_same_tenant(tmp_path: Path) -> None:
    common = Memory()
    learn(common, SHARED)
    one, other = (tenants(common, tmp_path / place, neighbours=True) for place in "01")
    learn(one.memory("a/"), SECRET)
    there, stranger = other.memory("a/"), other.memory("b/")
    assert other.exchange() == 0
    one.touch("a/")
    assert one.save() == 1
    assert other.exchange() == 1
    assert other.exchange() == 0  # nothing new
    assert knows(there, SECRET) == [True, True, True]
    assert knows(there, SHARED) == [True, True, True]  # what lies below both is still there
    assert knows(stranger, SECRET) == [False, False, False]
    assert len(there.phrases) == 0  # read, not copied: it is not written again
    other.close()
    one.close()
    late = tenants(common, tmp_path / "2", neighbours=True)
    assert knows(late.memory("a/"), SECRET) == [True, True, True]
    late.close()


def test_counts_do_not_grow_by_being_exchanged(tmp_path: Path) -> None:
    one, other = (tenants(None, tmp_path / place, neighbours=True) for place in "01")
    for each in (one, other):
        learn(each.memory("a/"), SECRET)
        each.touch("a/")
    before = {key: phrase.seen for key, phrase in one.memory("a/").phrases.items()}
    for _ in range(5):
        for each in (one, other):
            each.touch("a/")
            each.save()
            each.exchange()
    assert {key: phrase.seen for key, phrase in one.memory("a/").phrases.items()} == before
    one.close()
    other.close()


def test_a_neighbours_damaged_file_is_left_out(tmp_path: Path) -> None:
    one, other = (tenants(None, tmp_path / place, neighbours=True) for place in "01")
    learn(one.memory("a/"), SECRET)
    one.touch("a/")
    one.close()
    (file,) = (tmp_path / "0").rglob("*.pool")
    file.write_bytes(b"no pool")
    assert knows(other.memory("a/"), SECRET) == [False, False, False]
    other.close()
