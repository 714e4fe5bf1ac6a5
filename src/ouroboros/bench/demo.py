"""The demonstration: its pair, its prompts, and what each method made of them. Prints nothing."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

from ouroboros.config import METHODS
from ouroboros.stats import Stats

if TYPE_CHECKING:
    from ouroboros.generate import Decoder
    from ouroboros.stream import GenerationResult

__all__ = ["PLAIN", "DemoPrompt", "MethodRow", "beside", "demo_prompts", "grown_pair", "others", "row_of", "total"]

PLAIN = "autoregressive"
_SHOWN = ("HumanEval/36", "HumanEval/58", "HumanEval/60")
# Layers of the grown target and draft model: ready in five seconds on one core, and 13 times a processor's cache of
# 32 MB, so that a forward waits for memory as a large model's does. The widths are those of the shapes 0.35b and 62m.
_TARGET_LAYERS, _DRAFT_LAYERS = 16, 5


@dataclass(frozen=True, slots=True)
class DemoPrompt:
    task_id: str
    text: str


@dataclass(frozen=True, slots=True)
class MethodRow:
    """One method over all prompts: its figures, and for how many of them it wrote another text than plain decoding."""

    method: str
    stats: Stats
    other_texts: int

    @property
    def seconds(self) -> float:
        """From each request to its last token, the reading of its prompt included."""
        stats = self.stats
        return stats.prefill_seconds + stats.draft_prefill_seconds + stats.decode_seconds


def demo_prompts() -> tuple[DemoPrompt, ...]:
    """Three short ones of the HumanEval prompts that lie in the package."""
    text = (importlib.resources.files("ouroboros") / "data" / "humaneval.jsonl").read_text(encoding="utf-8")
    rows = {row["task_id"]: row["prompt"] for row in map(json.loads, text.splitlines())}
    return tuple(DemoPrompt(task_id, rows[task_id]) for task_id in _SHOWN)


def grown_pair(dtype: str = "auto", device: str = "auto", engine: str = "auto", threads: int | None = None) -> Decoder:
    """The embedded pair grown to the cost of a larger one (models/grow.py): it writes what it wrote before.

    ``dtype``: ``auto`` for bfloat16, with a draft model in w8a8, where the C++ kernels compute, and for float32 where
    they do not. ``device``: ``auto`` is the processor, which is what these sizes are made for.

    Raises:
        InputError, LoadError: as ``load_grown``.
    """
    from ouroboros.generate import Decoder
    from ouroboros.kernels.library import library
    from ouroboros.models.grow import PRESETS, load_grown
    from ouroboros.opening import use_threads
    from ouroboros.pairing import EMBEDDED
    from ouroboros.phrases.memory import Memory
    from ouroboros.text import Tokenizer

    use_threads(threads)
    device = "cpu" if device == "auto" else device
    draft_dtype = dtype
    if dtype == "auto":
        kernels = device == "cpu" and engine in ("auto", "kernels") and not isinstance(library(), str)
        dtype, draft_dtype = ("bfloat16", "w8a8") if kernels else ("float32", "float32")
    large = dataclasses.replace(PRESETS["0.35b"], num_hidden_layers=_TARGET_LAYERS)
    small = dataclasses.replace(PRESETS["62m"], num_hidden_layers=_DRAFT_LAYERS, intermediate_size=1664)
    target = load_grown(EMBEDDED / "target", large, dtype, device, engine=engine)
    draft = load_grown(EMBEDDED / "draft", small, draft_dtype, device, engine=engine)
    return Decoder(target, draft, Tokenizer.from_directory(EMBEDDED / "target"), memory=Memory())


def beside(decoder: Decoder, method: str) -> Decoder:
    """Another method with the models of ``decoder``, with a memory of its own."""
    from ouroboros.drafting.factory import NEEDS_DRAFT
    from ouroboros.generate import Decoder
    from ouroboros.phrases.memory import Memory

    draft = decoder.draft if method in NEEDS_DRAFT else None
    return Decoder(decoder.target, draft, decoder.tokenizer, method, memory=Memory(), control=decoder.control)


def others(decoder: Decoder) -> tuple[str, ...]:
    """The methods that these models can do beside plain decoding and the decoder's own."""
    from ouroboros.drafting.factory import NEEDS_DRAFT

    shown = (PLAIN, decoder.method)
    return tuple(name for name in METHODS if name not in shown and (decoder.draft or name not in NEEDS_DRAFT))


def row_of(method: str, results: Sequence[GenerationResult], plain: Sequence[GenerationResult]) -> MethodRow:
    """``results``: of the prompts, in the order of plain decoding's."""
    differ = sum(tuple(one.token_ids) != tuple(other.token_ids) for one, other in zip(results, plain, strict=True))
    return MethodRow(method, total([result.stats for result in results]), differ)


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
