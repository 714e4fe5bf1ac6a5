"""Tables in Markdown of real_pair.py's raw files; real_figures.py says what each figure is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from benchmarks.real_figures import (
    Group,
    Mean,
    Measure,
    Point,
    best_rival,
    decoding,
    end_to_end,
    groups,
    mean,
    over_own_best,
    own_best,
    seconds,
    speed_ups,
)
from benchmarks.real_results import PLAIN, SUBJECT, Case, Raw

__all__ = ["tables"]

DISTURBED = "*"


def tables(raws: Iterable[Raw]) -> str:
    """A section for each scenario (and pair, settings, commit): means at each temperature, then every prompt."""
    return "\n\n".join(text for group in groups(raws) for text in _section(group))


def _section(group: Group) -> Iterator[str]:
    settings, found = group.raws[0].settings, group.raws[0].environment
    yield f"## {settings['scenario']}"
    loads = ", ".join(f"{process['load_seconds']:.1f}" for raw in group.raws for process in raw.processes)
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    yield (
        f"{settings['target']} with {settings['draft']}, {settings['dtype']}; {found['machine']}; {versions}, commit "
        f"{found['commit']}. Prompts: {settings['prompts']}, {len({case.prompt for case in group.cases})}; at most "
        f"{settings['new_tokens']} new tokens, to the end of the text; runs of each: {_repeats(group)}. Load: "
        f"{loads} s. Speed-ups over plain decoding, geometric means over prompts with 95 % bootstrap intervals; "
        "decoding counts the draft model's prefill."
    )
    yield _differences(group)
    temperatures = group.temperatures
    for heat in [*temperatures, *([None] if len(temperatures) > 1 else [])]:
        yield f"### {_how(heat)}"
        yield _means(group.at(heat), group.labels, heat)
        calm = [case for case in group.at(heat) if not any(run.disturbed for run in case.runs)]
        if len(calm) < len(group.at(heat)):
            yield f"Without the cases, {len(group.at(heat)) - len(calm)}, that a busy program disturbed:"
            yield _means(calm, group.labels, heat)
    for heat in temperatures:
        yield f"### Each prompt, {_how(heat)}: decoding"
        yield _prompts(group.at(heat), group.labels, decoding)
        yield f"### Each prompt, {_how(heat)}: end to end"
        yield _prompts(group.at(heat), group.labels, end_to_end)
    if any(run.disturbed for case in group.cases for run in case.runs):
        yield f"{DISTURBED} a busy program overlapped with this run."


def _repeats(group: Group) -> str:
    counts = {sum(run.label == label for run in case.runs) for case in group.cases for label in group.labels}
    return "–".join(str(count) for count in sorted({min(counts), max(counts)})) if counts else "0"


def _differences(group: Group) -> str:
    runs = [(case, run) for case in group.cases for run in case.runs]
    others = [
        f"{run.label} on {case.prompt}, {_how(case.temperature)}, from token {run.differs_at}"
        for case, run in runs
        if run.differs_at is not None
    ]
    if not others:
        return f"All {len(runs)} runs wrote plain decoding's tokens."
    return f"Of {len(runs)} runs {len(others)} wrote other tokens than plain decoding: {'; '.join(others)}."


def _how(temperature: float | None) -> str:
    return "all temperatures" if temperature is None else f"temperature {temperature:g}" if temperature else "greedy"


def _means(cases: Sequence[Case], labels: Sequence[str], heat: float | None) -> str:
    rows = []
    for label in labels:
        each = [mean(speed_ups(cases, label, PLAIN, measure)) for measure in (decoding, end_to_end)]
        rows.append([label, *(cell for one in each for cell in _cells(one, heat))])
    rivals = [label for label in labels if label != SUBJECT]
    singles = [best_rival(cases, rivals, measure) for measure in (decoding, end_to_end)]
    over_best = [
        mean(speed_ups(cases, SUBJECT, best, measure)) if best else None
        for best, measure in zip(singles, (decoding, end_to_end), strict=True)
    ]
    own = [mean(over_own_best(cases, SUBJECT, rivals, measure)) for measure in (decoding, end_to_end)]
    names = "; end to end ".join(dict.fromkeys(name for name in singles if name))
    rows.append(
        [f"{SUBJECT} over the best single rival ({names})", *(c for one in over_best for c in _cells(one, heat))]
    )
    rows.append([f"{SUBJECT} over each prompt's own best rival", *(c for one in own for c in _cells(one, heat))])
    return _table(["method", "decoding", "least prompt", "end to end", "least prompt"], rows)


def _cells(one: Mean | None, heat: float | None) -> list[str]:
    if one is None:
        return ["–", "–"]
    interval = f" ({one.low:.2f}–{one.high:.2f})" if one.prompts > 1 else ""
    least = f"{one.least.value:.2f} ({one.least.prompt}{'' if heat is not None else f', {one.least.temperature:g}'})"
    return [f"{one.value:.2f}{interval}", least]


def _prompts(cases: Sequence[Case], labels: Sequence[str], measure: Measure) -> str:
    """A line for each prompt. Plain decoding's column is its milliseconds a token, the others are speed-ups over it."""
    others = [label for label in labels if label != PLAIN]
    rivals = [label for label in labels if label != SUBJECT]
    rows = []
    for case in cases:
        plain = seconds(case, PLAIN, measure)
        best = own_best(case, rivals, measure)
        rows.append(
            [
                case.prompt,
                str(case.prompt_tokens),
                str(len(case.token_ids)),
                "–" if plain is None else f"{1000 * plain:.1f}{_mark(case, PLAIN)}",
                *(_one(speed_ups([case], label, PLAIN, measure)) + _mark(case, label) for label in others),
                f"{_one(over_own_best([case], SUBJECT, rivals, measure))} ({best})",
            ]
        )
    head = ["prompt", "prompt tokens", "new tokens", "plain, ms a token", *others, f"{SUBJECT} over the best rival"]
    return _table(head, rows)


def _one(points: Sequence[Point]) -> str:
    return f"{points[0].value:.2f}" if points else "–"


def _mark(case: Case, label: str) -> str:
    return DISTURBED if any(run.disturbed for run in case.runs if run.label == label) else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows))
