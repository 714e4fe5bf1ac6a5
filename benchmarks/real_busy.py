"""Programs that keep cores and memory busy beside a measurement of real_pair.py.

    python -m benchmarks.real_busy SECONDS [CORE]    # waits for a line on its input, then is busy that long

Each one sums 128 MiB of numbers and multiplies small matrices by turns, on one thread. It ends with its time, or when
the program that started it ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import numpy as np

__all__ = ["BusyPrograms", "cores"]

ROOT = Path(__file__).parents[1]


def cores() -> list[int]:
    """The cores that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


class BusyPrograms:
    """Busy programs that are started but still idle: ``go`` lets them begin, leaving the context ends them.

    Args:
        seconds: how long they are busy. on: the core of each program; None leaves that to the system.
    """

    def __init__(self, seconds: float, on: list[int | None]) -> None:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        command = [sys.executable, "-m", "benchmarks.real_busy", str(seconds)]
        self._programs = [
            subprocess.Popen(
                command + ([] if core is None else [str(core)]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=ROOT,
                env={**os.environ, **threads},
                text=True,
            )
            for core in on
        ]
        for program in self._programs:
            assert program.stdout is not None
            if program.stdout.readline() != "ready\n":
                self.close()
                raise RuntimeError("a busy program did not start")

    def __enter__(self) -> BusyPrograms:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def go(self) -> None:
        for program in self._programs:
            assert program.stdin is not None
            program.stdin.write("\n")
            program.stdin.flush()

    def close(self) -> None:
        for program in self._programs:
            program.terminate()
        for program in self._programs:
            program.communicate()  # also closes its pipes


def main() -> None:
    seconds, parent = float(sys.argv[1]), os.getppid()
    if len(sys.argv) > 2 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(sys.argv[2])})
    numbers, matrix = np.ones(2**25, dtype=np.float32), np.eye(256, dtype=np.float32)
    print("ready", flush=True)
    if not sys.stdin.readline():
        return
    end = time.monotonic() + seconds
    while time.monotonic() < end and os.getppid() == parent:
        numbers.sum()
        for _ in range(20):
            matrix @ matrix


if __name__ == "__main__":
    main()
