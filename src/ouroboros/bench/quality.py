"""Whether an answer is right: pass@1 for code, run in a process with limits; exact match for arithmetic.

Answers are cut where the published harnesses stop a generation, so a text that was written on past its end does no
harm. Code of a model runs in a Python of its own, in an empty directory, with limits of time, memory and file size; it
could still reach the network and the user's files: measure models that you do not trust inside a container.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from ouroboros.bench.tasks import Item
from ouroboros.files import parse_json

__all__ = ["MEASURES", "Judgement", "cut", "judge"]

MEASURES: Mapping[str, str] = {
    "humaneval": "pass@1",
    "mbpp": "pass@1",
    "gsm8k": "exact match",
    "math_reasoning": "exact match",
}
_STOPS: Mapping[str, tuple[str, ...]] = {
    "humaneval": ("\nclass", "\ndef", "\n#", "\nif", "\nprint"),  # Chen et al. 2021, sec. 2.1
    "mbpp": ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n<|/", "\n```"),  # BigCode's evaluation harness
    "gsm8k": ("Q:",),  # EleutherAI's harness, gsm8k_cot
}
_NUMBER = re.compile(r"(?<![\d.,])-?\d[\d,]*(?:\.\d+)?")
# Runs in the new process. What comes back is one line with a mark that the answer does not know of, so that one that
# leaves by itself (exit, os._exit) has not passed. Where limits do not exist (Windows), only the time is limited.
_LAUNCHER = """
import json, os, sys
out = os.dup(1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
mark, seconds, memory, program = parse_json(sys.stdin.buffer.read())
try:
    import resource
except ImportError:
    pass
else:
    limits = {"RLIMIT_CPU": seconds + 1, "RLIMIT_AS": memory, "RLIMIT_FSIZE": 1 << 20, "RLIMIT_CORE": 0}
    for name, limit in limits.items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
try:
    exec(compile(program, "answer.py", "exec"), {"__name__": "__main__"})
    error = None
except MemoryError:
    error = "out of memory"
except BaseException as found:
    error = f"{type(found).__name__}: {found}".split("\\n")[0][:200]
os.write(out, json.dumps([mark, error]).encode())
os._exit(0)
"""


@dataclass(frozen=True, slots=True)
class Judgement:
    """``reason``: ``right``; or what was answered, or how the code ended: one line."""

    right: bool
    reason: str


def cut(task: str, answer: str) -> str:
    """The answer up to the first of the task's stop sequences."""
    return answer[: min((at for stop in _STOPS.get(task, ()) if (at := answer.find(stop)) >= 0), default=len(answer))]


def judge(item: Item, answer: str, *, seconds: float = 10.0, memory: int = 4 << 30) -> Judgement | None:
    """Whether the model's answer to an item is right; None where there is nothing to judge by.

    Args:
        seconds: of wall time for the code. memory: bytes of address space for it.
    """
    if not item.reference or item.task not in MEASURES:
        return None
    text = cut(item.task, answer)
    if MEASURES[item.task] == "exact match":
        return _same_number(text, str(item.reference["answer"]))
    if item.task == "humaneval":
        parts = [f"{item.prompt}{text}", item.reference["test"], f"check({item.reference['entry_point']})"]
    else:
        parts = [item.reference["setup"], f"{item.prompt}{text}", *item.reference["tests"]]
    return _run("\n".join(parts) + "\n", seconds, memory)


def _same_number(answer: str, expected: str) -> Judgement:
    """The last number of the answer, without thousands' commas, as a value: 1,000.0 is 1000."""
    found = _NUMBER.findall(answer)
    if not found:
        return Judgement(False, "no number")
    last, wanted = (Decimal(text.replace(",", "")) for text in (found[-1], expected))
    return Judgement(True, "right") if last == wanted else Judgement(False, f"{found[-1]}, not {expected}")


def _run(program: str, seconds: float, memory: int) -> Judgement:
    mark = secrets.token_hex(8)
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT") if name in os.environ}
    environment = kept | {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    order = json.dumps([mark, int(seconds), memory, program]).encode()
    command = [sys.executable, "-s", "-P", "-B", "-X", "utf8", "-c", _LAUNCHER]
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        own = environment | {"HOME": folder, "TMPDIR": folder}
        with subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=nowhere, cwd=folder, env=own, start_new_session=True
        ) as process:
            try:
                output, _ = process.communicate(order, timeout=seconds)
            except subprocess.TimeoutExpired:
                return Judgement(False, f"not done after {seconds:g} s")
            finally:
                _end(process)
    try:
        answer = parse_json(output)
    except ValueError:
        answer = None
    if isinstance(answer, list) and answer[0] == mark:
        return Judgement(answer[1] is None, answer[1] or "right")
    status = process.returncode
    return Judgement(False, f"killed by {signal.Signals(-status).name}" if status < 0 else f"left with status {status}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and what it started, if it has not ended by itself."""
    if process.returncode is not None:
        return
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)  # its session is its own
    else:
        process.kill()
