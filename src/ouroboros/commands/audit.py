"""``ouroboros audit``: whether accelerated decoding is lossless with these models, on this dtype and device."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from ouroboros.commands.options import (
    Place,
    Tools,
    loading_status,
    method_settings,
    pair_options,
    place_options,
    sampling_options,
    to_json,
)
from ouroboros.config import METHODS, MethodOptions, SamplingParams, options_for, options_from_strings
from ouroboros.errors import InputError

if TYPE_CHECKING:
    from ouroboros.generate import Decoder
    from ouroboros.prompts import Prompt

__all__ = ["audit"]

_PLAIN = "autoregressive"


@click.command(short_help="Check that accelerated decoding changes no token.")
@click.option(
    "--prompt", "texts", multiple=True, metavar="P", help="A prompt. Repeatable.  [default: three of HumanEval]"
)
@click.option(
    "--prompt-file", metavar="F", help='A JSON object a line, with "prompt", "messages", …; or text that is one prompt.'
)
@pair_options
@click.option(
    "--method",
    "methods",
    type=click.Choice([method for method in METHODS if method != _PLAIN]),
    multiple=True,
    help="Repeatable.  [default: all that these models can run]",
)
@sampling_options
@click.option(
    "--set", "assignments", multiple=True, metavar="NAME=VALUE", help="An option of the methods that have it."
)
@place_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object in place of the table.")
@click.pass_obj
def audit(
    tools: Tools,
    texts: tuple[str, ...],
    prompt_file: str | None,
    target: str | None,
    draft: str | None,
    methods: tuple[str, ...],
    params: SamplingParams,
    assignments: tuple[str, ...],
    place: Place,
    as_json: bool,
) -> None:
    """Write prompts with plain decoding and with accelerated methods, with the same seed, and compare the tokens.

    Where outputs part, the margin between the two tokens is held against the rounding that is measured on this model,
    dtype and device: a near-tie, or a defect. Exit status: 0 without defects, 1 with one.
    """
    from ouroboros._render import Screen
    from ouroboros._tables import of_audit

    settings = method_settings(assignments)
    prompts = _prompts(texts, prompt_file)
    options = _options(methods or _runnable(target, draft), settings)
    screen = Screen()
    with tools.interrupts.at_once(screen.restore_cursor), loading_status(screen, target, draft):
        from ouroboros.bench.audit import audit as run_audit
        from ouroboros.drafting.factory import NEEDS_DRAFT
        from ouroboros.generate import Decoder
        from ouroboros.phrases.memory import Memory

        whole = next((method for method in options if method in NEEDS_DRAFT), next(iter(options)))
        loaded = tools.load(target, draft, whole, options[whole], place, None, False)

    def load(method: str) -> Decoder:
        """The same models for all methods, and phrases that are kept from prompt to prompt."""
        draft_model = loaded.draft if method in NEEDS_DRAFT else None
        chosen = options.get(method, options_for(method))
        return Decoder(loaded.target, draft_model, loaded.tokenizer, method, chosen, Memory(), control=loaded.control)

    with contextlib.closing(loaded), screen.status("comparing") as progress:
        report = run_audit(load, prompts, params, progress, tuple(options))
    tools.interrupts.check()
    if as_json:
        screen.text(to_json(report.to_dict()))
    else:
        words = loaded.tokenizer
        screen.show(of_audit(report, lambda token: "" if words is None else words.decode([token])))
    if report.verdict == "defect":
        raise click.exceptions.Exit(1)


def _runnable(target: str | None, draft: str | None) -> list[str]:
    """Methods that the pair can run: those with a draft model only where there is one."""
    alone = target is not None and draft is None
    return [method for method in METHODS if method != _PLAIN and not (alone and method in ("speculative", "ouroboros"))]


def _options(methods: Sequence[str], settings: Mapping[str, str]) -> dict[str, MethodOptions]:
    """Each method's options, in the order of METHODS; a setting goes to all methods that have such an option.

    Raises:
        InputError: none has, or a value is not allowed.
    """
    names = {method: [field.name for field in dataclasses.fields(METHODS[method])] for method in methods}
    for name in settings:
        if not any(name in own for own in names.values()):
            allowed = ", ".join(sorted({name for own in names.values() for name in own}))
            raise InputError(f"no method of {', '.join(names)} has an option {name!r} (their options: {allowed})")
    return {
        method: options_from_strings(method, {name: text for name, text in settings.items() if name in names[method]})
        for method in METHODS
        if method in names
    }


def _prompts(texts: Sequence[str], prompt_file: str | None) -> list[Prompt]:
    """All prompts: ``--prompt`` first, then the file's; without any the three that lie in the package.

    Raises:
        InputError: the file is unreadable, or a line of it is not as it should be.
    """
    from ouroboros.bench.demo import demo_prompts
    from ouroboros.prompts import read_prompts

    prompts: list[Prompt] = list(texts)
    if prompt_file is not None:
        prompts += read_prompts(prompt_file)
    return prompts or [prompt.text for prompt in demo_prompts()]
