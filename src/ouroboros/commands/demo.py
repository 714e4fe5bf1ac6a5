"""``ouroboros demo``: the embedded pair at work on three prompts, then all methods in a table."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from ouroboros.commands.generate import show_stream
from ouroboros.commands.options import Place, Tools
from ouroboros.config import SamplingParams, options_from_strings

if TYPE_CHECKING:
    from ouroboros.generate import Decoder

__all__ = ["demo"]

_SEED = 1


@click.command(short_help="Show the method at work on the embedded pair of models.")
@click.option("--max-new-tokens", type=int, metavar="N", default=96, show_default=True)
@click.option("--temperature", type=float, default=0.8, show_default=True, help="0 is greedy.")
@click.pass_obj
def demo(tools: Tools, max_new_tokens: int, temperature: float) -> None:
    """Complete three prompts with the embedded pair, then compare all methods on them."""
    from ouroboros._render import Screen
    from ouroboros._tables import of_demo
    from ouroboros.bench.demo import compare, demo_prompts

    params = SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature, seed=_SEED)
    prompts = demo_prompts()
    screen = Screen()

    # One thread: models this small gain nothing from more, and lose much where another program wants the cores.
    place = Place("float32", "cpu", threads=1)

    def load(method: str) -> Decoder:
        return tools.load(None, None, method, options_from_strings(method, {}), place, False, False)

    with tools.interrupts.at_once(screen.restore_cursor), screen.status("loading"):
        decoder = load("ouroboros")
    with contextlib.closing(decoder):
        screen.legend()
        for prompt in prompts:
            screen.demo_prompt(prompt.task_id, prompt.text)
            result, interrupted = show_stream(decoder, prompt.text, params, screen, tools.interrupts)
            if interrupted:
                raise KeyboardInterrupt
            screen.demo_figures(result.stats)
    with screen.status("measuring") as progress:
        rows = compare(load, prompts, params, progress)
    tools.interrupts.check()
    how = "greedy" if params.greedy else f"temperature {temperature:g}, seed {_SEED}"
    screen.show(of_demo(rows, f"{len(prompts)} prompts, up to {max_new_tokens} new tokens each, {how}"))
