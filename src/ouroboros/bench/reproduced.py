"""Two runs of the same benchmark: whether their counts are the same, and how far their speeds lie apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ouroboros.bench.figures import Figures
from ouroboros.bench.markdown import how, number, table
from ouroboros.bench.records import Results, Run
from ouroboros.bench.settings import PLAIN
from ouroboros.errors import InputError

__all__ = ["Reproduced", "reproduced"]

_COUNTS = ("new_tokens", "target_forwards", "draft_forwards", "draft_tokens", "accepted_tokens", "accepted_by_origin")
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Row:
    """``speeds``: a contestant's speed-up over plain decoding in both runs. ``task``: None for the mean over tasks."""

    label: str
    task: str | None
    temperature: float
    speeds: tuple[float, float]

    @property
    def ratio(self) -> float:
        return self.speeds[1] / self.speeds[0]

    @property
    def apart(self) -> float:
        return max(self.ratio, 1 / self.ratio) - 1


@dataclass(frozen=True, slots=True)
class Reproduced:
    """``runs``: that are in both. ``different``: those whose counts or tokens differ, and in what."""

    runs: int
    different: tuple[str, ...]
    rows: tuple[Row, ...]

    def markdown(self) -> str:
        lines = [f"{self.runs} runs are in both; the counts and tokens of {len(self.different)} of them differ."]
        lines += [f"- {text}" for text in self.different[:_SHOWN]]
        means = [row for row in self.rows if row.task is None]
        for name, rows in (("over all tasks", means), ("of a task", [row for row in self.rows if row.task])):
            if rows:
                worst = max(rows, key=lambda row: row.apart)
                where = ", ".join(filter(None, (worst.label, worst.task, how(worst.temperature))))
                lines.append(f"Speed-ups {name} differ by at most {worst.apart:.1%} ({where}).")
        cells = [[r.label, how(r.temperature), *map(number, r.speeds), number(r.ratio, ".3f")] for r in means]
        head = ["speed-up over plain decoding", "", "first", "second", "second over first"]
        return "\n".join(lines) + f"\n\n{table(head, cells)}\n"


def reproduced(one: Results, other: Results) -> Reproduced:
    """
    Raises:
        InputError: they have no case in common.
    """
    keys = [key for key in one.cases if key in other.cases]
    if not keys:
        raise InputError(f"{str(one.path)!r} and {str(other.path)!r} have no prompt in common")
    different, runs = [], 0
    for key in keys:
        first, second = one.cases[key], other.cases[key]
        others = {run.label: run for run in second.runs}
        for run in first.runs:
            if run.label in others:
                runs += 1
                names = _differences(run, others[run.label])
                names += [] if first.token_ids == second.token_ids else ["tokens of plain decoding"]
                if names:
                    different.append(f"{run.label} on {key[0]} {key[1]}, {how(key[3])}: {', '.join(names)}")
    pair = [Figures(replace(results, cases={key: results.cases[key] for key in keys})) for results in (one, other)]
    return Reproduced(runs, tuple(different), tuple(_rows(pair)))


def _differences(run: Run, other: Run) -> list[str]:
    names = [name for name in _COUNTS if getattr(run, name) != getattr(other, name)]
    if [tokens for tokens, _ in run.steps] != [tokens for tokens, _ in other.steps]:
        names.append("steps")
    return names if run.token_ids == other.token_ids else [*names, "tokens"]


def _rows(pair: Sequence[Figures]) -> list[Row]:
    first, second = pair
    rows = []
    for label in first.labels:
        for temperature in first.temperatures:
            for task in (None, *first.tasks):
                tasks = tuple(first.tasks) if task is None else (task,)
                speeds = [figures.speed(label, tasks, temperature) for figures in (first, second)]
                known = [speed.value for speed in speeds if speed is not None]
                if label != PLAIN and len(known) == 2:
                    rows.append(Row(label, task, temperature, (known[0], known[1])))
    return rows
