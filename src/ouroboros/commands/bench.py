"""``ouroboros bench``: every method and every peer, side by side; ``ouroboros bench report``: the tables and plots."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ouroboros.bench.peers import PEERS
from ouroboros.bench.settings import STATES, BenchSettings
from ouroboros.commands.options import Place, Tools, pair_options, place_options
from ouroboros.commands.process import keep_loaded
from ouroboros.commands.throughput import throughput
from ouroboros.config import METHODS
from ouroboros.errors import InputError

if TYPE_CHECKING:
    from ouroboros._render import Screen
    from ouroboros.bench.records import Results
    from ouroboros.generate import Decoder

__all__ = ["bench"]

_DEFAULTS = BenchSettings()
_GIVEN = click.core.ParameterSource.COMMANDLINE
_MANY: dict[str, Any] = {"multiple": True, "metavar": "NAME"}


def _number(name: str, text: str | None = None) -> Callable[[Any], Any]:
    """An option for a whole number, with the default of BenchSettings."""
    default = getattr(_DEFAULTS, name[2:].replace("-", "_"))
    return click.option(name, type=int, metavar="N", default=default, show_default=default is not None, help=text)


@click.group(invoke_without_command=True, short_help="Measure all methods side by side.")
@pair_options
@click.option("--grow", metavar="T/D", help="Grow both models to these shapes first, such as 0.35b/62m.")
@click.option("--task", "tasks", help="A task or a file of prompts. Repeatable.  [default: all nine]", **_MANY)
@click.option("--source", "sources", multiple=True, metavar="TASK=S", help="A task's original file or hub data set.")
@_number("--prompts", "Of each task.")
@_number("--warm-prompts", "Others of each task, that fill memories.")
@_number("--tuning-prompts", "Others, of all tasks together, to find the baselines' options on; 0: their defaults.  "
         "[default: one of each]")  # fmt: skip
@_number("--new-tokens")
@_number("--max-prompt-tokens", "Longer prompts are cut from the left.")
@click.option("--temperature", "temperatures", type=float, multiple=True, metavar="X",
              help="Repeatable.  [default: 0, 0.8]")  # fmt: skip
@click.option("--stop-at-eos", is_flag=True, help="Let end-of-sequence tokens end outputs.")
@click.option("--method", "methods", type=click.Choice(list(METHODS)), multiple=True, help="[default: all]")
@click.option("--variant", "variants", multiple=True, metavar="NAME=METHOD:OPTION=VALUE,…",
              help="A further contestant. Repeatable.")  # fmt: skip
@click.option("--state", "states", type=click.Choice(STATES), multiple=True,
              help="What methods remember of other prompts. Repeatable.  [default: cold, warm]")  # fmt: skip
@click.option("--ablation", is_flag=True, help="Also ouroboros without each of its mechanisms.")
@click.option("--peer", "peers", type=click.Choice(["all", *PEERS]), multiple=True, help="Another program. Repeatable.")
@_number("--peer-prompts", "Of each task, for peers: the first ones.")
@_number("--shuffled-prompts", "Of each task, for shuffled memories: the first ones.  [default: all]")
@_number("--ablation-prompts", "Of each task, for the ablation: the first ones.  [default: all]")
@click.option("--ablation-task", "ablation_tasks", help="For the ablation. Repeatable.  [default: all]", **_MANY)
@click.option("--llama-python", metavar="P", help="The Python that has llama-cpp-python, if it is another one.")
@click.option("--quality", is_flag=True, help="Judge the answers: runs the models' code, in processes with limits.")
@click.option("--frozen", metavar="FILE", help="T(n) and options as in these results, and no clock.")
@_number("--seed")
@place_options
@click.option("--out", metavar="FILE", default="bench.jsonl", show_default=True,
              help="Results; what is there already is gone on with.")  # fmt: skip
@click.option("--report", metavar="FILE", help="Also write the tables to this file (Markdown).")
@click.option("--plots", metavar="DIR", help="Also draw plots (SVG) into this directory (needs matplotlib).")
@click.pass_context
def bench(
    context: click.Context, /, place: Place, out: str, report: str | None, plots: str | None, **values: Any
) -> None:
    """Every method on every task, greedy and sampled, in turns on one pair of models, beside other programs.

    Without --target the embedded pair; --grow gives it the cost of large models. An interrupted benchmark goes on where
    it stopped when the same command is given again.
    """
    if context.invoked_subcommand is not None:
        given = [name for name in context.params if context.get_parameter_source(name) is _GIVEN]
        if given:
            raise InputError(f"options belong behind the command: bench report takes no {', '.join(sorted(given))}")
        return
    from ouroboros._render import Screen

    settings = BenchSettings(**_settings(place, values))
    _check(report, plots)
    tools: Tools = context.obj
    screen = Screen()

    def load(target: str | None, draft: str | None, method: str) -> Decoder:
        return tools.load(target, draft, method, {}, place, False, False)

    with tools.interrupts.at_once(screen.restore_cursor), screen.status("loading"):
        from ouroboros.bench.benchmark import benchmark
        from ouroboros.bench.records import read_results
    with contextlib.ExitStack() as stack:
        bars = stack.enter_context(screen.bars())

        def tell(stage: str, done: int, count: int, text: str) -> None:
            if stage == "benchmark" and done == 0:  # all models and peers have made their first forward
                keep_loaded()
            bars(stage, done, count, text)

        benchmark(settings, Path(out), load, tell, screen.note)
    tools.interrupts.check()
    _show(screen, read_results(Path(out)), report, plots, print_it=report is None)


@bench.command("report", short_help="Tables and plots of a benchmark's results.")
@click.argument("results", metavar="FILE")
@click.option("--out", metavar="FILE", help="Write the tables to this file in place of standard output.")
@click.option("--plots", metavar="DIR", help="Draw plots (SVG) into this directory (needs matplotlib).")
@click.option("--excerpt", metavar="FILE", help="Put one table into this file, between <!-- benchmark --> and "
              "<!-- /benchmark -->, in place of the report.")  # fmt: skip
def show_report(results: str, out: str | None, plots: str | None, excerpt: str | None) -> None:
    """Write the tables of a benchmark as Markdown, and draw its plots. Works on unfinished results too."""
    from ouroboros._render import Screen
    from ouroboros.bench.excerpt import write_excerpt
    from ouroboros.bench.records import read_results

    _check(out, plots)
    found = read_results(Path(results))
    if excerpt is not None:
        write_excerpt(found, Path(excerpt))
    _show(Screen(), found, out, plots, print_it=out is None and excerpt is None)


@bench.command("compare", short_help="Whether two runs have the same counts, and how far speeds differ.")
@click.argument("first", metavar="FILE")
@click.argument("second", metavar="FILE")
@click.pass_context
def compare(context: click.Context, /, first: str, second: str) -> None:
    """Hold two benchmarks' results against each other, run by run. The exit status is 1 where counts differ."""
    from ouroboros._render import Screen
    from ouroboros.bench.records import read_results
    from ouroboros.bench.reproduced import reproduced

    found = reproduced(read_results(Path(first)), read_results(Path(second)))
    Screen().text(found.markdown())
    if found.different:
        context.exit(1)


