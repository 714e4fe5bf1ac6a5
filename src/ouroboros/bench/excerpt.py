"""The few lines of a benchmark that a README shows: every method's speed-up, cold and warm, with intervals.

They stand between two comments, and are replaced there when the benchmark has been run again.
"""

from __future__ import annotations

from pathlib import Path

from ouroboros.bench.comparisons import OURS
from ouroboros.bench.figures import Figures, labels_of
from ouroboros.bench.markdown import how, speed, table
from ouroboros.bench.records import Results
from ouroboros.bench.settings import PLAIN
from ouroboros.errors import InputError

__all__ = ["BEGIN", "END", "excerpt", "write_excerpt"]

BEGIN, END = "<!-- benchmark -->", "<!-- /benchmark -->"
_STATES = ("cold", "warm")


def excerpt(results: Results) -> str:
    """A paragraph and a table: a row for each method or peer, for each temperature a column cold and one warm."""
    figures = Figures(results)
    settings = figures.settings
    states = [state for state in _STATES if state in settings.states] or [settings.states[0]]
    names: dict[str, dict[str, str]] = {}  # method or peer → state → label; without memory it is as good as cold
    for label in labels_of(figures, ablated=False):
        one = figures.contestants.get(label)
        state = states[0] if one is None or not one.state else one.state
        names.setdefault(label if one is None else one.name, {})[state] = label
    if OURS in names:
        names[OURS] = names.pop(OURS)  # last
    head, rows = ["method", "prompts"], []
    for temperature in figures.temperatures:
        head += [f"{how(temperature)}{f', {state}' if len(states) > 1 else ''}" for state in states]
    for name, labels in names.items():
        counts = [
            figures.speed(labels[s], tuple(figures.tasks), figures.temperatures[0]) for s in states if s in labels
        ]
        row = [name, str(max((count.items for count in counts if count is not None), default=0))]
        for temperature in figures.temperatures:
            for state in states:
                found = (
                    figures.speed(labels[state], _tasks(figures, temperature), temperature) if state in labels else None
                )
                row.append(speed(found, interval=name != PLAIN) if state in labels else "")
        rows.append([f"**{cell}**" if name == OURS and cell else cell for cell in row])
    over, every = [f"{OURS} over the best of each task", ""], [f"{OURS}, looping tasks too", ""]
    for temperature in figures.temperatures:
        for label in (f"{OURS}, {state}" for state in states):
            ran = label in figures.labels
            best = figures.over_best(label, _tasks(figures, temperature), temperature) if ran else None
            over.append(speed(best, interval=True))
            every.append(speed(figures.speed(label, tuple(figures.tasks), temperature), interval=True))
    return f"{_told(figures)}\n\n{table(head, [*rows, every, over])}"


def _tasks(figures: Figures, temperature: float) -> tuple[str, ...]:
    """Those that do not loop; all where every one does."""
    return figures.steady(temperature) or tuple(figures.tasks)


def _told(figures: Figures) -> str:
    settings = figures.settings
    every = ", ".join(figures.tasks)
    parts = [
        f"Speed-up over plain decoding of the same engine ({figures.results.environment.get('machine')}), geometric "
        f"mean over tasks ({every}), {settings.new_tokens} new tokens a prompt, 95 % bootstrap intervals over prompts."
    ]
    for temperature in figures.temperatures:
        loops = [task for task in figures.tasks if figures.loops(task, temperature)]
        if len(loops) == len(figures.tasks):
            parts.append(f"All outputs loop, {how(temperature)}: that flatters what copies.")
        elif loops:
            parts.append(f"Left out of {how(temperature)} means, as their outputs loop: {', '.join(loops)}.")
    return " ".join(parts)


def write_excerpt(results: Results, path: Path) -> None:
    """Puts it between the two comments of a file.

    Raises:
        InputError: the file cannot be read or written, or it has no such place.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {str(path)!r}: {getattr(error, 'strerror', error)}") from None
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"{str(path)!r} has no place for the benchmark: a line {BEGIN} and a line {END} behind it")
    try:
        path.write_text(f"{before}{BEGIN}\n{excerpt(results)}\n{END}{after}", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror}") from None
