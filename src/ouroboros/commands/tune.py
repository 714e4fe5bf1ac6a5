"""``ouroboros tune``: the options that suit these models, this machine and the user's own prompts."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

import click

from ouroboros.commands.options import Place, Tools, loading_status, pair_options, place_options, to_json
from ouroboros.config import SamplingParams
from ouroboros.errors import InputError

if TYPE_CHECKING:
    from ouroboros.generate import Decoder

__all__ = ["tune"]


@click.command(short_help="Find the fastest options for a pair and your prompts.")
@click.option(
    "--prompt-file", metavar="F", help="Your prompts: a JSON object a line.  [default: some of HumanEval and GSM8K]"
)
@click.option("--prompts", "count", type=int, metavar="N", default=8, show_default=True, help="Of the file, at most.")
@click.option("--new-tokens", type=int, metavar="N", default=64, show_default=True)
@click.option("--temperature", "temperatures", type=float, multiple=True, metavar="X",
              help="Repeatable.  [default: 0, 0.8]")  # fmt: skip
@pair_options
@place_options
@click.option("--no-save", is_flag=True, help="Do not keep what was found for later runs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object in place of the table.")
@click.pass_obj
def tune(
    tools: Tools,
    prompt_file: str | None,
    count: int,
    new_tokens: int,
    temperatures: tuple[float, ...],
    target: str | None,
    draft: str | None,
    place: Place,
    no_save: bool,
    as_json: bool,
) -> None:
    """Measure both models, replay your prompts with many settings, confirm the best ones by real runs, and keep them.

    What is found lies in the user's cache directory, for these models, dtype and device; it is taken from then on where
    no options are given.
    """
    from ouroboros._render import Screen
    from ouroboros._tables import of_tuned

    if target is not None and draft is None:
        raise InputError("tune is for a pair: give --draft with --target")
    for name, number, least in (("--prompts", count, 1), ("--new-tokens", new_tokens, 2)):
        if number < least:
            raise InputError(f"{name} must be a whole number of at least {least}, not {number}")
    for value in temperatures:
        SamplingParams(temperature=value)
    screen = Screen()
    with tools.interrupts.at_once(screen.restore_cursor), loading_status(screen, target, draft):
        from ouroboros.bench.profiling import CONTEXTS, ROWS, measure
        from ouroboros.bench.search import search
        from ouroboros.control.profile import PairProfile, profile_path, save_profile
        from ouroboros.control.tuned import save_tuned, tuned_path

        decoder = tools.load(target, draft, "ouroboros", {}, place, False, False)
    with contextlib.closing(decoder):
        assert decoder.draft is not None
        prompts = _prompts(decoder, prompt_file, count, new_tokens)
        profiles = []
        for name, model in (("target", decoder.target), ("draft", decoder.draft)):
            room = model.info.max_positions
            contexts = [size for size in CONTEXTS if size + max(ROWS) <= room] or [max(1, room // 2)]
            with screen.status(f"measuring the {name}") as progress:
                profiles.append(measure(model, [n for n in ROWS if n + max(contexts) <= room], contexts, 5, progress))
        costs = PairProfile(*profiles)
        with screen.bars() as bars:
            found, tried = search(
                decoder.target, decoder.draft, costs, prompts, new_tokens, temperatures or (0, 0.8), bars
            )
        tools.interrupts.check()
        path = tuned_path(decoder.target.info, decoder.draft.info)
        if not no_save:
            save_tuned(found, path)
            for model, profile in zip((decoder.target, decoder.draft), profiles, strict=True):
                save_profile(profile, profile_path(model.info))
    if as_json:
        values = {**dataclasses.asdict(found), "tried": [dataclasses.asdict(one) for one in tried]}
        screen.text(to_json({**values, "file": None if no_save else str(path)}))
    else:
        screen.show(of_tuned(found, tried))
        screen.note("not kept" if no_save else f"kept in {path}")


def _prompts(decoder: Decoder, prompt_file: str | None, count: int, new_tokens: int) -> list[list[int]]:
    """Token ids; prompts that leave no room are cut from the left."""
    from ouroboros.prompts import encode, read_prompts

    if prompt_file is not None:
        prompts = read_prompts(prompt_file)[:count]
    else:
        from ouroboros.bench.tasks import load_task

        each = [load_task(name, limit=(count + 1) // 2) for name in ("humaneval", "gsm8k")]
        prompts = [item.prompt for pair in zip(*each, strict=True) for item in pair][:count]
    assert decoder.draft is not None
    info = decoder.target.info
    room = info.max_positions - new_tokens - 1
    if room < 1:
        raise InputError(f"--new-tokens must leave room for a prompt in the target's context, not {new_tokens}")
    return [encode(prompt, decoder.tokenizer, info.vocab_size, 2**31)[-room:] for prompt in prompts]