@bench.command("compact", short_help="Make results small enough to be kept.")
@click.argument("results", metavar="FILE")
@click.argument("out", metavar="OUT")
def compact_results(results: str, out: str) -> None:
    """Write FILE to OUT, a name in .xz: a tenth of the size, for bench report and bench compare alike."""
    from ouroboros._render import Screen
    from ouroboros.bench.compact import compact

    size = compact(Path(results), Path(out))
    Screen().note(f"{out}: {size:,} bytes")


bench.add_command(throughput)


def _check(report: str | None, plots: str | None) -> None:
    if plots is not None:
        from ouroboros.bench.plots import check_plot

        check_plot("plot.svg")
    for path in (report, plots):
        if path is not None and not Path(path).resolve().parent.is_dir():
            raise InputError(f"there is no directory {str(Path(path).parent)!r} for {path!r}")


def _show(screen: Screen, results: Results, out: str | None, plots: str | None, print_it: bool) -> None:
    from ouroboros.bench.report import markdown

    text = markdown(results)
    if out is not None:
        Path(out).write_text(text, encoding="utf-8")
    if plots is not None:
        from ouroboros.bench.plots import draw_results

        Path(plots).mkdir(exist_ok=True)
        draw_results(results, Path(plots))
    if print_it:
        screen.text(text)


def _settings(place: Place, values: dict[str, Any]) -> dict[str, Any]:
    """Of the command's options those of BenchSettings."""
    found = {name: value for name, value in values.items() if value != ()}
    found["ignore_eos"] = not found.pop("stop_at_eos")
    found |= {name: value for name, value in dataclasses.asdict(place).items() if name != "revision"}
    if place.revision is not None:
        raise InputError("--revision is not for bench: give the directory of a checkpoint")
    if found["grow"] is not None:
        shapes = tuple(found["grow"].split("/"))
        if len(shapes) != 2 or not all(shapes):
            raise InputError(f"--grow must be TARGET/DRAFT, such as 0.35b/62m, not {found['grow']!r}")
        found["grow"] = shapes
    if "all" in found.get("peers", ()):
        found["peers"] = PEERS
    sources = []
    for text in found.get("sources", ()):
        name, equals, source = text.partition("=")
        if not equals or not source:
            raise InputError(f"--source must be TASK=FILE, not {text!r}")
        sources.append((name, source))
    return found | {"sources": tuple(sources)}
