"""What the command line shows: text coloured by source, figures, tables. Knows nothing of models or options.

Invariant: model text reaches a terminal only through ``showable``, so it can neither move the cursor nor be markup.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.segment import Segment, Segments
from rich.style import Style
from rich.text import Text

from ouroboros.stats import Decision, Stats

__all__ = ["Screen", "showable"]

# Blue, orange and purple: a contrast of 3.7 to 1 or more with black and with white, and no pair of red and green.
_STYLES = {
    "draft": Style(color="color(32)"),
    "phrase": Style(color="color(166)"),
    "bonus": Style(color="color(133)"),
}
_STYLES_16 = {  # the nearest of 16 colours would be yellow and white, which nobody can read on white
    "draft": Style(color="cyan"),
    "phrase": Style(color="green"),
    "bonus": Style(color="magenta"),
}
_MEANINGS = {"draft": "draft model", "phrase": "phrase pool", "bonus": "target model"}
_BRANCHING = ("lookahead", "ouroboros", "suffix_decoding", "token_recycling")  # they send trees where they may
_CONTROLS: dict[int, str | None] = {n: f"\\x{n:02x}" for n in (*range(0x20), *range(0x7F, 0xA0))}
_CONTROLS |= {ord("\n"): "\n", ord("\t"): "\t", ord("\r"): None}


def showable(text: str) -> str:
    """``text`` with control characters written out (``\\x1b``), but for newline and tab; carriage returns vanish."""
    return text.translate(_CONTROLS)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise  # the error that rich is handling; rich itself would end the process with status 1


def _console(stream: TextIO, terminal: bool) -> _Console:
    return _Console(file=stream, force_terminal=terminal, highlight=False, markup=False, emoji=False)


class Screen:
    """Standard output and standard error, as far as they are terminals."""

    def __init__(self) -> None:
        if sys.stdout is None:
            raise OSError("standard output is closed")
        stderr = sys.stderr if sys.stderr is not None else io.StringIO()
        self.out_terminal = sys.stdout.isatty()
        self.err_terminal = stderr.isatty()
        if isinstance(sys.stdout, io.TextIOWrapper):
            if self.out_terminal:
                sys.stdout.reconfigure(errors="replace")
            else:  # another program reads this: the same bytes whatever the locale
                sys.stdout.reconfigure(encoding="utf-8", errors="replace", newline="\n")
        self._out = _console(sys.stdout, self.out_terminal)
        self._err = _console(stderr, self.err_terminal)
        self._coloured = self.out_terminal and self._out.color_system is not None and not self._out.no_color
        self._styles = _STYLES if self._out.color_system in ("256", "truecolor") else _STYLES_16
        self._line_open = False

    @contextlib.contextmanager
    def status(self, text: str) -> Iterator[Callable[[str], None]]:
        """A spinner on standard error while something takes long; the value changes its text."""
        if not self.err_terminal:
            yield lambda text: None
            return
        with self._err.status(Text(f"{text} …")) as spinner:
            yield lambda text: spinner.update(Text(f"{text} …"))

    def stage(self, text: str) -> None:
        """What a program that goes on for long has come to: a line for a log, where no terminal shows a spinner."""
        if not self.err_terminal:
            self.warn(text)

    def restore_cursor(self) -> None:
        """For a process that ends with a spinner on: wipe it and show the cursor, past all buffers and locks."""
        if self.err_terminal and not self._err.is_dumb_terminal:
            os.write(sys.stderr.fileno(), b"\r\x1b[2K\x1b[?25h")

    def legend(self) -> None:
        """The colours' meanings, where colours are shown and the line does not end in a file."""
        if self._coloured and self.err_terminal:
            words = [(f"● {name} ({_MEANINGS[name]})", style) for name, style in self._styles.items()]
            self._err.print(Text("  ").join(Text(word, style=style) for word, style in words), soft_wrap=True)

    def note(self, text: str) -> None:
        """A word to the user, on standard error where someone reads along."""
        if self.out_terminal or self.err_terminal:
            self._err.print(Text(showable(text), style="dim"), soft_wrap=not self.err_terminal)

    def warn(self, text: str) -> None:
        """What went wrong without ending the program, on standard error."""
        self._err.print(Text(showable(text)), soft_wrap=True)

    def text(self, text: str) -> None:
        """Machine-readable output, as it is."""
        sys.stdout.write(text)
        sys.stdout.flush()

    def pieces(self, pieces: Iterable[tuple[str, str]]) -> None:
        """Generated (text, source) pairs, at once."""
        if not self.out_terminal:
            self.text("".join(text for text, _ in pieces))
            return
        shown = [(showable(text), source) for text, source in pieces if text]
        if shown:
            self._line_open = not shown[-1][0].endswith("\n")
            # Segments, because a Text would turn tabs into spaces
            segments = [Segment(text, self._styles.get(source) if self._coloured else None) for text, source in shown]
            self._out.print(Segments(segments), end="", soft_wrap=True)
            sys.stdout.flush()

    def end_text(self) -> None:
        """Close the last line of generated text on a terminal; elsewhere the text is left as it is."""
        if self.out_terminal and self._line_open:
            self.text("\n")
            self._line_open = False

    def figures(self, stats: Stats, note: str = "") -> None:
        """The closing line, on standard error where someone reads along."""
        if self.out_terminal or self.err_terminal:
            self._err.print(Text(_figures(stats) + note, style="dim"), soft_wrap=not self.err_terminal)

    def explain(self, decisions: Sequence[Decision]) -> None:
        """What each step chose, and why, on standard error."""
        for number, decision in enumerate(decisions, start=1):
            self._err.print(Text(_explanation(number, decision)), soft_wrap=True)

    def restrictions(self, stats: Stats) -> None:
        """One line on standard error where a model has kept the method from branching."""
        line = _restrictions(stats)
        if line:
            self._err.print(Text(line, style="dim"), soft_wrap=True)

    def demo_prompt(self, task_id: str, prompt: str) -> None:
        self._out.print(Text(f"\n{task_id}", style="bold"))
        text = showable(prompt) if self.out_terminal else prompt
        self._out.print(Segments([Segment(text, Style(dim=True))]), end="", soft_wrap=True)
        sys.stdout.flush()

    @property
    def styles(self) -> Mapping[str, Style]:
        """The colour of each source of tokens; none where colours are not shown."""
        return self._styles if self._coloured else {}

    def line(self, text: str, style: str = "") -> None:
        """Words of the program itself, on standard output."""
        self._out.print(Text(text, style=style), soft_wrap=True)

    def show(self, parts: Iterable[RenderableType]) -> None:
        """Results on standard output; lines of text are not broken."""
        for part in parts:
            self._out.print(part, soft_wrap=isinstance(part, Text))

    @contextlib.contextmanager
    def bars(self) -> Iterator[Callable[[str, int, int, str], None]]:
        """A bar on standard error for each stage of long work: call it with (stage, done, of how many, a figure)."""
        if not self.err_terminal:
            yield lambda stage, done, total, note: None
            return
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        known: dict[str, TaskID] = {}
        with Progress(*columns, TextColumn("{task.fields[note]}"), console=self._err) as progress:

            def tell(stage: str, done: int, total: int, note: str) -> None:
                if stage not in known:
                    known[stage] = progress.add_task(stage, note="")
                progress.update(known[stage], completed=done, total=total, note=note)

            yield tell


