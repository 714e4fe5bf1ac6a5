"""``ouroboros bench throughput``: many requests at once, methods side by side, and llama.cpp's server beside them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from ouroboros.bench.settings import PLAIN
from ouroboros.commands.options import Place, Tools, loading_status, pair_options, place_options, to_json
from ouroboros.config import METHODS
from ouroboros.errors import InputError

if TYPE_CHECKING:
    from ouroboros.bench.throughput import Arrivals, Measured
    from ouroboros.generate import Decoder

__all__ = ["throughput"]

TASKS = ("humaneval", "gsm8k", "summarization")


@click.command(short_help="Many requests at once: tokens per second, waits.")
@pair_options
@click.option("--concurrency", metavar="N,N,…", help="Requests at once.  [default: 1,2,4,8]")
@click.option("--rate", metavar="X,X,…", help="Requests a second, arriving at random.")
@click.option("--method", "methods", type=click.Choice(list(METHODS)), multiple=True,
              help="Repeatable.  [default: ouroboros, autoregressive]")  # fmt: skip
@click.option("--task", "tasks", multiple=True, metavar="NAME",
              help=f"A task or a file of prompts. Repeatable.  [default: {', '.join(TASKS)}]")  # fmt: skip
@click.option("--requests", type=int, metavar="N", default=16, show_default=True, help="Of each run.")
@click.option("--new-tokens", type=int, metavar="N", default=128, show_default=True, help="Of each request.")
@click.option("--max-prompt-tokens", type=int, metavar="N", help="Longer prompts are cut from the left.")
@click.option("--temperature", "temperatures", type=float, multiple=True, metavar="X",
              help="Repeatable.  [default: 0]")  # fmt: skip
@click.option("--max-requests", type=int, metavar="N", help="That run at once.  [default: the concurrency, or 8]")
@click.option("--kv-memory", type=float, metavar="GIB", help="That all KV caches take at most.")
@click.option("--llama-server", metavar="FILE", help="Also llama.cpp's server on this GGUF file.")
@click.option("--seed", type=int, metavar="N", default=0, show_default=True)
@place_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object in place of the tables.")
@click.pass_obj
def throughput(
    tools: Tools,
    target: str | None,
    draft: str | None,
    concurrency: str | None,
    rate: str | None,
    methods: tuple[str, ...],
    tasks: tuple[str, ...],
    requests: int,
    new_tokens: int,
    max_prompt_tokens: int | None,
    temperatures: tuple[float, ...],
    max_requests: int | None,
    kv_memory: float | None,
    llama_server: str | None,
    seed: int,
    place: Place,
    as_json: bool,
) -> None:
    """Serve the same requests with each method, so many at once or so many a second, and tell what each waited."""
    from ouroboros._render import Screen
    from ouroboros.bench.throughput import Arrivals, as_rows, report

    counts, rates = _numbers("--concurrency", concurrency, int), _numbers("--rate", rate, float)
    counts = counts or ([] if rates else [1, 2, 4, 8])
    for name, value in (("--requests", requests), ("--new-tokens", new_tokens), ("--max-requests", max_requests)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be a whole number of at least 1, not {value}")
    arrivals = [Arrivals(concurrency=int(n)) for n in counts] + [Arrivals(rate=x) for x in rates]
    chosen = methods or ("ouroboros", PLAIN)
    screen = Screen()
    with tools.interrupts.at_once(screen.restore_cursor), loading_status(screen, target, draft):
        from ouroboros.drafting.factory import NEEDS_DRAFT

        method = next((one for one in chosen if one in NEEDS_DRAFT), chosen[0])
        decoder = tools.load(target, draft, method, {}, place, False, False)
    memory = None if kv_memory is None else int(kv_memory * 2**30)
    prompts = _prompts(decoder, tasks or TASKS, requests, new_tokens, max_prompt_tokens)
    found: list[Measured] = []
    with contextlib.closing(decoder):
        for number, (when, temperature) in enumerate((w, t) for t in temperatures or (0.0,) for w in arrivals):
            with screen.status(f"{when.label}, temperature {temperature:g} ({number + 1})"):
                places = max_requests or when.concurrency or 8
                asked = prompts, new_tokens, temperature, seed
                found += _run(decoder, chosen, when, asked, places, memory, llama_server)
            tools.interrupts.check()
    screen.text(to_json({"runs": as_rows(found)}) if as_json else report(found) + "\n")


def _run(
    decoder: Decoder,
    methods: tuple[str, ...],
    arrivals: Arrivals,
    asked: tuple[list[list[int]], int, float, int],
    places: int,
    memory: int | None,
    llama_file: str | None,
) -> list[Measured]:
    import torch

    from ouroboros.bench.services import EngineService, LlamaServer
    from ouroboros.bench.throughput import Task, measure
    from ouroboros.drafting.factory import NEEDS_DRAFT
    from ouroboros.generate import Decoder as Made
    from ouroboros.phrases.memory import Memory
    from ouroboros.serving.engine import Engine

    prompts, new_tokens, temperature, seed = asked
    tasks = [Task(prompt, new_tokens, temperature, seed + i) for i, prompt in enumerate(prompts)]
    found = []
    for method in methods:
        draft = decoder.draft if method in NEEDS_DRAFT else None
        own = Made(decoder.target, draft, decoder.tokenizer, method, None, Memory(), control=decoder.control)
        with Engine(own, places, memory) as engine:
            found.append(measure(EngineService(method, engine), tasks, arrivals, seed))
    if llama_file is not None:
        positions = max(len(prompt) for prompt in prompts) + new_tokens + 8
        with LlamaServer(llama_file, places, positions, torch.get_num_threads()) as server:
            found.append(measure(server, tasks, arrivals, seed))
    return found


def _prompts(
    decoder: Decoder, tasks: tuple[str, ...], requests: int, new_tokens: int, most: int | None
) -> list[list[int]]:
    """Of all tasks in turn, as many as there are requests; from the beginning again where there are fewer."""
    from ouroboros.bench.cases import token_ids
    from ouroboros.bench.tasks import load_task

    each = -(-requests // len(tasks))
    lists = [[token_ids(item, decoder.tokenizer) for item in load_task(name)[:each]] for name in tasks]
    limit = decoder.target.info.max_positions - new_tokens
    if limit < 1:
        raise InputError(f"{new_tokens} new tokens leave no room for a prompt")
    limit = limit if most is None else min(limit, most)
    return [lists[i % len(tasks)][i // len(tasks) % len(lists[i % len(tasks)])][-limit:] for i in range(requests)]


def _numbers(option: str, text: str | None, kind: type[int] | type[float]) -> list[float]:
    try:
        return [] if text is None else [kind(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} must be numbers with commas between, not {text!r}") from None
