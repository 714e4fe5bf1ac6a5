"""A target in two processes: what one process writes, and what happens when one of them is lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.spread_worker import METHODS, written
from tests.zoo import MODERN

pytest.importorskip("accelerate")  # transformers spreads no model without it

pytestmark = pytest.mark.timeout(300)
WORKER = Path(__file__).with_name("spread_worker.py")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target, and a draft that often guesses right: the target's with noise."""
    path = tmp_path_factory.mktemp("spread")
    torch.manual_seed(0)
    target = transformers.LlamaForCausalLM(transformers.LlamaConfig(**MODERN)).float().eval()
    target.save_pretrained(path / "target")
    with torch.no_grad():
        for weight in target.parameters():
            weight += 0.03 * torch.randn_like(weight)
    target.save_pretrained(path / "draft")
    return path


@contextlib.contextmanager
def ranks(task: str, place: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Both processes, which are ended in the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in range(2):
        here = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        here |= {"MASTER_PORT": port, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        here |= {"GLOO_SOCKET_IFNAME": "lo", "TP_SOCKET_IFNAME": "lo"}
        command = [sys.executable, str(WORKER), task, str(place)]
        started.append(
            subprocess.Popen(
                command, env=os.environ | here, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
        )
    try:
        yield started
    finally:
        for process in started:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.communicate()


@pytest.fixture(scope="module")
def found(place: Path) -> list[Any]:
    """What both ranks have written."""
    with ranks("write", place) as started:
        for process in started:
            _, errors = process.communicate(timeout=250)
            assert process.returncode == 0, errors[-3000:]
    return [json.loads((place / f"write-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_writes_what_one_process_writes(place: Path, found: list[Any], method: str) -> None:
    read = transformers.AutoModelForCausalLM.from_pretrained
    target, draft = (read(place / name, dtype=torch.float32) for name in ("target", "draft"))
    alone = written(target, draft, method)
    first, second = found[0][method], found[1][method]
    assert first == second
    del alone["closed"]  # a step's tokens, as many as costs have chosen
    assert {name: first[name] for name in alone} == alone


def test_without_a_seed_both_ranks_write_the_same(found: list[Any]) -> None:
    assert found[0]["unseeded"] == found[1]["unseeded"]
    assert len(found[0]["unseeded"]) == 24


def test_what_cannot_be_is_refused_on_every_rank(found: list[Any]) -> None:
    for one in found:
        told = one["refused"]
        assert len(told) == 6
        assert "backend must be auto or transformers" in told[0]
        assert "a draft must be whole in each" in told[1]
        assert "an Engine needs a target in one process" in told[2]
        assert "give it to ouroboros.load instead" in told[3]
        assert "99999" in told[4]
        assert "one request at a time" in told[5]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_ends_the_other_with_a_clear_error(place: Path, victim: int) -> None:
    other = 1 - victim
    with ranks(f"kill-{victim}", place) as started:
        started[other].wait(timeout=150)
    told, seconds = json.loads(json.loads((place / f"kill-{victim}-{other}.json").read_text()))
    assert f"rank {other} of 2 has lost another rank" in told or f"rank {victim} of 2" in told
    assert "\n" not in told
    assert seconds < 60


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_hangs_ends_the_other_within_a_minute(place: Path, victim: int) -> None:
    other = 1 - victim
    with ranks(f"stop-{victim}", place) as started:
        started[other].wait(timeout=150)
    told, seconds = json.loads(json.loads((place / f"stop-{victim}-{other}.json").read_text()))
    assert "has ended or hangs" in told
    assert seconds < 60
