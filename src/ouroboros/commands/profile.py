"""``ouroboros profile``: what forwards of these models cost here, by rows and by what is cached."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

import click

from ouroboros.commands.options import Place, Tools, loading_status, pair_options, place_options, to_json
from ouroboros.config import options_from_strings
from ouroboros.errors import InputError

if TYPE_CHECKING:
    from ouroboros.control.profile import CostProfile

__all__ = ["profile"]


@click.command(short_help="Measure what forwards cost on this machine.")
@pair_options
@click.option("--rows", metavar="N,N,…", help="New rows of a forward.  [default: 14 sizes from 1 to 128]")
@click.option("--context", "contexts", metavar="N,N,…", help="Positions in the cache.  [default: 256,1024]")
@click.option("--repeats", type=int, metavar="N", default=7, show_default=True, help="Rounds; medians count.")
@place_options
@click.option("--plot", metavar="FILE", help="Draw T(n) as PNG or SVG (needs matplotlib).")
@click.option("--no-save", is_flag=True, help="Do not keep the profile for later runs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object in place of the tables.")
@click.pass_obj
def profile(
    tools: Tools,
    target: str | None,
    draft: str | None,
    rows: str | None,
    contexts: str | None,
    repeats: int,
    place: Place,
    plot: str | None,
    no_save: bool,
    as_json: bool,
) -> None:
    """Time forwards of the target model, and of the draft model if there is one, over n rows at once.

    The more rows a forward takes at the price of one, the more drafting pays. Profiles are kept in the user's cache
    directory, one for each model, dtype, device and number of threads.
    """
    from ouroboros._render import Screen
    from ouroboros._tables import of_profile

    sizes, cached = _sizes("--rows", rows), _sizes("--context", contexts)
    if plot is not None:
        from ouroboros.bench.plots import check_plot

        check_plot(plot)
    both = target is None or draft is not None
    method = "speculative" if both else "autoregressive"
    screen = Screen()
    with tools.interrupts.at_once(screen.restore_cursor), loading_status(screen, target, draft):
        from ouroboros.bench.profiling import CONTEXTS, ROWS, measure
        from ouroboros.control.profile import profile_path, save_profile

        decoder = tools.load(target, draft, method, options_from_strings(method, {}), place, None, False)
    models = {"target": decoder.target} | ({} if decoder.draft is None else {"draft": decoder.draft})
    found: dict[str, CostProfile] = {}
    with contextlib.closing(decoder):
        for name, model in models.items():
            room = model.info.max_positions
            chosen = cached or [size for size in CONTEXTS if size + max(sizes or ROWS) <= room] or [max(1, room // 2)]
            with screen.status(f"measuring the {name}") as progress:
                found[name] = measure(
                    model, sizes or [n for n in ROWS if n + max(chosen) <= room] or ROWS, chosen, repeats, progress
                )
            tools.interrupts.check()
    if as_json:
        screen.text(to_json({name: dataclasses.asdict(one) for name, one in found.items()}))
    else:
        for name, one in found.items():
            screen.show(of_profile(one, name))
    if not no_save:  # last of all: where it cannot be kept, what was measured has been shown
        for name, model in models.items():
            save_profile(found[name], profile_path(model.info))
    if plot is not None:
        from ouroboros.bench.plots import draw_profiles

        draw_profiles(found, plot)


def _sizes(option: str, text: str | None) -> list[int]:
    try:
        return [] if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} must be whole numbers with commas between, not {text!r}") from None
