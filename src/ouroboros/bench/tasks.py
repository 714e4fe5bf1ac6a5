"""What a benchmark asks: tasks, each a list of items with what is needed to judge the answers.

An item's prompt is in one of two forms. Tasks that are completions by their nature (code, few-shot examples) give a
text. Tasks that are requests (Spec-Bench, summaries, translation) give messages for the chat template, further turns
in ``turns``; for a model without a template ``Item.ask`` writes the conversation as a transcript. The prompts are those
of the papers and harnesses named at each task. Samples of what is freely licensed lie in the package (data/README.md).
"""

from __future__ import annotations

import importlib.resources
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ouroboros.bench.sources import Row, read_rows
from ouroboros.errors import InputError
from ouroboros.prompts import Message, Plain, prompt_rows

__all__ = ["Item", "load_task", "task_names"]

# Zheng et al. 2023: MT-bench's categories, which Spec-Bench measures together.
_MT_BENCH = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
_SPEC_BENCH = ("multi_turn", "translation", "summarization", "qa", "math_reasoning", "rag")


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt of a task.

    Attributes:
        task: the task's name, or a file's stem. id: the item's own name in its task.
        prompt: a text, token ids (only from a user's file), or messages.
        turns: further turns of the user, to be asked one after another with the model's answers between.
        reference: what ``quality`` needs to judge an answer; empty where there is nothing to judge by.
    """

    task: str
    id: str
    prompt: Plain
    turns: tuple[str, ...] = ()
    reference: Mapping[str, Any] = field(default_factory=dict)

    def ask(self, chat: bool, answers: Sequence[str] = ()) -> Plain:
        """The prompt of the turn behind the given answers, as the tokenizer takes it.

        Args:
            chat: whether there is a chat template; without one a conversation becomes a transcript.
            answers: the model's answers to the turns before, at most ``len(self.turns)``.
        """
        assert len(answers) <= len(self.turns), "no turn is left"
        if isinstance(self.prompt, str) or not isinstance(self.prompt[0], Mapping):
            assert not answers, "only conversations have turns"
            return self.prompt
        messages: list[Message] = [message for message in self.prompt if isinstance(message, Mapping)]
        for answer, turn in zip(answers, self.turns, strict=False):
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": turn}]
        if chat:
            return tuple(messages)
        lines = (f"{str(message['role']).capitalize()}: {str(message['content']).strip()}" for message in messages)
        return "\n\n".join(lines) + "\n\nAssistant:"


@dataclass(frozen=True, slots=True)
class _Task:
    """How a task's rows become items.

    Attributes:
        item: makes id (None: its number), prompt, further turns and reference of a row. fields: what a row must have.
        part: as ``read_rows`` takes it. sample: the package's file. origin: where a task without one is to be had.
        keep: which rows of the file are this task's.
    """

    item: Callable[[Row], tuple[Any, Plain, Sequence[str], Mapping[str, Any]]]
    fields: tuple[str, ...]
    part: str
    sample: str | None = None
    origin: str = ""
    keep: Callable[[Row], bool] = lambda row: True


def task_names() -> tuple[str, ...]:
    return tuple(_TASKS)


def load_task(name: str, *, source: str | None = None, limit: int | None = None, offset: int = 0) -> list[Item]:
    """The items ``offset`` to ``offset + limit`` of a task, in the order of their file.

    Args:
        name: one of ``task_names``, or the path of a file of prompts as ``audit`` and ``distill`` read them.
        source: a known task's file as published (JSON lines, a JSON array, either as .gz; parquet; a WMT test set's
            ``…-src.de.sgm`` or ``….de``; a folder of CNN/DailyMail's .story files) or a dataset on the hub; without
            it the package's sample. A file of prompts has none.

    Raises:
        InputError: an unknown task, a task without a sample and no source, a file that is not as it should be, or
            nothing left behind ``offset``.
    """
    if offset < 0 or (limit is not None and limit < 1):
        raise InputError(f"offset must be at least 0 and limit at least 1, not {offset} and {limit}")
    items = _items(name, source)
    if offset >= len(items):
        raise InputError(f"offset must be under {len(items)}, the number of items of {name!r}, not {offset}")
    return items[offset : None if limit is None else offset + limit]


def _items(name: str, source: str | None) -> list[Item]:
    if name not in _TASKS:
        if source is not None:
            raise InputError(f"source is for the known tasks ({', '.join(_TASKS)}), not for {name!r}")
        if not Path(name).is_file():
            raise InputError(f"task must be one of {', '.join(_TASKS)}, or a file of prompts, not {name!r}")
        return [_own(Path(name).stem, n, prompt, row) for n, (prompt, row) in enumerate(prompt_rows(name), 1)]
    task = _TASKS[name]
    if source is None and task.sample is None:
        raise InputError(f"no sample of {name} lies in the package: {task.origin}")
    rows = _sample(task.sample) if source is None and task.sample else read_rows(source or "", task.part)
    items = []
    for n, row in enumerate(rows, 1):
        missing = [wanted for wanted in task.fields if row.get(wanted) in (None, "", [])]
        if missing:
            raise InputError(f"item {n} of {source!r} is none of {name}: it has no {', '.join(missing)}")
        try:
            if task.keep(row):
                identity, prompt, turns, reference = task.item(row)
                items.append(Item(name, str(n if identity is None else identity), prompt, tuple(turns), reference))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"item {n} of {source!r} is none of {name} ({type(error).__name__}: {error})") from error
    if not items:
        raise InputError(f"{source!r} has no item of {name}")
    return items


def _sample(name: str) -> list[Row]:
    text = (importlib.resources.files("ouroboros") / "data" / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def _own(task: str, number: int, prompt: Plain, row: Row) -> Item:
    """An item of a user's file; a line with "turns" is a conversation."""
    identity = next((row[name] for name in ("task_id", "question_id", "id") if name in row), number)
    turns = row.get("turns")
    if isinstance(turns, list) and isinstance(prompt, str) and turns[0] == prompt:
        if not all(isinstance(turn, str) and turn for turn in turns):
            raise InputError(f"the turns of item {identity} of {task!r} must all be texts")
        return Item(task, str(identity), _user(prompt), tuple(turns[1:]))
    return Item(task, str(identity), prompt)


def _user(text: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": text},)


def _humaneval(row: Row) -> tuple[Any, Plain, Sequence[str], Mapping[str, Any]]:
    """Chen et al. 2021: the function's head and docstring as they are."""
    reference = {name: row[name] for name in ("test", "entry_point") if name in row}
    return row.get("task_id"), row["prompt"], (), reference if len(reference) == 2 else {}


def _mbpp(row: Row) -> tuple[Any, Plain, Sequence[str], Mapping[str, Any]]:
    """The request and the first test as a docstring: Fried et al. 2022 (InCoder), as BigCode's harness has it.

    The "sanitized" file has the request in ``prompt`` and imports of the tests in ``test_imports``.
    """
    setup = "\n".join([row.get("test_setup_code") or "", *(row.get("test_imports") or ())]).strip()
    request = str(row.get("text") or row["prompt"]).strip()
    reference = {"setup": setup, "tests": tuple(row["test_list"])}
    return row.get("task_id"), f'"""\n{request}\n{row["test_list"][0]}\n"""\n', (), reference


def _gsm8k(row: Row) -> tuple[Any, Plain, Sequence[str], Mapping[str, Any]]:
    """Wei et al. 2022, table 20: eight exemplars with a chain of thought, then the question."""
    shots = "".join(f"Q: {shot['question']}\nA: {shot['answer']}\n\n" for shot in _sample("gsm8k_shots.jsonl"))
    return None, f"{shots}Q: {row['question']}\nA:", (), {"answer": _after_marks(row["answer"])}


def _summary(row: Row) -> tuple[Any, Plain, Sequence[str], Mapping[str, Any]]:
    """As Spec-Bench asks for summaries of the same articles."""
    return row.get("id"), _user(f"Summarize: {row['article']}"), (), {"summary": row.get("highlights", "")}


def _translation(row: Row) -> tuple[Any, Plain, Sequence[str], Mapping[str, Any]]:
    """As Spec-Bench asks for translations."""
    pair = row["translation"]
    return None, _user(f"Translate German to English: {pair['de']}"), (), {"translation": pair.get("en") or ""}


def _question(row: Row) -> tuple[Any, Plain, Sequence[str], Mapping[str, Any]]:
    """Xia et al. 2024 (Spec-Bench): the turns as they are."""
    first, *others = row["turns"]
    answers: Sequence[str] = row.get("reference") or ()
    mathematical = row["category"] == "math_reasoning" and answers and "####" in answers[0]
    return row.get("question_id"), _user(first), others, {"answer": _after_marks(answers[0])} if mathematical else {}


def _after_marks(answer: str) -> str:
    """GSM8K's answers end with ``#### 1,000``."""
    return re.sub(r"[,$]", "", answer.rpartition("####")[2]).strip()


def _category(name: str) -> Callable[[Row], bool]:
    wanted = (name, *_MT_BENCH) if name == "multi_turn" else (name,)
    return lambda row: row["category"] in wanted


_CNN = (
    "give source=… as the folder of its .story files, a JSON-lines file with article and highlights, or the dataset "
    "'abisee/cnn_dailymail' on the hub"
)
_WMT = (
    "give source=… as 'newstest2016-deen-src.de.sgm' with '…-ref.en.sgm' beside it, a JSON-lines file with "
    "translation.de and .en, or the dataset 'wmt/wmt16' on the hub"
)
_TASKS: Mapping[str, _Task] = {
    "humaneval": _Task(_humaneval, ("prompt",), "openai_humaneval/test", "humaneval.jsonl"),
    "mbpp": _Task(_mbpp, ("test_list",), "full/test", "mbpp.jsonl"),
    "gsm8k": _Task(_gsm8k, ("question", "answer"), "main/test", "gsm8k.jsonl"),
    "cnn_dailymail": _Task(_summary, ("article",), "3.0.0/test", origin=_CNN),
    "wmt16_de_en": _Task(_translation, ("translation",), "de-en/test", origin=_WMT),
    **{
        name: _Task(_question, ("category", "turns"), "question", "spec_bench.jsonl", keep=_category(name))
        for name in _SPEC_BENCH
    },
}
