"""``ouroboros demo``: the embedded pair at work on three prompts, then all methods in a table."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from ouroboros.commands.generate import show_stream
from ouroboros.commands.options import Session
from ouroboros.config import SamplingParams, options_from_strings

if TYPE_CHECKING:
    from ouroboros.generate import Decoder

__all__ = ["demo"]

_SEED = 1


@click.command(short_help="Show the method at work on the embedded pair of models.")
@click.option("--max-new-tokens", type=int, metavar="N", default=96, show_default=True)
@click.option("--temperature", type=float, default=0.8, show_default=True, help="0 is greedy.")
@click.pass_obj
def demo(session: Session, max_new_tokens: int, temperature: float) -> None:
    """Complete three prompts with the embedded pair, then compare all methods on them."""
    from ouroboros._render import Screen
    from ouroboros.bench.demo import compare, demo_prompts

    params = SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature, seed=_SEED)
    prompts = demo_prompts()
    screen = Screen()

    def load(method: str) -> Decoder:
        # One thread: models this small gain nothing from more, and lose much where another program wants the cores.
        return session.load(None, None, method, options_from_strings(method, {}), "float32", "cpu", 1, False, False)

    with session.interrupts.at_once(screen.restore_cursor), screen.status("loading"):
        decoder = load("ouroboros")
    with contextlib.closing(decoder):
        screen.legend()
        for prompt in prompts:
            screen.demo_prompt(prompt.task_id, prompt.text)
            result, interrupted = show_stream(decoder, prompt.text, params, screen, session.interrupts)
            if interrupted:
                raise KeyboardInterrupt
            screen.demo_figures(result.stats)
    with screen.status("measuring") as progress:
        rows = compare(load, prompts, params, progress)
    session.interrupts.check()
    how = "greedy" if params.greedy else f"temperature {temperature:g}, seed {_SEED}"
    screen.demo_table(rows, f"{len(prompts)} prompts, up to {max_new_tokens} new tokens each, {how}")
