"""A benchmark's results as Markdown tables. What was not measured is a dash; definitions: docs/metrics.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ouroboros.bench.comparisons import OURS, ablation, against, ours, rivals, states
from ouroboros.bench.figures import Figures, labels_of
from ouroboros.bench.markdown import FLAG, flagged, how, number, speed, table
from ouroboros.bench.quality import MEASURES
from ouroboros.bench.records import Results
from ouroboros.bench.settings import PLAIN
from ouroboros.stats import LOOPING

__all__ = ["markdown"]


def markdown(results: Results) -> str:
    """The whole report."""
    figures = Figures(results)
    parts = [_head(figures)]
    if figures.labels:
        parts += [_summary(figures)]
        for temperature in figures.temperatures:
            parts += [_tasks(figures, temperature), rivals(figures, temperature), against(figures, temperature)]
            parts += [_details(figures, temperature), _bounds(figures, temperature), _origins(figures, temperature)]
            parts += [_quality(figures, temperature)]
        parts += [states(figures), ablation(figures), _tuning(figures)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(figures: Figures) -> str:
    results, settings = figures.results, figures.settings
    env = results.environment
    cases = results.cases.values()
    expected = "" if settings.ignore_eos else ", to the end of the text at most"
    versions = ", ".join(f"{name} {version}" for name, version in env.get("versions", {}).items())
    first = {(case.task, case.item, case.turn): case for case in cases}.values()
    cut = sum(case.cut_tokens > 0 for case in first)
    counts = [len({case.item for case in cases if case.task == task}) for task in figures.tasks]
    each = f"{min(counts)} to {max(counts)}" if counts and min(counts) < max(counts) else f"{max(counts, default=0)}"
    lines = [
        "# Benchmark",
        "",
        f"- machine: {env.get('machine')}; {versions}; commit {env.get('commit')}",
        *(f"- {name}: {text}" for name, text in env.get("models", {}).items()),
        f"- {len(first)} prompts of {len(figures.tasks)} tasks × {settings.new_tokens} new tokens{expected}: {each} of "
        f"each task (a turn of a conversation counts); {cut} prompts longer than "
        f"{settings.max_prompt_tokens or 'the context'} tokens, cut from the left",
    ]
    planned = len(settings.tasks) * settings.prompts
    done = len({(case.task, case.item) for case in cases if case.temperature == settings.temperatures[-1]})
    if done < planned:
        lines.append(f"- **unfinished**: {done} of {planned} prompts, the first ones of all tasks")
    lines += _limits(figures)
    lines += [f"- absent: {name} ({reason})" for name, reason in results.absent.items()]
    if any(run.divergence for case in cases for run in case.runs):
        lines.append("- outputs that differ from plain decoding's: see *same* below")
    return "\n".join(lines)


def _limits(figures: Figures) -> list[str]:
    """What did not run on all prompts."""
    settings = figures.settings
    lines = []
    if settings.peers:
        lines.append(f"- other programs ran on {_first(settings.peer_prompts)}")
    if "shuffled" in settings.states and settings.shuffled_prompts is not None:
        lines.append(f"- shuffled memories ran on {_first(settings.shuffled_prompts)}")
    if settings.ablation:
        tasks = f" ({', '.join(settings.ablation_tasks)} alone)" if settings.ablation_tasks else ""
        lines.append(f"- the ablation ran on {_first(settings.ablation_prompts)}{tasks}")
    if "warm" in settings.states:
        lines.append(f"- warm: after other prompts of the same task and their outputs, {settings.warm_prompts} of them")
    if settings.frozen is not None:
        lines.append(f"- T(n) and options are those of {settings.frozen}; the controller watches T(n), not the clock")
    if lines:
        lines.append("- every ratio is of the prompts that both sides ran on; *n* says how many")
    return lines


def _first(prompts: int | None) -> str:
    if prompts is None:
        return "all prompts"
    return f"the first {prompts} prompts of each task" if prompts > 1 else "the first prompt of each task"


def _summary(figures: Figures) -> str:
    head = ["method", "n"]
    for temperature in figures.temperatures:
        head += [f"{how(temperature)}: speed-up (95 %)", "all tasks", "end to end", "tokens / target forward"]
    rows = []
    every = tuple(figures.tasks)
    for label in labels_of(figures, ablated=False):
        counts = [found.items for t in figures.temperatures if (found := figures.speed(label, every, t)) is not None]
        row = [label, " / ".join(map(str, dict.fromkeys(counts)))]
        for temperature in figures.temperatures:
            steady = figures.steady(temperature)
            row += [
                speed(figures.speed(label, steady, temperature), interval=True),
                speed(figures.speed(label, every, temperature)),
                speed(figures.speed(label, steady or every, temperature, end_to_end=True)),
                number(figures.totals(label, temperature).tokens_per_target_forward)
                if figures.runs(label, None, temperature)
                else "–",
            ]
        rows.append(row)
    text = (
        "Speed-up: decoding speed over plain decoding of the same engine, paired by prompt, geometric mean over tasks; "
        f"without those that loop (more than {LOOPING:.0%} of the 4-grams repeated, {FLAG} below), then over all. "
        "End to end: with both prefills. n: prompts, conversations counted once."
    )
    return f"## Summary\n\n{text}\n\n{table(head, rows)}"


def _tasks(figures: Figures, temperature: float) -> str:
    head = ["speed-up", *(flagged(figures, task, temperature) for task in figures.tasks)]
    rows = [
        [label, *(speed(figures.speed(label, (task,), temperature), interval=True) for task in figures.tasks)]
        for label in labels_of(figures, ablated=False)
    ]
    rows.append(["repeated 4-grams", *(f"{figures.repeated(task, temperature):.0%}" for task in figures.tasks)])
    return f"## By task, {how(temperature)}\n\n{table(head, rows)}"


def _details(figures: Figures, temperature: float) -> str:
    head = ["method", "tokens/s", "TTFT ms", "ms/token", "p95", "tokens / target forward", "acceptance"]
    head += ["draft forwards / token", "drafting", "of the bound", "same tokens"]
    rows = []
    for label in labels_of(figures, ablated=False):
        if not figures.runs(label, None, temperature):
            continue
        found = figures.totals(label, temperature)

        def ms(value: float | None) -> str:
            return "–" if value is None else f"{1e3 * value:.1f}"

        same = f"{found.same} of {found.compared}" if found.compared else "–"
        same += "".join(f", {count} {verdict}" for verdict, count in sorted(found.verdicts.items()))
        rows.append(
            [
                label,
                number(found.tokens_per_second, ".1f"),
                *map(ms, (found.ttft, found.median, found.p95)),
                number(found.tokens_per_target_forward),
                number(found.acceptance_rate, ".0%"),
                number(found.draft_forwards_per_token),
                number(found.draft_share, ".0%"),
                number(found.fraction_of_bound, ".0%"),
                same,
            ]
        )
    return f"## Figures, {how(temperature)}\n\n{table(head, rows)}"


def _bounds(figures: Figures, temperature: float) -> str:
    label = next(iter(ours(figures)), None)
    rows = []
    for task in figures.tasks:
        bounds = figures.bounds(task, temperature)
        mine = None if label is None else figures.speed(label, (task,), temperature)
        share = None if label is None else figures.draft_share(label, task, temperature)
        known = (None,) * 3 if bounds is None else (bounds.agreement, bounds.speculative, bounds.chain)
        reached = None if bounds is None or mine is None else mine.value / bounds.chain
        free = None if reached is None or share is None else reached / (1 - share)
        shares = [number(part, ".0%") for part in (reached, share, free)]
        rows.append([task, *map(number, known), speed(mine, interval=True), *shares])
    head = ["task", "α", "speculative at its best γ, estimated", "free chain (bound)", label or "–", "of the bound"]
    head += ["of its time, drafting", "of the bound, were drafting free"]
    text = (
        "α: share of positions at which the draft model draws the target's token. From it and the measured T(n), "
        "shifted by what plain decoding of each prompt took over T(1), as memory was then: the speed-up of speculative "
        "decoding at its best γ, and of the best chain whose drafts cost nothing."
    )
    return f"## What is possible, {how(temperature)}\n\n{text}\n\n{table(head, rows)}"


def _origins(figures: Figures, temperature: float) -> str:
    found = {label: figures.origins(label, temperature) for label in labels_of(figures, ablated=False)}
    names = sorted({name for counts in found.values() for name in counts})
    rows = [
        [label, *(f"{counts[name] / counts.total():.0%}" if counts[name] else "–" for name in names)]
        for label, counts in found.items()
        if counts.total()
    ]
    return f"## Accepted tokens by source, {how(temperature)}\n\n{table(['method', *names], rows)}" if rows else ""


def _quality(figures: Figures, temperature: float) -> str:
    tasks = [task for task in figures.tasks if figures.quality(PLAIN, task, temperature) is not None]
    if not tasks:
        return ""
    rows = [
        [label, *(number(figures.quality(label, task, temperature), ".0%") for task in tasks)]
        for label in labels_of(figures, ablated=False)
    ]
    head = ["right answers", *(f"{task} ({MEASURES[task]})" for task in tasks)]
    return f"## Quality, {how(temperature)}\n\n{table(head, rows)}"


def _tuning(figures: Figures) -> str:
    tuning = figures.results.tuning
    if tuning is None:
        return "## Settings\n\nNo search was made: every method has its defaults."
    rows = []
    for one in tuning["best"]:
        trials = [t for t in tuning["trials"] if all(t[name] == one[name] for name in ("method", "temperature"))]
        speeds = [t["tokens_per_second"] for t in trials if t["options"] == one["options"]]
        row = [one["method"], how(one["temperature"]), _options(one["options"]), number(speeds[0], ".1f")]
        rows.append([*row, f"{len(trials)}: {_grid([trial['options'] for trial in trials])}"])
    where = ", ".join(tuning["prompts"])
    kept = " (kept from an earlier run)" if tuning.get("kept") else ""
    took = f" in {tuning['seconds']:.0f} s" if "seconds" in tuning else ""
    text = (
        f"The best of a grid{kept} by {tuning.get('by', 'summed seconds')}, replayed{took} with the measured T(n) on "
        f"{len(tuning['prompts'])} prompts that are not measured, {tuning['new_tokens']} new tokens each: {where}. "
        f"{OURS} has its defaults."
    )
    head = ["method", "", "best", "tokens/s", "settings tried"]
    return f"## Settings of the baselines\n\n{text}\n\n{table(head, rows)}"


def _options(options: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items())


def _grid(tried: Sequence[Mapping[str, object]]) -> str:
    """All values of each option."""
    values = {name: dict.fromkeys(str(options[name]) for options in tried) for name in tried[0]}
    return "; ".join(f"{name} {', '.join(each)}" for name, each in values.items())
