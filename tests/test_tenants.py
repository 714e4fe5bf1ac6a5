"""Memories of tenants: nobody sees another's phrases, and files outlive a process that is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import ouroboros
from ouroboros import PoolFileError
from ouroboros.drafting.base import Drafter
from ouroboros.drafting.factory import build_drafter
from ouroboros.flow import Flow
from ouroboros.phrases.memory import Memory
from ouroboros.phrases.storage import load_pool, save_pool
from ouroboros.server.tenants import Tenants, file_of
from ouroboros.tree import Origin, TokenTree
from tests.memories import knows, learn, tokens_of
from tests.servers import client_of, serving

SECRET = [101, 102, 103, 104, 105, 106, 107, 108]
SHARED = [201, 202, 203, 204, 205]
NOTHING = contextlib.nullcontext()


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
from ouroboros.tree import Origin, TokenTree
from tests.memories import learn
found = Tenants(None, contextlib.nullcontext(), sys.argv[1], "words", 1000000, 8)
for i in range(10**6):
    for name in ("a/", "b/"):
        first = int(sys.argv[2]) + 40 * i + (name == "b/") * 500000
        learn(found.memory(name), list(range(first, first + 40)))
        found.touch(name)
    assert found.save() == 2
    print(i, flush=True)
"""


@pytest.mark.parametrize("rounds", [5, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_files_can_be_read_whenever_the_server_is_killed(tmp_path: Path, rounds: int) -> None:
    """Whatever a finished snapshot held is there, and nothing of another tenant's."""
    written: list[int] = []
    for round in range(rounds):
        begin = 9000 * round
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(begin)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            snapshots = [writer.stdout.readline()]
            time.sleep(0.0031 * (round % 11))
            os.kill(writer.pid, signal.SIGKILL)
            snapshots += writer.stdout.readlines()
        written += [begin + 40 * int(line) for line in snapshots if line.endswith(b"\n")]
        for name in ("a/", "b/"):
            (file,) = tmp_path.rglob(file_of(name))
            tokens = tokens_of(load_pool(file, "words", 1000000))
            assert all((token >= 500000) == (name == "b/") for token in tokens)
            assert all(first + (name == "b/") * 500000 in tokens for first in written)
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


class Spy:
    """A drafter whose proposals are noted: each path without the draft model's own tokens, which has read the same. So
    is each request's text."""

    def __init__(self, inner: Drafter, drafted: list[list[int]], texts: list[list[int]]) -> None:
        self._inner, self._drafted, self._texts = inner, drafted, texts
        self.start, self.observe = inner.start, inner.observe

    def propose(self, sequence: Sequence[int], room: int) -> Flow[TokenTree]:
        tree: TokenTree = yield from self._inner.propose(sequence, room)
        for node in range(1, len(tree)):
            if all(tree.origins[one] is not Origin.DRAFT for one in tree.path(node)[1:]):
                self._drafted.append([sequence[-1], *tree.path_tokens(node)])
        return tree

    def stop(self, sequence: Sequence[int]) -> None:
        self._texts.append(list(sequence))
        self._inner.stop(sequence)


@pytest.mark.parametrize("method", ["ouroboros", "lookahead", "suffix_decoding"])
def test_a_tenant_s_secret_is_in_nobody_else_s_drafts(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    drafted, texts = list[list[int]](), list[list[int]]()
    spied = "ouroboros.decoding.request.build_drafter"
    monkeypatch.setattr(spied, lambda *given: Spy(build_drafter(*given), drafted, texts))
    words = "jackdaw quartz 7319 velvet zephyr 4402 mohair lagoon"
    form = {"type": "json_schema", "json_schema": {"schema": {"const": words}}}
    settings: Any = {"model": "ouroboros", "temperature": 0.0}
    with serving(ouroboros.load(method=method, dtype="float32"), api_keys=("one", "two")) as server:

        def ask(key: str, **more: Any) -> str:
            answer: Any = client_of(server, key).completions.create(**settings, **more)
            text: str = answer.choices[0].text
            return text

        told = ask("one", prompt="Say: ", max_tokens=60, extra_body={"response_format": form})
        assert told.strip() == f'"{words}"'
        begin = texts[0][: len(texts[0]) // 2]
        secret = texts[0][len(begin) - 1 :]

        def drafts(key: str, **more: Any) -> bool:
            """Whether the secret is drafted where it has begun: two further tokens of it in a row."""
            drafted.clear()
            ask(key, prompt=begin, max_tokens=8, extra_body=more)
            runs = {tuple(secret[i : i + 3]) for i in range(len(secret) - 2)}
            return any(tuple(path[i : i + 3]) in runs for path in drafted for i in range(len(path) - 2))

        for key, more in (("two", {}), ("one", {"memory": "other"}), ("one", {"memory": False})):
            assert not drafts(key, **more), (key, more)
        assert drafts("one")


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
