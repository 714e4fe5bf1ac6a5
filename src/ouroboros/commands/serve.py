"""``ouroboros serve``: OpenAI's API over a pair of models, on this machine."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import signal
import time
from typing import TYPE_CHECKING

import click

from ouroboros.commands.options import Place, Tools, loading_status, method_settings, pair_options, place_options
from ouroboros.config import METHODS, options_from_strings
from ouroboros.errors import InputError
from ouroboros.prompts import read_text

if TYPE_CHECKING:
    from ouroboros._render import Screen
    from ouroboros.generate import Decoder
    from ouroboros.server.settings import Settings

__all__ = ["serve"]


@click.command(short_help="Serve OpenAI's API.")
@pair_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=int, metavar="N", default=8000, show_default=True, help="0 takes a free one.")
@click.option("--api-key", "keys", multiple=True, metavar="K", help="Lets requests in; each has a memory. Repeatable.")
@click.option("--api-key-file", metavar="F", help="The same from a file, one key a line.")
@click.option("--model-name", metavar="NAME", help="What requests call the model.  [default: the target's]")
@click.option("--max-requests", type=int, metavar="N", default=8, show_default=True, help="Requests that run at once.")
@click.option("--max-queue", type=int, metavar="N", default=64, show_default=True, help="Of more that wait: 429.")
@click.option("--kv-memory", type=float, metavar="GIB", help="Of all KV caches.  [default: half of what is free]")
@click.option("--memory-dir", metavar="DIR", help="Where tenants' memories outlive the server.")
@click.option("--request-timeout", type=float, metavar="S", default=600.0, show_default=True, help="0 for none.")
@click.option("--cors-origin", "origins", multiple=True, metavar="O", help="Pages from there may ask. Repeatable.")
@click.option("--max-tokens", type=int, metavar="N", help="Most new tokens of a request.")
@click.option("--grace", type=float, metavar="S", default=20.0, show_default=True, help="For requests at the end.")
@click.option("--tool-format", metavar="F", help="hermes, mistral, llama3 or generic.  [default: the template's]")
@click.option("--method", type=click.Choice(list(METHODS)), default="ouroboros", show_default=True)
@click.option("--draft-tokens", type=int, metavar="N", help="Short for --set draft_tokens=N.")
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="An option of the method. Repeatable.")
@place_options
@click.option("--pool", metavar="FILE", help="Phrases that all requests read and none changes.")
@click.option("--log", "log", type=click.Choice(["text", "json", "off"]), default="text", show_default=True)
@click.option("--log-prompts", is_flag=True, help="Prompts are in the log.")
@click.pass_obj
def serve(
    tools: Tools,
    target: str | None,
    draft: str | None,
    host: str,
    port: int,
    keys: tuple[str, ...],
    api_key_file: str | None,
    model_name: str | None,
    max_requests: int,
    max_queue: int,
    kv_memory: float | None,
    memory_dir: str | None,
    request_timeout: float,
    origins: tuple[str, ...],
    max_tokens: int | None,
    grace: float,
    tool_format: str | None,
    method: str,
    draft_tokens: int | None,
    assignments: tuple[str, ...],
    place: Place,
    pool: str | None,
    log: str,
    log_prompts: bool,
) -> None:
    """Serve the models to every client that speaks OpenAI's API, until SIGTERM or Ctrl-C."""
    from ouroboros._render import Screen

    options = method_settings(assignments, draft_tokens)
    options_from_strings(method, options)  # to be refused before anything is read
    for name in ("fastapi", "prometheus_client", "uvicorn"):
        if importlib.util.find_spec(name) is None:
            raise InputError(f"serve needs {name}: pip install 'ouroboros-decoding[server]'")
    from ouroboros.server.settings import Settings
    from ouroboros.server.tool_formats import FORMATS

    if tool_format is not None and tool_format not in FORMATS:
        raise InputError(f"--tool-format must be one of {', '.join(FORMATS)}, not {tool_format!r}")
    if kv_memory is not None and not 0 < kv_memory < 1 << 20:
        raise InputError(f"--kv-memory must be a number of GiB above 0, not {kv_memory}")
    settings = Settings(
        model_name=model_name or _name(target),
        host=host,
        port=port,
        api_keys=(*keys, *_keys(api_key_file)),
        max_requests=max_requests,
        max_queue=max_queue,
        kv_memory=None if kv_memory is None else int(kv_memory * (1 << 30)),
        memory_dir=memory_dir,
        request_timeout=request_timeout or None,
        grace=grace,
        cors_origins=origins,
        max_tokens=max_tokens,
        tool_format=tool_format,
        log_prompts=log_prompts,
    )
    screen = Screen()
    began = time.monotonic()
    screen.stage(f"loading {_pair(target, draft)}")
    with tools.interrupts.at_once(screen.restore_cursor), loading_status(screen, target, draft):
        decoder = tools.load(target, draft, method, options, place, pool, pool is not None)
    screen.stage(f"loaded in {time.monotonic() - began:.1f} s")
    _log(log)
    _run(decoder, settings, screen, tools)


def _run(decoder: Decoder, settings: Settings, screen: Screen, tools: Tools) -> None:
    from ouroboros.server.running import Server
    from ouroboros.server.service import Service

    if decoder.tokenizer is None or not decoder.tokenizer.has_chat_template:
        screen.note("no chat template: chats are read as a transcript, User: … and Assistant: …")
    if not settings.api_keys and not settings.local:
        screen.warn(f"no --api-key: whoever reaches {settings.host} can use this server")
    if "*" in settings.cors_origins and not settings.api_keys:
        screen.warn("--cors-origin * without --api-key: every page that a browser here opens can use this server")
    service = Service(decoder, settings)
    try:
        server = Server(service, lambda address: screen.text(f"Ouroboros serves {settings.model_name} at {address}\n"))
        with contextlib.suppress(SystemExit):  # uvicorn's, where it cannot listen
            server.run()
    finally:
        service.close()
    if not server.was_started:
        raise InputError(f"cannot listen on {settings.host} port {settings.port}: it is in use, or not allowed")
    if server.signal == signal.SIGINT:
        raise KeyboardInterrupt


def _pair(target: str | None, draft: str | None) -> str:
    models = "the embedded pair" if target is None else target
    return models if draft is None else f"{models} and {draft}"


def _name(target: str | None) -> str:
    if target is None:
        return "ouroboros"
    return target.rstrip("/").rpartition("/")[2].removesuffix(".gguf") or "ouroboros"


def _keys(path: str | None) -> list[str]:
    if path is None:
        return []
    found = [line.strip() for line in read_text(path, "API key file").splitlines()]
    keys = [line for line in found if line and not line.startswith("#")]
    if not keys:
        raise InputError(f"API key file {path!r} holds no key")
    return keys


class _Text(logging.Formatter):
    """``name value`` pairs of what the JSON lines hold."""

    def format(self, record: logging.LogRecord) -> str:
        import json

        text = super().format(record)
        if not text.startswith("{"):
            return text
        return " ".join(f"{name}={value}" for name, value in json.loads(text).items())


def _log(kind: str) -> None:
    logger = logging.getLogger("ouroboros.server")
    logger.propagate = False
    logger.handlers.clear()
    if kind == "off":
        logger.addHandler(logging.NullHandler())
        return
    handler = logging.StreamHandler()
    handler.setFormatter(_Text() if kind == "text" else logging.Formatter())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
