"""From a benchmark's runs to its figures: which runs are held against which, and over which prompts a figure goes.

The formulas are those of stats.py. Everything is paired: a run is compared with another of the same case alone, so that
a contestant that did not run on all cases is measured where it did.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ouroboros.bench.bounds import Bounds, bounds
from ouroboros.bench.records import Case, Results, Run
from ouroboros.bench.settings import PLAIN, BenchSettings, Contestant, contestants
from ouroboros.stats import (
    LOOPING,
    fraction_of_bound,
    geometric_mean,
    quantile,
    speed_up,
    speed_up_interval,
    times_per_token,
)

__all__ = ["Figures", "Speed", "Totals"]

Pair = tuple[Run, Run]
Item = tuple[Pair, ...]  # the runs of one item (several turns) and what they are held against


@dataclass(frozen=True, slots=True)
class Speed:
    """A speed-up with its 95 % bootstrap interval over ``items`` prompts (conversations count once)."""

    value: float
    low: float
    high: float
    items: int


@dataclass(frozen=True, slots=True)
class Totals:
    """One contestant at one temperature over all its cases. None: not measured (a peer tells times and tokens alone).

    ``same``: outputs that are plain decoding's, of ``compared``; ``verdicts``: of the others, as the audit judges them.
    """

    tokens_per_second: float | None
    ttft: float | None
    median: float | None
    p95: float | None
    tokens_per_target_forward: float | None
    acceptance_rate: float | None
    draft_forwards_per_token: float | None
    draft_share: float | None
    fraction_of_bound: float | None
    same: int
    compared: int
    verdicts: Mapping[str, int]


class Figures:
    """Of ``results``; attributes: labels of what ran, in order; tasks; temperatures."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.settings = BenchSettings.from_dict(results.settings)
        self.contestants: Mapping[str, Contestant] = {one.label: one for one in contestants(self.settings)}
        found = {run.label for case in results.cases.values() for run in case.runs}
        self.labels = [name for name in (*self.contestants, *self.settings.peers) if name in found]
        tasks = list(dict.fromkeys(case.task for case in results.cases.values()))
        stems = {name: place for place, name in enumerate(self.settings.tasks)}
        self.tasks = sorted(tasks, key=lambda name: stems.get(name, len(stems)))
        self.temperatures = [t for t in self.settings.temperatures if any(key[3] == t for key in results.cases)]

    def where(self, label: str) -> Figures:
        """Those of the cases that this contestant ran on."""
        cases = {key: case for key, case in self.results.cases.items() if any(run.label == label for run in case.runs)}
        return Figures(replace(self.results, cases=cases))

    def cases(self, task: str | None, temperature: float) -> list[Case]:
        every = self.results.cases.values()
        return [case for case in every if task in (None, case.task) and case.temperature == temperature]

    def repeated(self, task: str, temperature: float) -> float:
        """Mean share of repeated 4-grams in what plain decoding wrote, and so every exact method."""
        shares = [case.repeated_4grams for case in self.cases(task, temperature)]
        return sum(shares) / max(1, len(shares))

    def loops(self, task: str, temperature: float) -> bool:
        return self.repeated(task, temperature) > LOOPING

    def runs(self, label: str, task: str | None, temperature: float) -> list[Run]:
        return [run for case in self.cases(task, temperature) for run in case.runs if run.label == label]

    def _items(self, label: str, task: str, temperature: float, against: str, end_to_end: bool = False) -> list[Item]:
        """A peer may have written its whole answer with the prefill; then there is no decoding to compare."""
        items: dict[str, list[Pair]] = {}
        for case in self.cases(task, temperature):
            runs = {run.label: run for run in case.runs}
            if all(name in runs and (end_to_end or runs[name].decoded_tokens) for name in (label, against)):
                items.setdefault(case.item, []).append((runs[against], runs[label]))
        return [tuple(pairs) for pairs in items.values()]

    @functools.cache  # noqa: B019  # as long as the report is made
    def speed(
        self, label: str, tasks: tuple[str, ...], temperature: float, against: str = PLAIN, end_to_end: bool = False
    ) -> Speed | None:
        """Of several tasks the geometric mean. None where nothing was measured."""
        return self._mean([self._items(label, task, temperature, against, end_to_end) for task in tasks], end_to_end)

    def _mean(self, each: Sequence[Sequence[Item]], end_to_end: bool = False) -> Speed | None:
        groups = [items for items in each if items]
        if not groups:
            return None
        sums = [[_sums(item, end_to_end) for item in group] for group in groups]
        value = geometric_mean([_ratio_of(group) for group in sums])
        return Speed(value, *speed_up_interval(sums), sum(map(len, groups)))

    def steady(self, temperature: float) -> tuple[str, ...]:
        """Tasks whose outputs do not loop: those that enter means."""
        return tuple(task for task in self.tasks if not self.loops(task, temperature))

    def totals(self, label: str, temperature: float) -> Totals:
        runs = self.runs(label, None, temperature)
        timed = [run for run in runs if run.decoded_tokens]
        own = [run for run in runs if run.target_forwards]
        forwards = sum(run.target_forwards for run in own)
        tokens = sum(run.decoded_tokens for run in own)
        seconds = sum(run.decode_seconds for run in timed)
        drafts = sum(run.draft_tokens for run in own)
        times = [time for run in own for time in times_per_token(run.steps)]
        first = [run.prefill_seconds + run.draft_prefill_seconds + run.steps[0][1] for run in own if run.steps]
        per_forward = tokens / forwards if forwards else None
        paired = [_sums(item, False) for task in self.tasks for item in self._items(label, task, temperature, PLAIN)]
        compared = [run for run in runs if run.same is not None]
        return Totals(
            tokens_per_second=sum(run.decoded_tokens for run in timed) / seconds if timed else None,
            ttft=quantile(first, 0.5) if first else None,
            median=quantile(times, 0.5) if times else None,
            p95=quantile(times, 0.95) if times else None,
            tokens_per_target_forward=per_forward,
            acceptance_rate=sum(run.accepted_tokens for run in own) / drafts if drafts else None,
            draft_forwards_per_token=sum(run.draft_forwards for run in own) / tokens if tokens else None,
            draft_share=self.draft_share(label, None, temperature),
            fraction_of_bound=fraction_of_bound(_ratio_of(paired), per_forward) if per_forward else None,
            same=sum(bool(run.same) for run in compared),
            compared=len(compared),
            verdicts=Counter(str(run.divergence["verdict"]) for run in runs if run.divergence is not None),
        )

    def draft_share(self, label: str, task: str | None, temperature: float) -> float | None:
        """Of the time of decoding, what went into drafts before the target saw them."""
        own = [run for run in self.runs(label, task, temperature) if run.target_forwards]
        return sum(run.draft_seconds for run in own) / sum(run.decode_seconds for run in own) if own else None

    def bounds(self, task: str, temperature: float) -> Bounds | None:
        """What is possible on this task; see bounds.py."""
        return bounds(self.cases(task, temperature), self.results.profiles)

    def best_rival(self, label: str, task: str, temperature: float) -> tuple[str, Speed] | None:
        """The fastest of the other methods, plain decoding among them, with the same state of memory or none, and this
        one's speed over its. Peers are none."""
        mine = self.contestants[label]
        rivals = [
            name
            for name, one in self.contestants.items()
            if one.method != mine.method and one.state in ("", mine.state) and name in self.labels
        ]
        found = self.where(label)
        speeds = {name: found.speed(name, (task,), temperature) for name in rivals}
        known = {name: speed.value for name, speed in speeds.items() if speed is not None}
        if not known:
            return None
        best = max(known, key=known.__getitem__)
        speed = self.speed(label, (task,), temperature, against=best)
        return None if speed is None else (best, speed)

    def over_best(self, label: str, tasks: Sequence[str], temperature: float) -> Speed | None:
        """The geometric mean over tasks of the speed over each task's best rival."""
        best = {task: self.best_rival(label, task, temperature) for task in tasks}
        pairs = [(task, found[0]) for task, found in best.items() if found is not None]
        return self._mean([self._items(label, task, temperature, rival) for task, rival in pairs])

    def quality(self, label: str, task: str, temperature: float) -> float | None:
        """Share of right answers, of those that were judged."""
        judged = [run.right for run in self.runs(label, task, temperature) if run.right is not None]
        return sum(judged) / len(judged) if judged else None

    def origins(self, label: str, temperature: float) -> Counter[str]:
        """Accepted draft tokens by where they came from."""
        found: Counter[str] = Counter()
        for run in self.runs(label, None, temperature):
            found.update(run.accepted_by_origin)
        return found

    def step_sizes(self, label: str, temperature: float) -> Counter[int]:
        """How many target forwards yielded 1, 2, 3 … tokens."""
        return Counter(tokens for run in self.runs(label, None, temperature) for tokens, _ in run.steps)


def _sums(item: Item, end_to_end: bool) -> tuple[float, float, float, float]:
    """Tokens and seconds of the runs that are held against, then of those that are."""
    sides = [0.0] * 4
    for pair in item:
        for place, run in zip((0, 2), pair, strict=True):
            seconds = run.prefill_seconds + run.draft_prefill_seconds if end_to_end else 0.0
            sides[place] += run.new_tokens if end_to_end else run.decoded_tokens
            sides[place + 1] += seconds + run.decode_seconds
    return sides[0], sides[1], sides[2], sides[3]


def _ratio_of(sums: Sequence[tuple[float, float, float, float]]) -> float:
    return speed_up([one[:2] for one in sums], [one[2:] for one in sums])


def labels_of(figures: Figures, *, ablated: bool) -> Iterator[str]:
    """Without, or with, those that the ablation added."""
    for label in figures.labels:
        one = figures.contestants.get(label)
        if bool(one is not None and one.ablated) == ablated:
            yield label
