"""``ouroboros generate``: a prompt from where the user says, and its continuation as it comes."""

from __future__ import annotations

import contextlib
import sys
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
from ouroboros.commands.process import Interrupts
from ouroboros.config import METHODS, SamplingParams, options_from_strings
from ouroboros.errors import InputError
from ouroboros.prompts import read_text

if TYPE_CHECKING:
    from ouroboros._render import Screen
    from ouroboros.generate import Decoder, Session
    from ouroboros.prompts import Prompt
    from ouroboros.stream import GenerationResult

__all__ = ["generate", "show_stream"]


@click.command(short_help="Continue a prompt.")
@click.argument("prompt", required=False)
@click.option("--prompt-file", metavar="F", help="Take the prompt from a UTF-8 file, byte for byte.")
@pair_options
@click.option("--method", type=click.Choice(list(METHODS)), default="ouroboros", show_default=True)
@sampling_options
@click.option("--draft-tokens", type=int, metavar="N", help="Short for --set draft_tokens=N.")
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="An option of the method. Repeatable.")
@place_options
@click.option("--pool", metavar="FILE", help="Phrase pool: read it if it exists, and save it at the end.")
@click.option("--pool-read-only", is_flag=True, help="Do not save the pool.")
@click.option("--explain", is_flag=True, help="Say on standard error what each step chose, and why.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object in place of the text.")
@click.pass_obj
def generate(
    tools: Tools,
    prompt: str | None,
    prompt_file: str | None,
    target: str | None,
    draft: str | None,
    method: str,
    params: SamplingParams,
    draft_tokens: int | None,
    assignments: tuple[str, ...],
    place: Place,
    pool: str | None,
    pool_read_only: bool,
    explain: bool,
    as_json: bool,
) -> None:
    """Continue PROMPT, or standard input if it is -, or the text of --prompt-file."""
    from ouroboros._render import Screen

    options = method_settings(assignments, draft_tokens)
    chosen = options_from_strings(method, options)  # to be refused before anything is read
    if explain and not getattr(chosen, "control", False):
        raise InputError("--explain is for a controller's choices: --method ouroboros without --set control=off")
    if params.logprobs is not None and not as_json:
        raise InputError("--logprobs needs --json: a text has no place for them")
    if pool_read_only and pool is None:
        raise InputError("--pool-read-only needs a --pool FILE to read")
    text = _read_prompt(prompt, prompt_file)
    if not text:
        raise InputError("prompt is empty ''; it must have at least one character")
    screen = Screen()
    with tools.interrupts.at_once(screen.restore_cursor), loading_status(screen, target, draft):
        decoder = tools.load(target, draft, method, options, place, pool, pool_read_only)
    with contextlib.closing(decoder):
        if not as_json:
            screen.legend()
        result, interrupted = show_stream(decoder, text, params, None if as_json else screen, tools.interrupts)
        screen.restrictions(result.stats)
        if explain:
            screen.explain(result.decisions)
        if as_json:
            screen.text(_as_json(result))
        else:
            screen.figures(result.stats, " (interrupted)" if interrupted else "")
    if interrupted:
        raise KeyboardInterrupt


def show_stream(
    source: Decoder | Session, prompt: Prompt, params: SamplingParams, screen: Screen | None, interrupts: Interrupts
) -> tuple[GenerationResult, bool]:
    """Generate, showing the text as it comes; the result as far as it got, and whether Ctrl-C ended it."""
    interrupted = False
    stream = source.stream(prompt, params=params)
    try:
        with stream:
            for chunk in stream:
                if screen is not None:
                    screen.pieces(chunk.pieces)
                interrupts.check()
    except KeyboardInterrupt:
        interrupted = True
    finally:
        if screen is not None:
            screen.end_text()
    return stream.result, interrupted


def _as_json(result: GenerationResult) -> str:
    names = ("text", "token_ids", "prompt_token_ids", "finish_reason")
    values: dict[str, object] = {name: getattr(result, name) for name in names}
    if result.logprobs is not None:
        values["logprobs"] = [{"logprob": entry.logprob, "top": entry.top} for entry in result.logprobs]
    return to_json({**values, "stats": result.stats.to_dict()})


def _read_prompt(prompt: str | None, prompt_file: str | None) -> str:
    """The prompt from where the user says, with no byte changed.

    Raises:
        InputError: given twice or not at all, unreadable, or not UTF-8.
    """
    if prompt is None and prompt_file is None:
        raise InputError("no prompt: give PROMPT, --prompt-file F, or - for standard input")
    if prompt is not None and prompt_file is not None:
        raise InputError(f"prompt must be given once, not as {prompt[:40]!r} and as --prompt-file {prompt_file!r}")
    if prompt is not None and prompt != "-":
        return prompt
    if prompt_file is not None:
        return read_text(prompt_file, "prompt file")
    if sys.stdin is None:
        raise InputError("cannot read standard input: it is closed")
    try:
        data = sys.stdin.buffer.read()
    except OSError as error:
        raise InputError(f"cannot read standard input: {error.strerror}") from None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"standard input must be UTF-8 text; byte {error.start} ({data[error.start]:#04x}) is not"
        ) from None
