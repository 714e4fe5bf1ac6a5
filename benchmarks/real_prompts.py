"""Chat prompts for real_pair.py: a set to tune on, a set to report on, or a file of prompts.

Both sets have two requests for code, two for text, two of mathematics, one question, one translation, two questions
about a passage of 500 to 900 tokens and one summary. No prompt is in both. They come from the samples in the package
(src/ouroboros/data/README.md names origins and licences).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ouroboros.bench.tasks import load_task
from ouroboros.prompts import Plain, prompt_rows

__all__ = ["SETS", "ChatPrompt", "digest", "load_prompts"]

# Name of the prompt: its task, and its item there.
SETS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "reporting": {
        "code-1": ("humaneval", "HumanEval/36"),
        "writing-1": ("multi_turn", "81"),
        "mathematics-1": ("math_reasoning", "405"),
        "question-1": ("qa", "337"),
        "translation-1": ("translation", "225"),
        "retrieval-1": ("rag", "481"),
        "code-2": ("multi_turn", "125"),
        "writing-2": ("multi_turn", "85"),
        "mathematics-2": ("multi_turn", "113"),
        "retrieval-2": ("rag", "521"),
        "summary-1": ("summarization", "245"),
    },
    "tuning": {
        "code-1": ("humaneval", "HumanEval/88"),
        "writing-1": ("multi_turn", "83"),
        "mathematics-1": ("math_reasoning", "429"),
        "question-1": ("qa", "393"),
        "translation-1": ("translation", "197"),
        "retrieval-1": ("rag", "533"),
        "code-2": ("multi_turn", "121"),
        "writing-2": ("multi_turn", "155"),
        "mathematics-2": ("multi_turn", "115"),
        "retrieval-2": ("rag", "553"),
        "summary-1": ("summarization", "305"),
    },
}


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A named prompt: the user's words, or token ids or whole messages from a file of the user's own."""

    name: str
    prompt: Plain

    def ask(self, chat: bool) -> Plain:
        """The prompt as a decoder takes it: words become a message for the chat template, if the model has one."""
        if chat and isinstance(self.prompt, str):
            return [{"role": "user", "content": self.prompt}]
        return self.prompt


def load_prompts(name: str, limit: int | None = None) -> list[ChatPrompt]:
    """The first ``limit`` prompts of a built-in set, or of a file as ``ouroboros audit`` reads them.

    Raises:
        InputError: the file cannot be read, or a line of it is no prompt.
    """
    if name not in SETS:
        stem = Path(name).stem
        rows = prompt_rows(name)[:limit]
        return [ChatPrompt(f"{stem}-{number}", prompt) for number, (prompt, _) in enumerate(rows, 1)]
    chosen = list(SETS[name].items())[:limit]
    tasks = {task: {item.id: item for item in load_task(task)} for task in {task for _, (task, _) in chosen}}
    return [ChatPrompt(one, _words(task, tasks[task][item].prompt)) for one, (task, item) in chosen]


def _words(task: str, prompt: Plain) -> str:
    """What a user would write: HumanEval's heads of functions become a request, messages their first one's content."""
    if isinstance(prompt, str):
        assert task == "humaneval", "the other tasks are requests already"
        return f"Complete this Python function.\n\n```python\n{prompt.strip()}\n```"
    first = prompt[0]
    assert isinstance(first, Mapping), "no built-in prompt is token ids"
    return str(first["content"])


def digest(prompts: Sequence[ChatPrompt]) -> str:
    """A short hash by which two runs can tell that they had the same prompts."""
    return hashlib.sha256(repr([(one.name, one.prompt) for one in prompts]).encode()).hexdigest()[:12]
