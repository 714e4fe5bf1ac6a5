"""The part of the report that holds one contestant against another, on the prompts that both ran on."""

from __future__ import annotations

from ouroboros.bench.figures import Figures, labels_of
from ouroboros.bench.markdown import flagged, how, number, speed, table
from ouroboros.bench.settings import REMEMBERS

__all__ = ["OURS", "ablation", "against", "ours", "rivals", "states"]

OURS = "ouroboros"


def ours(figures: Figures) -> list[str]:
    """``ouroboros`` in each state that was measured."""
    return [name for name, one in figures.contestants.items() if one.name == OURS and name in figures.labels]


def rivals(figures: Figures, temperature: float) -> str:
    """``ouroboros`` over each task's best rival, which the same prompts choose."""
    labels = [label for label in ours(figures) if figures.contestants[label].state != "shuffled"]
    if not labels:
        return ""
    means = {"geometric mean without loops": figures.steady(temperature), "over all tasks": tuple(figures.tasks)}
    rows = []
    for task in figures.tasks:
        row = [flagged(figures, task, temperature)]
        for label in labels:
            found = figures.best_rival(label, task, temperature)
            row += [speed(figures.speed(label, (task,), temperature), interval=True)]
            row += ["–", "–"] if found is None else [found[0], speed(found[1], interval=True)]
        rows.append(row)
    for name, tasks in means.items():
        row = [name]
        for label in labels:
            row += [speed(figures.speed(label, tasks, temperature), interval=True), ""]
            row += [speed(figures.over_best(label, tasks, temperature), interval=True)]
        rows.append(row)
    head = ["task"]
    for label in labels:
        head += [f"{label}: speed-up (95 %)", "best rival", "over it (95 %)"]
    text = (
        "Rivals are all other methods of this engine in the same state of memory, plain decoding among them; of each "
        "task the one that was fastest on these very prompts, which favours it."
    )
    return f"## Against the best rival of each task, {how(temperature)}\n\n{text}\n\n{table(head, rows)}"


def against(figures: Figures, temperature: float) -> str:
    """``ouroboros`` over every other contestant, peers among them."""
    parts = []
    for mine in ours(figures):
        rows = []
        for label in labels_of(figures, ablated=False):
            each = {task: figures.speed(mine, (task,), temperature, against=label) for task in figures.tasks}
            found = {task: speed for task, speed in each.items() if speed is not None}
            if label != mine and found:
                worst = min(found, key=lambda task: found[task].value)
                cells = [speed(figures.speed(mine, tasks, temperature, against=label), interval=True)
                         for tasks in (figures.steady(temperature), tuple(figures.tasks))]  # fmt: skip
                prompts = sum(speed.items for speed in found.values())
                rows.append([label, str(prompts), *cells, f"{speed(found[worst], interval=True)} ({worst})"])
        head = [f"{mine} over", "n", "without loops (95 %)", "all tasks (95 %)", "where it is least"]
        if rows:
            parts.append(table(head, rows))
    return f"## {OURS} against each, {how(temperature)}\n\n" + "\n\n".join(parts) if parts else ""


def states(figures: Figures) -> str:
    """Warm and shuffled memories over cold ones."""
    rows = []
    for temperature in figures.temperatures:
        for method in REMEMBERS:
            for state in ("warm", "shuffled"):
                label, cold = f"{method}, {state}", f"{method}, cold"
                if {label, cold} <= set(figures.labels):
                    each = [figures.speed(label, (task,), temperature, against=cold) for task in figures.tasks]
                    mean = figures.speed(label, tuple(figures.tasks), temperature, against=cold)
                    count = "–" if mean is None else str(mean.items)
                    rows.append([label, how(temperature), count, speed(mean, interval=True), *map(speed, each)])
    if not rows:
        return ""
    head = ["speed over cold", "", "n", "all tasks (95 %)", *figures.tasks]
    return f"## What a memory is worth\n\n{table(head, rows)}"


def ablation(figures: Figures) -> str:
    """Each mechanism switched off in turn: what of the speed and of the counts is left."""
    ablated = list(labels_of(figures, ablated=True))
    if not ablated:
        return ""
    same = figures.where(ablated[0])
    every = tuple(same.tasks)
    full = f"{OURS}, {figures.contestants[ablated[0]].state}"
    rows = []
    for temperature in same.temperatures:
        for label in (full, *ablated):
            found = same.totals(label, temperature)
            row = [label, how(temperature), speed(same.speed(label, every, temperature), interval=True)]
            for tasks in (every, *((task,) for task in every)):
                ratio = same.speed(label, tasks, temperature, against=full)
                row.append("" if label == full else speed(ratio, interval=True))
            counts = (found.tokens_per_target_forward, found.draft_forwards_per_token)
            rows.append([*row, *map(number, counts), number(found.acceptance_rate, ".0%")])
    counted = same.speed(full, every, same.temperatures[0])
    text = (
        f"{full}, with all mechanisms, and without each, in the same run; the controller chooses sizes for each. "
        "*Left*: speed over that of all, below 1 where the mechanism pays; reuse is what other prompts have left, "
        f"phrases alone (not what the controller has learned). {0 if counted is None else counted.items} prompts."
    )
    head = ["", "", "speed-up (95 %)", "left, all tasks (95 %)", *(f"left, {task}" for task in every)]
    head += ["tokens / target forward", "draft forwards / token", "acceptance"]
    return f"## What each mechanism is worth\n\n{text}\n\n{table(head, rows)}"