def _figures(stats: Stats) -> str:
    parts = [
        f"{stats.new_tokens} new token{'s' * (stats.new_tokens != 1)}",
        f"{stats.tokens_per_target_forward:.2f} tokens per target forward",
        f"{stats.draft_forwards_per_token:.2f} draft forwards per token",
        f"{stats.acceptance_rate:.0%} of {stats.draft_tokens} drafted tokens accepted",
        f"{stats.tokens_per_second:.1f} tokens/s",
    ]
    if stats.cached_tokens:
        parts.append(f"{stats.cached_tokens} of {stats.prompt_tokens} prompt tokens from the cache")
    return ", ".join(parts)


def _explanation(number: int, decision: Decision) -> str:
    drafts = len(decision.draft_rows)
    if not drafts:
        drafted = "no draft forward"
    else:
        drafted = (
            f"{drafts} draft forward{'s' if drafts > 1 else ''} of {' + '.join(map(str, decision.draft_rows))} rows"
        )
    if decision.probe:
        drafted += " as a probe"
    why = f"one more would have added {decision.gain:.2f} tokens, and taken the time of {decision.price:.2f}"
    return (
        f"step {number}: at {decision.rate:.1f} tokens/s {drafted}"
        + (f"; {why}" if decision.price else "")
        + f"; {decision.rows} rows to the target, {decision.expected:.1f} tokens expected, {decision.tokens} written"
    )


def _restrictions(stats: Stats) -> str:
    if stats.method not in _BRANCHING:
        return ""
    parts = [] if stats.trees else ["the target model takes chains only: each draft went to it as one path"]
    parts += (
        [] if stats.draft_trees else ["the draft model takes chains only: it drafted without a window and branches"]
    )
    return "; ".join(parts)
