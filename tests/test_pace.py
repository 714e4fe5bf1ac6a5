"""How fast prompts are read beside requests that wait: on machines of which T(n) is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ouroboros.serving.pace import LEAST, Pace

MODEL: Any = object()
Cost = Callable[[int], float]


def gpu(rows: int) -> float:
    return max(0.015, 0.00007 * rows)


def cpu(rows: int) -> float:
    return 0.018 + 0.002 * rows


def read(pace: Pace, cost: Cost, tokens: int, others: int) -> list[float]:
    """Reads a prompt beside ``others`` rows. Returns what each forward took."""
    taken = []
    while tokens:
        part = min(pace.budget(MODEL), tokens)
        taken.append(cost(others + part))
        pace.scored(MODEL, taken[-1], part)
        tokens -= part
    return taken


@pytest.mark.parametrize("quiet", [True, False], ids=["after a forward without reading", "from the first forward on"])
@pytest.mark.parametrize("cost", [gpu, cpu])
def test_a_prompt_takes_as_much_as_doubles_each_forward(cost: Cost, quiet: bool) -> None:
    pace = Pace()
    if quiet:
        pace.scored(MODEL, cost(16), 0)
    else:
        pace.read(MODEL, cost(100), 100)  # the first prompt, alone
    taken = read(pace, cost, 4000, 16)
    assert max(taken) < 3 * cost(16)
    assert sum(taken) - len(taken) * cost(16) > 0.4 * sum(taken[:-1]) or len(taken) <= 4000 / 200


def test_where_rows_are_free_few_forwards_read_a_long_prompt() -> None:
    pace = Pace()
    pace.scored(MODEL, gpu(16), 0)
    assert len(read(pace, gpu, 4000, 16)) <= 16
    assert len(read(Pace(), gpu, 4000, 16)) <= 20  # nothing is known, and something is read in every forward


def test_the_end_of_a_prompt_does_not_slow_the_next_one() -> None:
    pace = Pace()
    pace.scored(MODEL, gpu(16), 0)
    read(pace, gpu, 4000, 16)
    before = pace.budget(MODEL)
    pace.scored(MODEL, gpu(16 + LEAST + 1), LEAST + 1)
    assert pace.budget(MODEL) >= before
