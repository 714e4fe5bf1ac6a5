"""``ouroboros doctor``: what computes on this machine, why, and how fast: for whoever reports or answers a question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from ouroboros.commands.options import Place, Tools, to_json

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["doctor"]

Values = Mapping[str, Any]


@click.command(short_help="Say what computes here and how fast.")
@click.option("--no-speed", is_flag=True, help="Measure nothing: formats' speeds are left out.")
@click.option("--threads", type=int, metavar="N", help="CPU threads of a forward.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object in place of the tables.")
@click.pass_obj
def doctor(tools: Tools, no_speed: bool, threads: int | None, as_json: bool) -> None:
    """Say what computes on this machine and why: processor, threads, engine, formats and their speed, GPUs, caches,
    versions.

    A report of a fault should hold this. Speeds take about a second for each format that was never measured here.
    """
    from ouroboros._render import Screen

    place = Place(threads=threads)
    screen = Screen()
    with tools.interrupts.at_once(screen.restore_cursor), screen.status("looking around") as progress:
        from ouroboros.diagnosis import diagnose
        from ouroboros.opening import use_threads

        use_threads(place.threads)
        found = diagnose(not no_speed, progress)
    if as_json:
        screen.text(to_json(found))
    else:
        screen.show(_shown(found))


def _shown(found: Values) -> Iterator[RenderableType]:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from ouroboros._render import showable

    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, text in _facts(found):
        facts.add_row(name, Text(showable(text)))
    yield facts
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("weights", no_wrap=True)
    for heading in ("GB/s", "billion multiplications/s"):
        table.add_column(heading, justify="right", min_width=max(map(len, heading.split())))
    table.add_column("what computes", overflow="fold")
    for name, one in found["formats"].items():
        speeds = [one.get(key) for key in ("bytes_per_second", "multiplications_per_second")]
        cells = ["–" if speed is None else f"{speed / 1e9:.1f}" for speed in speeds]
        table.add_row(name, *cells, showable(one["engine"] or one["why"]))
    yield table
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    yield Text(showable(versions), style="dim")


def _facts(found: Values) -> Iterator[tuple[str, str]]:
    processor, threads, memory, engine = (found[name] for name in ("processor", "threads", "memory", "engine"))
    has = " ".join(processor["instructions"]) or "none that the kernels know"
    yield "processor", f"{processor['name']}, {processor['architecture']}: {has}"
    limit = threads["container_limit"]
    cores = f"{threads['physical_cores']} cores, {threads['allowed']} of {threads['processors']} processors allowed"
    share = "" if limit is None else f", a container's limit of {limit:g}"
    yield "threads", f"{threads['in_use']} in use, {threads['default']} by default ({cores}{share})"
    size, left = ("?" if value is None else f"{value / 1e9:.1f}" for value in (memory["bytes"], memory["available"]))
    speed = found["measured"]["bytes_per_second"]
    yield "memory", f"{size} GB, {left} GB available" + (f", read at {speed / 1e9:.1f} GB/s" if speed else "")
    what = f" for {engine['instructions']}" if engine["instructions"] else ""
    yield "engine", f"{engine['name']}{what}: {engine['why']}"
    ahead = ", ".join(engine["built_ahead"]) or "none"
    yield "", f"libraries built ahead: {ahead}; compiler: {engine['compiler'] or 'none found'}"
    yield "GPU", "; ".join(one.get("error") or _gpu(one) for one in found["gpus"]) or "none that PyTorch can use"
    for name, cache in found["caches"].items():
        kept = f"{cache['files']} files, {cache['bytes'] / 1e6:.1f} MB" + ("" if cache["writable"] else ", read-only")
        yield f"cache: {name}", f"{cache['path']}: {kept}"


def _gpu(one: Values) -> str:
    return f"{one['name']}, {one['bytes'] / 1e9:.0f} GB, capability {one['capability']}, CUDA {one['cuda']}"
