"""Results as tables and lines: methods of the demo, T(n), what was tuned, distilled, audited. Knows no terminals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from ouroboros._render import showable
from ouroboros.bench.demo import MethodRow
from ouroboros.stats import Stats

if TYPE_CHECKING:  # torch comes with it
    from ouroboros.bench.nearness import Choice
    from ouroboros.bench.search import Setting
    from ouroboros.bench.verdicts import AuditReport, PromptAudit
    from ouroboros.control.profile import CostProfile
    from ouroboros.control.tuned import Tuned
    from ouroboros.training.report import DistillReport

__all__ = ["of_audit", "of_demo", "of_distilled", "of_profile", "of_tuned"]

_BAR = 44  # characters of the longest bar
_BLOCKS = {"draft": ("█", "draft model"), "phrase": ("▓", "phrases"), "bonus": ("░", "target model")}
_CLOSING = {
    "identical": "Lossless here: every output is that of plain decoding, token for token.",
    "near-tie": "Lossless up to rounding: outputs part at near-ties alone, where either token may be drawn.",
    "defect": "NOT lossless: rounding does not explain what differs.",
}


def of_demo(
    rows: Sequence[MethodRow], names: Mapping[str, str], title: str, styles: Mapping[str, Style]
) -> Iterator[RenderableType]:
    """A bar of each method's tokens per second, made of where its tokens came from; then who was ahead.

    ``rows``: plain decoding, the method that is shown, any others. ``names``: what methods are called, where that is
    not their name. ``styles``: of each source.
    """
    plain, shown = rows[0], rows[1]
    names = {row.method: names.get(row.method, row.method) for row in rows}
    width, most = max(map(len, names.values())), max(row.stats.tokens_per_second for row in rows) or 1.0
    yield ""
    yield Text(f"Tokens per second ({title})", style="bold")
    for row in rows:
        line = Text(f"  {names[row.method]:{width}}  ")
        line.append_text(_sources_bar(row.stats, _BAR * row.stats.tokens_per_second / most, styles))
        line.append(f" {row.stats.tokens_per_second:.1f}", style="bold" if row is shown else "")
        if row is not plain:
            line.append(f"  {row.stats.tokens_per_second / (plain.stats.tokens_per_second or 1.0):.1f} ×")
            line.append("  ✓ same text" if not row.other_texts else f"  ✗ {row.other_texts} other texts")
        yield line
    legend = Text(" " * (width + 4))
    for source, (block, meaning) in _BLOCKS.items():
        legend.append(f"{block} {meaning}   ", style=styles.get(source, ""))
    yield legend
    ratio = plain.seconds / shown.seconds if shown.seconds else 0.0
    ahead = f"{ratio:.1f} × as fast" if ratio >= 1 else f"no gain here: {ratio:.2f} × as fast"
    same = "the same" if not shown.other_texts else "these"
    yield Text(
        f"{names[shown.method]} wrote {same} {shown.stats.new_tokens} tokens in {shown.seconds:.1f} s, reading the "
        f"prompts included; plain decoding took {plain.seconds:.1f} s: {ahead}."
    )
    if shown.other_texts:
        yield Text("Texts part where rounding decides between equally likely tokens: ouroboros audit looks into it.")


def _sources_bar(stats: Stats, length: float, styles: Mapping[str, Style]) -> Text:
    """``length`` characters, shared among the sources as the tokens are."""
    counts = {**stats.accepted_by_source, "bonus": stats.new_tokens - stats.accepted_tokens}
    bar, done, drawn = Text(), 0, 0
    for source, (block, _) in _BLOCKS.items():
        done += counts.get(source, 0)
        upto = round(length * done / max(1, stats.new_tokens))
        bar.append(block * (upto - drawn), style=styles.get(source, ""))
        drawn = upto
    return bar


def of_profile(profile: CostProfile, name: str) -> Iterator[RenderableType]:
    """T(n): milliseconds, what more rows cost beside one, and a bar for each."""
    longest = max(max(times) for times in profile.seconds)
    for context, seconds, spread in zip(profile.contexts, profile.seconds, profile.spread, strict=True):
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for heading in ("rows", "ms", "±", "× one row", "ms a row"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        for n, time, width in zip(profile.rows, seconds, spread, strict=True):
            bar = "█" * max(1, round(30 * time / longest))
            cells = f"{1e3 * time:.2f}", f"{5e2 * width:.2f}", f"{time / seconds[0]:.2f}", f"{1e3 * time / n:.3f}"
            table.add_row(str(n), *cells, bar)
        yield Text(f"{name}, {context} positions cached: {profile.model}", style="bold")
        yield table
    yield Text(profile.machine, style="dim")


def of_tuned(found: Tuned, tried: Sequence[Setting]) -> Iterator[RenderableType]:
    """The settings that were tried, best first, and the one that was chosen."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("setting", no_wrap=True)
    for heading in ("tokens/s, replayed", "measured"):
        table.add_column(heading, justify="right")
    for one in tried:
        name = "plain decoding" if one.options is None else _assignments(one.options)
        chosen = one.options == found.options
        cells = ["" if figure is None else f"{figure:.1f}" for figure in (one.replayed, one.measured)]
        table.add_row(f"{name}  ← chosen" if chosen else name, *cells, style="bold" if chosen else "")
    yield table
    text = f"{found.speed_up:.2f} × plain decoding on {found.prompts} prompts × {found.new_tokens} tokens"
    if found.speed_up < 1:
        text += ": without drafts (--method autoregressive) these are written faster"
    yield Text(text)


