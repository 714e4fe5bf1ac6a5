"""From the runs of real_pair.py to its figures: speed-ups, geometric means over prompts, intervals, the least prompt.

A speed-up is the ratio of two methods' seconds a token on the same prompt at the same temperature; the seconds are the
median over the repeats. Decoding counts the draft model's prefill too, since plain decoding has none; end to end is the
whole request. In a mean each prompt counts alike: the geometric mean of its temperatures enters.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.real_results import PLAIN, Case, Raw, Run

__all__ = [
    "Group",
    "Mean",
    "Measure",
    "Point",
    "best_rival",
    "decoding",
    "end_to_end",
    "groups",
    "mean",
    "over_own_best",
    "own_best",
    "seconds",
    "speed_ups",
]

ROUNDS = 2000  # of the bootstrap
SAME = ("scenario", "prompts", "prompts_digest", "target", "draft", "dtype", "engine", "new_tokens")
Measure = Callable[[Run], float]


def decoding(run: Run) -> float:
    """Seconds of a new token: decoding and the draft model's prefill."""
    return (run.decode_seconds + run.draft_prefill_seconds) / run.tokens


def end_to_end(run: Run) -> float:
    """Seconds of a new token: the whole request."""
    return run.wall_seconds / run.tokens


@dataclass(frozen=True, slots=True)
class Point:
    """One prompt's speed-up at one temperature."""

    prompt: str
    temperature: float
    value: float


@dataclass(frozen=True, slots=True)
class Mean:
    """A geometric mean over ``prompts`` prompts with its 95 % bootstrap interval, and the least of its points."""

    value: float
    low: float
    high: float
    prompts: int
    least: Point


@dataclass(frozen=True, slots=True)
class Group:
    """The results of files that measured the same: more files are more repeats."""

    raws: tuple[Raw, ...]
    cases: tuple[Case, ...]

    @property
    def labels(self) -> list[str]:
        return list(dict.fromkeys(label for raw in self.raws for label in raw.settings["methods"]))

    @property
    def temperatures(self) -> list[float]:
        return sorted({case.temperature for case in self.cases})

    def at(self, temperature: float | None) -> list[Case]:
        """The cases of one temperature; None for all."""
        return [case for case in self.cases if temperature in (None, case.temperature)]


def groups(raws: Iterable[Raw]) -> list[Group]:
    """Files of the same scenario, pair, prompts, settings and commit together."""
    found: dict[tuple[object, ...], list[Raw]] = {}
    for raw in raws:
        key = *(raw.settings.get(name) for name in SAME), raw.environment.get("commit"), raw.environment.get("machine")
        found.setdefault(key, []).append(raw)
    return [Group(tuple(some), _joined(some)) for some in found.values()]


def _joined(raws: Sequence[Raw]) -> tuple[Case, ...]:
    cases: dict[tuple[str, float], Case] = {}
    for case in (case for raw in raws for case in raw.cases):
        key = case.prompt, case.temperature
        cases[key] = replace(cases[key], runs=cases[key].runs + case.runs) if key in cases else case
    return tuple(cases.values())


def seconds(case: Case, label: str, measure: Measure) -> float | None:
    """The median over the repeats; None where the method did not run, or wrote nothing."""
    values = [measure(run) for run in case.runs if run.label == label and run.tokens]
    return statistics.median(values) if values else None


def speed_ups(cases: Iterable[Case], label: str, against: str, measure: Measure) -> list[Point]:
    """A method's speed over another's, of the cases that both ran on."""
    return _points(cases, label, lambda case: against, measure)


def _points(cases: Iterable[Case], label: str, against: Callable[[Case], str | None], measure: Measure) -> list[Point]:
    points = []
    for case in cases:
        rival = against(case)
        mine, other = seconds(case, label, measure), None if rival is None else seconds(case, rival, measure)
        if mine is not None and other is not None:
            points.append(Point(case.prompt, case.temperature, other / mine))
    return points


def mean(points: Sequence[Point]) -> Mean | None:
    """None for no points. The bootstrap draws prompts, each with all its temperatures."""
    if not points:
        return None
    values: dict[str, list[float]] = {}
    for point in points:
        values.setdefault(point.prompt, []).append(math.log(point.value))
    logs_P = np.array([statistics.fmean(logs) for logs in values.values()])
    drawn_RP = np.random.default_rng(0).integers(len(logs_P), size=(ROUNDS, len(logs_P)))
    low, high = np.quantile(np.exp(logs_P[drawn_RP].mean(1)), (0.025, 0.975))
    least = min(points, key=lambda point: point.value)
    return Mean(math.exp(logs_P.mean()), float(low), float(high), len(logs_P), least)


def best_rival(cases: Sequence[Case], labels: Sequence[str], measure: Measure) -> str | None:
    """The method with the largest geometric mean over plain decoding; None where none of them ran."""
    found = {label: mean(speed_ups(cases, label, PLAIN, measure)) for label in labels}
    known = {label: one.value for label, one in found.items() if one is not None}
    return max(known, key=known.__getitem__) if known else None


def own_best(case: Case, labels: Sequence[str], measure: Measure) -> str | None:
    """The method that is fastest on this case."""
    known = {label: taken for label in labels if (taken := seconds(case, label, measure)) is not None}
    return min(known, key=known.__getitem__) if known else None


def over_own_best(cases: Iterable[Case], label: str, rivals: Sequence[str], measure: Measure) -> list[Point]:
    """A method's speed over each case's own best rival."""
    return _points(cases, label, lambda case: own_best(case, rivals, measure), measure)
