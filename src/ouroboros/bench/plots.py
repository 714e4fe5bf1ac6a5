"""Plots of what was measured, as PNG or SVG. matplotlib is imported when one is drawn."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from ouroboros.control.cost import CostProfile
from ouroboros.errors import InputError

__all__ = ["check_plot", "draw_profiles"]


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