def of_distilled(report: DistillReport) -> Iterator[RenderableType]:
    """What a draft was worth before it was trained, and is worth now."""
    settings = report.settings
    for loss, figure in report.trials.items():
        line = f"trial of {loss}: {figure:.3f} tokens per target forward"
        yield Text(line, style="dim")
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", no_wrap=True)
    for heading in ("temperature", "tokens per target forward", "before", "tokens/s", "before"):
        table.add_column(heading, justify="right", min_width=max(map(len, heading.split())))
    for old, new in zip(report.before, report.after, strict=True):
        low, high = new.interval
        table.add_row(
            f"speculative, γ = {settings.gamma}" if new.method == "speculative" else new.method,
            f"{new.temperature:g}",
            f"{new.tokens_per_target_forward:.2f}\u00a0({low:.2f}–{high:.2f})",
            f"{old.tokens_per_target_forward:.2f}",
            f"{new.tokens_per_second:.0f}",
            f"{old.tokens_per_second:.0f}",
        )
    yield table
    size = f"{report.draft_parameters / 1e6:.1f} M parameters, target {report.target_parameters / 1e6:.1f} M"
    line = f"{settings.out}: {size}; {settings.steps} steps, loss {report.loss}"
    yield Text(showable(line), style="dim")


def of_audit(report: AuditReport, piece: Callable[[int], str]) -> Iterator[RenderableType]:
    """The table, each divergence, the rounding, and the verdict. ``piece``: a token's text."""
    params = report.params
    how = "greedy" if params.greedy else f"temperature {params.temperature:g}, seed {params.seed}"
    size = f"{len(report.methods[0].prompts)} prompts, up to {params.max_new_tokens} new tokens each, {how}"
    title = f"Against plain decoding: {report.backend}, {report.dtype} on {report.device}; {size}"
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for heading in ("identical prompts", "near-ties", "defects", "tokens compared"):
        table.add_column(heading, justify="right", min_width=max(map(len, heading.split())))
    for method in report.methods:
        counts = [str(count) for count in method.counts.values()]
        compared = sum(prompt.compared for prompt in method.prompts)
        table.add_row(method.method, method.verdict, *counts, str(compared))
    yield Text(title)
    yield table
    for method in report.methods:
        for prompt in method.prompts:
            if prompt.divergence is not None:
                yield Text(f"{method.method}, {_divergence(prompt, piece)}")
    noise = report.noise
    spreads = {"batch": noise.batch, "tree": noise.tree, "commit": noise.commit}
    measured = ", ".join(f"{name} {spread.largest:.2g}" for name, spread in spreads.items())
    line = f"Rounding moves logits (of up to {noise.scale:.3g}) by up to {noise.bound:.2g}: {measured}"
    yield Text(line, style="dim")
    for name in noise.unexplained:
        line = f"Beyond rounding: {name} rows differ by up to {spreads[name].largest:.2g}"
        yield Text(line)
    yield Text(_CLOSING[report.verdict], style="bold")


def _assignments(options: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items()) or "defaults"


def _divergence(prompt: PromptAudit, piece: Callable[[int], str]) -> str:
    found = prompt.divergence
    assert found is not None

    def say(name: str, choice: Choice | None) -> str:
        if choice is None:
            return f"{name} has ended"
        edges = "".join(f", {edge.replace('_', '-')} edge {distance:+.2g}" for edge, distance in choice.edges.items())
        return f"{name} {choice.token} {showable(repr(piece(choice.token)))} (gap {choice.gap:.2g}{edges})"

    drawn = f"{say('plain', found.plain)}, accelerated {say('', found.accelerated).lstrip()}"
    where = f"prompt {prompt.number}, new token {found.index + 1}: {found.verdict}"
    return f"{where}: {drawn}; margin {found.margin:.2g}, rounding up to {found.tolerance:.2g}"
