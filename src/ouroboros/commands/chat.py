"""``ouroboros chat``: a conversation in the terminal, streamed; every turn goes on in the caches of the last.

With ``--url`` the models are those of a server, in another process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from ouroboros.commands.conversation import Answer, Conversation, Message
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
    from ouroboros.generate import Decoder

__all__ = ["chat"]

_NEW_TOKENS = 1024  # where the user asks for no number: an answer ends by itself
_HERE = (  # options that concern models loaded here, by the command's arguments
    *("target", "draft", "chat_template", "arguments", "control_tokens", "assignments", "pool"),
    *(field.name for field in dataclasses.fields(Place)),
)


@click.command(short_help="Talk with a model.")
@click.option("--url", metavar="U", help="Talk with the server there (http://127.0.0.1:8000) and load no model.")
@click.option("--api-key-file", metavar="F", help="A file whose first line is the server's API key.")
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
    url: str | None,
    api_key_file: str | None,
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
    """Talk with a model: a line, or lines that are pasted at once, are a message; a final backslash goes on.

    Within the conversation: /clear, /undo, /exit, /help. Ctrl-C stops an answer and keeps what was said; at the prompt
    it forgets what was typed, and twice it ends the conversation.
    """
    from ouroboros._render import Screen

    tools: Tools = context.obj
    options = method_settings(assignments)
    options_from_strings(method, options)  # to be refused before anything is read
    if params.logprobs is not None:
        raise InputError("--logprobs is for generate --json: a conversation has no place for them")
    if not _given(context, "max_new_tokens"):
        params = replace(params, max_new_tokens=_NEW_TOKENS)
    opening = [] if system is None else [{"role": "system", "content": system}]
    if url is not None:
        chosen = {"method": method} if _given(context, "method") else {}
        _talk_with_server(context, url, api_key_file, params, chosen, opening, quiet)
        return
    if api_key_file is not None:
        raise InputError("--api-key-file is for a server: it needs --url")
    settings: dict[str, Any] = {"chat_template_kwargs": _arguments(arguments), "control_tokens": control_tokens}
    template = None if chat_template is None else read_text(chat_template, "chat template")
    screen = Screen()
    with tools.interrupts.at_once(screen.restore_cursor), loading_status(screen, target, draft):
        decoder = tools.load(target, draft, method, options, place, pool, False)
    if target is None:
        screen.note("the embedded models continue Python code and answer no questions: give --target for a chat")
    with contextlib.closing(decoder):
        _check_template(decoder, template, settings["chat_template_kwargs"])
        session = decoder.session()

        def ask(messages: Sequence[Message]) -> Answer:
            prompt = Chat(messages, **settings)
            result, interrupted = show_stream(session, prompt, params, screen, tools.interrupts)
            return Answer(result.text or "", interrupted, lambda note: screen.figures(result.stats, note))

        Conversation(ask, screen, tools.interrupts, opening, quiet).run()


def _talk_with_server(
    context: click.Context,
    url: str,
    api_key_file: str | None,
    params: SamplingParams,
    chosen: Mapping[str, Any],
    opening: Sequence[Message],
    quiet: bool,
) -> None:
    from ouroboros._render import Screen
    from ouroboros.commands.remote import RemoteChat, Server, request_fields

    for option in context.command.params:
        if option.name in _HERE and _given(context, option.name):
            raise InputError(f"{option.opts[0]} is for models loaded here, not for --url: a server has its own")
    fields = {**request_fields(params), **chosen}
    server = Server(url, None if api_key_file is None else _key(api_key_file))
    screen = Screen()
    model = server.model()
    screen.note(f"{model} at {url}")
    interrupts = context.obj.interrupts
    ask = RemoteChat(server, {**fields, "model": model}, screen, interrupts)
    Conversation(ask, screen, interrupts, opening, quiet).run()


def _given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _key(path: str) -> str:
    key = (read_text(path, "API key file").splitlines() or [""])[0].strip()
    if not key or not key.isascii() or not key.isprintable():
        raise InputError(f"the first line of the API key file {path!r} must be a key of printable ASCII characters")
    return key


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


def _check_template(decoder: Decoder, template: str | None, arguments: Mapping[str, Any]) -> None:
    words = decoder.tokenizer
    if words is None:
        raise InputError("chat needs a tokenizer, and this model has none")
    if template is not None:
        words.hf.chat_template = template
    if not words.has_chat_template:
        raise InputError("this model's tokenizer has no chat template: give one with --chat-template FILE")
    words.check_arguments(arguments)
