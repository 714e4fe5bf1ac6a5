"""``ouroboros bench throughput``: what it measures of a service, and how it is asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator

import pytest

from ouroboros import cli
from ouroboros.bench.services import LlamaServer
from ouroboros.bench.throughput import Arrivals, Measured, Task, measure, report
from ouroboros.errors import InputError, LoadError

TASKS = [Task([1, 2], 3, 0.0, seed) for seed in range(6)]


class Slow:
    """Tells of two tokens after 30 ms, and of one after 10 more."""

    name = "slow"

    def __init__(self) -> None:
        self.now = self.most = 0
        self.lock = threading.Lock()

    def ask(self, task: Task) -> Iterator[int]:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.03)
        yield 2
        time.sleep(0.01)
        yield 0
        yield 1
        with self.lock:
            self.now -= 1


def test_so_many_at_once() -> None:
    service = Slow()
    found = measure(service, TASKS, Arrivals(concurrency=2))
    assert service.most == 2
    assert (found.requests, found.tokens, found.arrivals, found.service) == (6, 18, "2 at once", "slow")
    assert 0.03 <= found.first[0] <= found.first[1] <= found.first[2]
    assert found.token[0] >= 0.01
    assert 18 / found.tokens_per_second >= 3 * 0.04


def test_so_many_a_second() -> None:
    began = time.perf_counter()
    found = measure(Slow(), TASKS, Arrivals(rate=50.0), seed=1)
    assert found.tokens == 18
    assert time.perf_counter() - began > 0.04
    assert "50 a second" in report([found])


def test_an_error_is_told() -> None:
    class Broken(Slow):
        def ask(self, task: Task) -> Iterator[int]:
            raise LoadError("it has ended")
            yield 1

    with pytest.raises(LoadError, match="it has ended"):
        measure(Broken(), TASKS, Arrivals(concurrency=2))


@pytest.mark.parametrize(
    "wrong", [{}, {"concurrency": 0}, {"rate": 0.0}, {"rate": float("nan")}, {"rate": 1.0, "concurrency": 1}]
)
def test_arrivals_that_are_none(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Arrivals(**wrong)  # type: ignore[arg-type]


def test_a_table() -> None:
    one = Measured("ouroboros", "4 at once", 0.8, 8, 80, 12.345, (0.1, 0.2, 0.3), (0.01, 0.02, 0.03))
    assert "| ouroboros | 4 at once | 12.3 | 0.100 / 0.200 / 0.300 | 0.010 / 0.020 / 0.030 |" in report([one])


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(LoadError, match="no-such-server is not on the PATH"):
        LlamaServer("model.gguf", 1, 64, 1, program="no-such-server")
    with pytest.raises(LoadError, match=r"there is no file 'model\.gguf'"):
        LlamaServer("model.gguf", 1, 64, 1, program="true")


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["bench", "throughput", "--concurrency", "1,3", "--requests", "4", "--new-tokens", "6", "--json"]
    asked += ["--max-prompt-tokens", "20", "--dtype", "float32"]
    assert cli.main(asked) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [(run["service"], run["arrivals"], run["tokens"]) for run in runs] == [
        (method, arrivals, 24) for arrivals in ("1 at once", "3 at once") for method in ("ouroboros", "autoregressive")
    ]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--concurrency", "x"], "--concurrency must be numbers with commas between, not 'x'"),
        (["--concurrency", "0"], "a concurrency must be"),
        (["--requests", "0"], "--requests must be a whole number of at least 1, not 0"),
    ],
)
def test_bad_input(capsys: pytest.CaptureFixture[str], args: list[str], words: str) -> None:
    assert cli.main(["bench", "throughput", *args]) == 2
    assert words in capsys.readouterr().err
