"""Judging answers: code that is right, wrong, looping, crashing, greedy for memory; numbers in all their spellings."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ouroboros.bench.quality import Judgement, cut, judge
from ouroboros.bench.tasks import Item, load_task

DOUBLE = Item(
    "humaneval",
    "x",
    'def double(n):\n    """Twice n."""\n',
    reference={"test": "def check(f):\n    assert f(3) == 6, 'three'\n", "entry_point": "double"},
)
RIGHT = Judgement(True, "right")


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_published_solutions_pass(name: str) -> None:
    import importlib.resources
    import json

    text = (importlib.resources.files("ouroboros") / "data" / f"{name}.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    for item, row in list(zip(load_task(name), rows, strict=True))[:6]:
        solution = row.get("canonical_solution") or row["code"]
        assert judge(item, solution + "\nprint('and so on')\nassert False\n") == RIGHT, item.id
        assert judge(item, "    pass\n") != RIGHT


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("    return 2 * n\n", "right"),
        ("    return 2 * n\n\ndef other():\n    syntax error", "right"),  # cut at the next definition
        ("    print('x' * 100_000)\n    return 2 * n", "right"),
        ("    import os, sys\n    os.write(2, b'x')\n    return 2 * n", "right"),
        ("    return n\n", "AssertionError: three"),
        ("    return nothing\n", "NameError: name 'nothing' is not defined"),
        ("    return 2 *\n", "SyntaxError: invalid syntax (answer.py, line 3)"),
        ("    exit()\n", "SystemExit: None"),
        ("    import os\n    os._exit(0)\n", "left with status 0"),
        ("    import os\n    os.abort()\n", "killed by SIGABRT"),
        ("    return double(n)\n", "RecursionError: maximum recursion depth exceeded"),
        ("    open('f', 'wb').write(b'x' * (1 << 22))\n    return 2 * n", "OSError: [Errno 27] File too large"),
    ],
)
def test_code(answer: str, reason: str) -> None:
    assert judge(DOUBLE, answer) == Judgement(reason == "right", reason)


def test_code_that_does_not_end() -> None:
    start = time.perf_counter()
    assert judge(DOUBLE, "    while True:\n        pass\n", seconds=1) == Judgement(False, "not done after 1 s")
    children = "    import os, time\n    os.fork()\n    os.fork()\n    time.sleep(60)\n"
    assert judge(DOUBLE, children, seconds=1) == Judgement(False, "not done after 1 s")
    assert time.perf_counter() - start < 20


def test_code_that_takes_all_memory() -> None:
    hungry = "    x = bytearray(1 << 30)\n    return 2 * n\n"
    assert judge(DOUBLE, hungry, memory=1 << 28) == Judgement(False, "out of memory")
    assert judge(DOUBLE, "    x = bytearray(1 << 20)\n    return 2 * n\n", memory=1 << 28) == RIGHT


def test_code_runs_in_a_directory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUROBOROS_SECRET", "1")
    look = "    import os\n    assert os.environ.get('OUROBOROS_SECRET') is None\n    raise ValueError(os.getcwd())\n"
    found = judge(DOUBLE, look)
    assert found is not None
    assert found.reason.startswith("ValueError: ")
    folder = Path(found.reason.removeprefix("ValueError: "))
    assert folder != Path.cwd()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        (" 16 - 3 - 4 = 9. 9 * 2 = 18. The answer is 18.", "18", True),
        (" The answer is 18.\n\nQ: How many are 3?\nA: 3", "18", True),
        (" It is $1,234.50.", "1234.5", True),
        (" It is 18.00", "18", True),
        (" It is -3.", "-3", True),
        ("so 10-3", "3", True),
        (" It is 17.", "18", False),
        (" 18 of 20", "18", False),
    ],
)
def test_numbers(answer: str, expected: str, right: bool) -> None:
    found = judge(Item("gsm8k", "1", "Q: …\nA:", reference={"answer": expected}), answer)
    assert found is not None
    assert found.right == right


def test_what_cannot_be_judged() -> None:
    item = Item("gsm8k", "1", "", reference={"answer": "1"})
    assert judge(item, "none") == Judgement(False, "no number")
    assert judge(item, "3") == Judgement(False, "3, not 1")
    assert judge(Item("mine", "1", "a"), "b") is None
    assert judge(Item("humaneval", "1", "a"), "b") is None  # a file without tests
    assert judge(load_task("qa", limit=1)[0], "b") is None


def test_answers_are_cut_at_the_first_stop() -> None:
    assert cut("humaneval", "    a\n\nif x:\ndef f") == "    a\n"
    assert cut("mbpp", "def f():\n    #\n```\nassert") == "def f():\n    #"
    assert cut("qa", "\ndef Q:") == "\ndef Q:"
