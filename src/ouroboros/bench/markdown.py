"""Cells and tables of Markdown. What is not known is a dash."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ouroboros.bench.figures import Figures, Speed

__all__ = ["FLAG", "flagged", "how", "number", "speed", "table"]

Row = Sequence[str]
FLAG = "⚠"


def table(head: Row, rows: Iterable[Row]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def number(value: float | None, form: str = ".2f") -> str:
    return "–" if value is None or math.isnan(value) else format(value, form)


def speed(speed: Speed | None, interval: bool = False) -> str:
    """The interval is left out where there is but one prompt to draw again."""
    if speed is None:
        return "–"
    drawn = interval and speed.low < speed.high
    return f"{speed.value:.2f} ({speed.low:.2f}–{speed.high:.2f})" if drawn else f"{speed.value:.2f}"


def how(temperature: float) -> str:
    return "greedy" if temperature == 0 else f"temperature {temperature:g}"


def flagged(figures: Figures, task: str, temperature: float) -> str:
    """The task's name, with a flag where its outputs loop."""
    return f"{task} {FLAG}" if figures.loops(task, temperature) else task
