"""``ouroboros chat``: a conversation in the terminal, streamed; every turn goes on in the caches of the last."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from ouroboros.commands.generate import show_stream
from ouroboros.commands.options import (
    Place,
    Tools,
    loading_status,
    method_settings,
    pair_options,
    place_options,
    sampling_options,
)
from ouroboros.config import METHODS, SamplingParams, options_from_strings
from ouroboros.errors import InputError
from ouroboros.prompts import Chat, read_text

if TYPE_CHECKING:
    from ouroboros._render import Screen
    from ouroboros.generate import Decoder, Session

__all__ = ["chat"]

_NEW_TOKENS = 1024  # where the user asks for no number: an answer ends by itself
_HELP = "/clear begins anew, /undo takes back the last turn, /exit ends (as Ctrl-D does); Ctrl-C stops an answer"


@click.command(short_help="Talk with a model.")
@pair_options
@click.option("--system", metavar="TEXT", help="A system message to begin with.")
@click.option("--chat-template", metavar="F", help="A Jinja file in place of the tokenizer's own chat template.")
@click.option(
    "--template-arg",
    "arguments",
    multiple=True,
    metavar="NAME=VALUE",
    help="An argument of the chat template, such as enable_thinking=false: JSON or a text. Repeatable.",
)
@click.option("--control-tokens", is_flag=True, help="Read control tokens such as <|im_end|> in what you type as such.")
@click.option("--method", type=click.Choice(list(METHODS)), default="ouroboros", show_default=True)
@sampling_options
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="An option of the method. Repeatable.")
@place_options
@click.option("--pool", metavar="FILE", help="Phrase pool: read it if it exists, and save it at the end.")
@click.option("--quiet", is_flag=True, help="No figures behind each answer.")
@click.pass_context
def chat(
    context: click.Context,
    target: str | None,
    draft: str | None,
    system: str | None,
    chat_template: str | None,
    arguments: tuple[str, ...],
    control_tokens: bool,
    method: str,
    params: SamplingParams,
    assignments: tuple[str, ...],
    place: Place,
    pool: str | None,
    quiet: bool,
) -> None:
    """Talk with a model: a line is a message; a line that ends in a backslash goes on in the next.

    Within the conversation: /clear, /undo, /exit, /help. Ctrl-C stops an answer and keeps what was said.
    """
    from ouroboros._render import Screen

    tools: Tools = context.obj
    options = method_settings(assignments)
    options_from_strings(method, options)  # to be refused before anything is read
    if params.logprobs is not None:
        raise InputError("--logprobs is for generate --json: a conversation has no place for them")
    if context.get_parameter_source("max_new_tokens") is not click.core.ParameterSource.COMMANDLINE:
        params = replace(params, max_new_tokens=_NEW_TOKENS)
    settings: dict[str, Any] = {"chat_template_kwargs": _arguments(arguments), "control_tokens": control_tokens}
    template = None if chat_template is None else read_text(chat_template, "chat template")
    screen = Screen()
    with tools.interrupts.at_once(screen.restore_cursor), loading_status(screen, target, draft):
        decoder = tools.load(target, draft, method, options, place, pool, False)
    with contextlib.closing(decoder):
        _check_template(decoder, template, settings["chat_template_kwargs"])
        opening = [] if system is None else [{"role": "system", "content": system}]
        _Conversation(decoder, tools, screen, params, opening, settings, quiet).run()


class _Conversation:
    def __init__(
        self,
        decoder: Decoder,
        tools: Tools,
        screen: Screen,
        params: SamplingParams,
        opening: list[dict[str, str]],
        settings: Mapping[str, Any],
        quiet: bool,
    ) -> None:
        self._session: Session = decoder.session()
        self._tools, self._screen, self._params, self._quiet = tools, screen, params, quiet
        self._opening, self._settings = opening, settings
        self._messages = list(opening)

    def run(self) -> None:
        self._screen.note(_HELP)
        if not self._quiet:
            self._screen.legend()
        for line in _lines(self._screen):
            match line.strip():
                case "":
                    continue
                case "/exit" | "/quit":
                    return
                case "/help":
                    self._screen.note(_HELP)
                case "/clear":
                    self._messages = list(self._opening)
                case "/undo":
                    del self._messages[max(len(self._opening), len(self._messages) - 2) :]
                case command if command.startswith("/"):
                    self._screen.warn(f"no such command: {command!r} ({_HELP})")
                case _:
                    self._turn(line)

    def _turn(self, line: str) -> None:
        asked = [*self._messages, {"role": "user", "content": line}]
        try:
            chat = Chat(asked, **self._settings)
            result, interrupted = show_stream(self._session, chat, self._params, self._screen, self._tools.interrupts)
        except InputError as error:  # the conversation has become too long, say
            self._screen.warn(str(error))
            return
        if interrupted:
            self._tools.interrupts.forgive()
        self._messages = [*asked, {"role": "assistant", "content": result.text or ""}]
        self._screen.text("\n")
        if not self._quiet:
            self._screen.figures(result.stats, " (stopped)" if interrupted else "")


def _arguments(assignments: Sequence[str]) -> dict[str, Any]:
    """Of a template, from ``name=value`` texts."""
    found: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name or name in found:
            raise InputError(f"--template-arg must be NAME=VALUE, each name once, not {assignment!r}")
        try:
            found[name] = json.loads(value)
        except (ValueError, RecursionError):
            found[name] = value
    return found


def _lines(screen: Screen) -> Iterator[str]:
    """The user's messages, until the input ends."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # gives ``input`` its line editing and its history
    while True:
        parts: list[str] = []
        while True:
            try:
                parts.append(input("" if not sys.stdin.isatty() else "... " if parts else ">>> "))
            except EOFError:
                if parts:
                    yield "\n".join(parts)
                elif sys.stdin.isatty():
                    screen.text("\n")
                return
            except UnicodeDecodeError as error:
                raise InputError(
                    f"standard input must be UTF-8 text, not with the byte {error.object[error.start]:#04x}"
                ) from None
            if not parts[-1].endswith("\\"):
                break
            parts[-1] = parts[-1][:-1]
        yield "\n".join(parts)


def _check_template(decoder: Decoder, template: str | None, arguments: Mapping[str, Any]) -> None:
    words = decoder.tokenizer
    if words is None:
        raise InputError("chat needs a tokenizer, and this model has none")
    if template is not None:
        words.hf.chat_template = template
    if not words.has_chat_template:
        raise InputError("this model's tokenizer has no chat template: give one with --chat-template FILE")
    words.check_arguments(arguments)
