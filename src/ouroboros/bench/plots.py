"""Plots of what was measured, as PNG or SVG. matplotlib is imported when one is drawn.

Methods keep their colours from plot to plot. What was not measured is left out.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ouroboros.bench.figures import Figures, labels_of
from ouroboros.bench.records import Results
from ouroboros.bench.settings import PLAIN
from ouroboros.control.profile import CostProfile
from ouroboros.errors import InputError

__all__ = ["check_plot", "draw_profiles", "draw_results"]

_LONGEST = 16  # tokens of a step that are told apart


def check_plot(path: str) -> None:
    """To be asked before anything is measured.

    Raises:
        InputError: matplotlib is missing, or the file's name has another ending than .png and .svg.
    """
    if not path.lower().endswith((".png", ".svg")):
        raise InputError(f"a plot's file must end in .png or .svg, not {path!r}")
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("plots need matplotlib: pip install 'ouroboros-decoding[plot]'")


def _figure(**settings: Any) -> Any:
    from matplotlib.figure import Figure  # no pyplot: no window, no state

    return Figure(layout="constrained", **settings)


def _save(figure: Any, path: str) -> None:
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise InputError(f"cannot write the plot {path!r}: {error.strerror}") from None


def draw_profiles(profiles: Mapping[str, CostProfile], path: str) -> None:
    """T(n) in milliseconds of each model and context, with the middle half of the times as bars.

    Raises:
        InputError: the file cannot be written.
    """
    figure = _figure(figsize=(7, 4.2))
    axes = figure.subplots()
    for name, profile in profiles.items():
        for context, seconds, spread in zip(profile.contexts, profile.seconds, profile.spread, strict=True):
            axes.errorbar(
                profile.rows,
                [1e3 * s for s in seconds],
                yerr=[5e2 * s for s in spread],
                marker="o",
                markersize=3,
                label=f"{name}, {context} cached",
            )
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({n for profile in profiles.values() for n in profile.rows if n & (n - 1) == 0}))
    axes.get_xaxis().set_major_formatter("{x:g}")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("rows of a forward")
    axes.set_ylabel("milliseconds")
    axes.grid(alpha=0.3)
    axes.legend()
    first = next(iter(profiles.values()))
    axes.set_title(first.machine, fontsize=9)
    _save(figure, path)


def draw_results(results: Results, directory: Path) -> list[Path]:
    """All plots of a benchmark, as SVG; of each temperature its own.

    Raises:
        InputError: a file cannot be written.
    """
    figures = Figures(results)
    drawn = {}
    for temperature in figures.temperatures:
        suffix = "greedy" if temperature == 0 else f"t{temperature:g}"
        drawn[f"speedup-{suffix}"] = _draw_speed(figures, temperature)
        drawn[f"accepted-{suffix}"] = _draw_steps(figures, temperature)
        drawn[f"speed-acceptance-{suffix}"] = _draw_scatter(figures, temperature)
        drawn[f"sources-{suffix}"] = _draw_origins(figures, temperature)
    paths = [directory / f"{name}.svg" for name in drawn]
    for path in paths:
        _save(drawn[path.stem], str(path))
    if results.profiles:
        paths.append(directory / "cost.svg")
        draw_profiles(results.profiles, str(paths[-1]))
    return paths


def _colours(figures: Figures) -> dict[str, Any]:
    from matplotlib import colormaps

    map_ = colormaps["tab20"]
    labels = [label for label in labels_of(figures, ablated=False) if label != PLAIN]
    return {label: map_(place % 20) for place, label in enumerate(labels)}


def _title(temperature: float) -> str:
    return "greedy" if temperature == 0 else f"temperature {temperature:g}"


def _shown(figures: Figures, temperature: float) -> list[str]:
    """Without methods that ran on less than half of the prompts: beside the others they would mislead."""
    every = len(figures.runs(PLAIN, None, temperature))
    counts = {
        label: len(figures.runs(label, None, temperature))
        for label in labels_of(figures, ablated=False)
        if label != PLAIN
    }
    return [label for label, n in counts.items() if n and (2 * n > every or label not in figures.contestants)]


def _draw_speed(figures: Figures, temperature: float) -> Any:
    """Speed-up per task, with bootstrap intervals; bars of looping tasks are hatched."""
    labels, colours = _shown(figures, temperature), _colours(figures)
    figure = _figure(figsize=(max(7, 1.6 * len(figures.tasks)), 4.8))
    axes = figure.subplots()
    width = 0.85 / max(1, len(labels))
    for place, label in enumerate(labels):
        for column, task in enumerate(figures.tasks):
            speed = figures.speed(label, (task,), temperature)
            if speed is not None:
                error = [[max(0.0, speed.value - speed.low)], [max(0.0, speed.high - speed.value)]]
                axes.bar(
                    column + (place - (len(labels) - 1) / 2) * width,
                    speed.value,
                    width,
                    yerr=error,
                    color=colours[label],
                    hatch="//" if figures.loops(task, temperature) else None,
                    error_kw={"linewidth": 0.6},
                    label=label if column == 0 else None,
                )
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(figures.tasks)), figures.tasks, rotation=20)
    axes.set_ylabel("speed-up over plain decoding")
    axes.set_title(f"{_title(temperature)} (hatched: text that loops)", fontsize=10)
    figure.legend(loc="outside lower center", fontsize=7, ncols=5)
    return figure


def _draw_steps(figures: Figures, temperature: float) -> Any:
    """How many tokens a target forward yields: share of forwards by number of tokens."""
    figure = _figure(figsize=(7, 4.2))
    axes = figure.subplots()
    colours = _colours(figures)
    for label in _shown(figures, temperature):
        sizes = figures.step_sizes(label, temperature)
        if sizes:
            most = min(_LONGEST, max(sizes))
            shares = [sum(count for size, count in sizes.items() if min(size, most) == n) for n in range(1, most + 1)]
            points = [share / sizes.total() for share in shares]
            axes.plot(range(1, most + 1), points, marker="o", markersize=3, color=colours[label], label=label)
    axes.set_xlabel(f"tokens of a target forward ({_LONGEST}: or more)")
    axes.set_ylabel("share of target forwards")
    axes.set_title(_title(temperature), fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    return figure


def _draw_scatter(figures: Figures, temperature: float) -> Any:
    """Each method on each task: speed-up against tokens per target forward; the diagonal is the bound."""
    figure = _figure(figsize=(6.4, 4.8))
    axes = figure.subplots()
    colours = _colours(figures)
    highest = 1.0
    for label in _shown(figures, temperature):
        points = []
        for task in figures.tasks:
            runs = [run for run in figures.runs(label, task, temperature) if run.target_forwards]
            speed = figures.speed(label, (task,), temperature)
            if runs and speed is not None:
                forwards = sum(run.target_forwards for run in runs)
                points.append((sum(run.decoded_tokens for run in runs) / forwards, speed.value))
        if points:
            axes.scatter(*zip(*points, strict=True), s=18, color=colours[label], label=label)
            highest = max([highest, *(max(point) for point in points)])
    axes.plot([1, highest], [1, highest], color="black", linewidth=0.8, linestyle=":")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xlabel("tokens per target forward")
    axes.set_ylabel("speed-up over plain decoding")
    axes.set_title(f"{_title(temperature)}: one point a task (dotted: drafts and their rows for nothing)", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    return figure


def _draw_origins(figures: Figures, temperature: float) -> Any:
    """Accepted tokens per target forward, by where they came from."""
    figure = _figure(figsize=(7, 4.2))
    axes = figure.subplots()
    found = {label: figures.origins(label, temperature) for label in _shown(figures, temperature)}
    found = {label: counts for label, counts in found.items() if counts.total()}
    names = sorted({name for counts in found.values() for name in counts})
    forwards = {label: sum(run.target_forwards for run in figures.runs(label, None, temperature)) for label in found}
    left = [0.0] * len(found)
    for name in names:
        widths = [counts[name] / forwards[label] for label, counts in found.items()]
        axes.barh(list(found), widths, left=left, label=name)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("accepted tokens per target forward")
    axes.set_title(_title(temperature), fontsize=10)
    axes.legend(fontsize=8)
    return figure
