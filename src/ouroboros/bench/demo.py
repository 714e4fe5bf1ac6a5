"""The demonstration's prompts, and all methods measured over them. Prints nothing, and loads no model by itself."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

from ouroboros.config import METHODS, SamplingParams
from ouroboros.stats import Stats

if TYPE_CHECKING:
    from ouroboros.generate import Decoder

__all__ = ["DemoPrompt", "MethodRow", "compare", "demo_prompts", "total"]

_PLAIN = "autoregressive"
_SHOWN = ("HumanEval/36", "HumanEval/58", "HumanEval/60")
_WARM_UP = SamplingParams(max_new_tokens=4)


@dataclass(frozen=True, slots=True)
class DemoPrompt:
    task_id: str
    text: str


@dataclass(frozen=True, slots=True)
class MethodRow:
    """One method over all prompts: its figures, and whether every output was that of plain decoding."""

    method: str
    stats: Stats
    same_text: bool


def demo_prompts() -> tuple[DemoPrompt, ...]:
    """Three short ones of the HumanEval prompts that lie in the package."""
    text = (importlib.resources.files("ouroboros") / "data" / "humaneval.jsonl").read_text(encoding="utf-8")
    rows = {row["task_id"]: row["prompt"] for row in map(json.loads, text.splitlines())}
    return tuple(DemoPrompt(task_id, rows[task_id]) for task_id in _SHOWN)


def compare(
    load: Callable[[str], Decoder],
    prompts: Sequence[DemoPrompt],
    params: SamplingParams,
    progress: Callable[[str], None],
) -> list[MethodRow]:
    """Each method over the same prompts with the same parameters, plain decoding first.

    Args:
        load: a decoder for a method's name, with an empty pool for every call.
        params: with a seed, if it samples, so that all methods draw the same tokens.
        progress: is told what is about to be measured.
    """
    assert params.greedy or params.seed is not None, "without a seed the texts differ anyway"
    rows: list[MethodRow] = []
    plain: list[tuple[int, ...]] = []
    for method in (_PLAIN, *(name for name in METHODS if name != _PLAIN)):
        progress(f"loading for {method}")
        decoder = load(method)
        try:
            decoder.generate(prompts[0].text, params=_WARM_UP)
            results = []
            for n, prompt in enumerate(prompts, 1):
                progress(f"{method}, prompt {n} of {len(prompts)}")
                results.append(decoder.generate(prompt.text, params=params))
        finally:
            decoder.close()
        outputs = [tuple(result.token_ids) for result in results]
        plain = plain or outputs
        rows.append(MethodRow(method, total([result.stats for result in results]), outputs == plain))
    return rows


def total(stats: Sequence[Stats]) -> Stats:
    """The requests counted together: numbers summed; texts and the seed are the first one's."""
    summed: dict[str, object] = {}
    for field in dataclasses.fields(Stats):
        values = [getattr(one, field.name) for one in stats]
        if isinstance(values[0], Mapping):
            counts: Counter[str] = Counter()
            for value in values:
                counts.update(value)
            summed[field.name] = dict(counts)
        elif isinstance(values[0], tuple):
            summed[field.name] = tuple(sum(column) for column in zip_longest(*values, fillvalue=0))
        elif isinstance(values[0], int | float) and field.name != "seed":
            summed[field.name] = sum(values)
    return dataclasses.replace(stats[0], **summed)  # type: ignore[arg-type]
