"""From tasks to prompts of token ids: which are measured, which fill memories, which tune; cutting; further turns."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ouroboros.bench.settings import BenchSettings
from ouroboros.bench.tasks import Item
from ouroboros.errors import InputError
from ouroboros.prompts import encode
from ouroboros.text import Tokenizer

__all__ = ["Plan", "cut", "plan", "token_ids"]

_ROOM = 32  # positions behind the last new token, for the last tree: near the context's end methods draft less
Load = Callable[..., Sequence[Item]]


@dataclass(frozen=True, slots=True)
class Plan:
    """``measured``: all tasks' prompts, the first of each in random order, then the second of each, and so on; so
    that unfinished results have seen all tasks alike. ``warm``: of each task. ``tuning``: from several tasks."""

    measured: tuple[Item, ...]
    warm: Mapping[str, tuple[Item, ...]]
    tuning: tuple[Item, ...]


def plan(settings: BenchSettings, load_task: Load) -> Plan:
    """Each task's first prompts are measured, the next ones warm, the next ones tune.

    Raises:
        InputError: a task has too few prompts, or as ``load_task``.
    """
    sources = dict(settings.sources)
    for name in sources:
        if name not in settings.tasks:
            raise InputError(f"there is a source for {name!r}, which is no task of {', '.join(settings.tasks)}")
    warm_count = settings.warm_prompts if "warm" in settings.states else 0
    rounds: list[list[Item]] = [[] for _ in range(settings.prompts)]
    warm: dict[str, tuple[Item, ...]] = {}
    tuning: list[Item] = []
    total = len(settings.tasks) if settings.tuning_prompts is None else settings.tuning_prompts
    for task, tuning_count in zip(settings.tasks, _shares(total, len(settings.tasks)), strict=True):
        needed = settings.prompts + warm_count + tuning_count
        items = list(load_task(task, source=sources.get(task), limit=needed))
        if len(items) < needed:
            parts = f"{settings.prompts} measured, {warm_count} to warm and {tuning_count} to tune with"
            raise InputError(f"task {task!r} has {len(items)} prompts, and {parts} are {needed}")
        ids = [item.id for item in items]
        if items[0].task in warm or len(set(ids)) < needed:
            raise InputError(f"tasks and their prompts must have names of their own; {items[0].task!r} has one twice")
        for one, item in zip(rounds, items, strict=False):
            one.append(item)
        warm[items[0].task] = tuple(items[settings.prompts : settings.prompts + warm_count])
        tuning += items[settings.prompts + warm_count :]
    for name in settings.ablation_tasks:
        if name not in warm:
            raise InputError(f"ablation_tasks must be some of {', '.join(warm)}, not {name!r}")
    source = random.Random(settings.seed)
    for one in rounds:
        source.shuffle(one)
    return Plan(tuple(item for one in rounds for item in one), warm, tuple(tuning))


def _shares(total: int, parts: int) -> list[int]:
    """``total`` spread evenly over the parts."""
    ends = [total * (i + 1) // parts for i in range(parts)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def token_ids(item: Item, tokenizer: Tokenizer | None, answers: Sequence[Sequence[int]] = ()) -> list[int]:
    """The prompt's tokens, of the turn behind the given answers (their new tokens).

    Raises:
        InputError: a text, and there is no tokenizer; or the prompt is empty.
    """
    chat = tokenizer is not None and tokenizer.has_chat_template
    texts = [] if tokenizer is None else [tokenizer.decode(answer) for answer in answers]
    vocab_size = 2**31  # ids of a user's file are checked where they are decoded
    return encode(item.ask(chat, texts), tokenizer, vocab_size, vocab_size, name=f"prompt {item.id} of {item.task}")


def cut(ids: Sequence[int], settings: BenchSettings, max_positions: int) -> tuple[list[int], int]:
    """The last tokens, as many as the settings and the context leave room for, and how many were cut off.

    Raises:
        InputError: the new tokens alone do not fit.
    """
    limit = max_positions - settings.new_tokens - _ROOM
    if limit < 1:
        raise InputError(f"{settings.new_tokens} new tokens leave no room for a prompt in {max_positions} positions")
    if settings.max_prompt_tokens is not None:
        limit = min(limit, settings.max_prompt_tokens)
    kept = list(ids[-limit:])
    return kept, len(ids) - len(kept)
