"""The models of a benchmark: a pair, loaded once for all methods, and the directories where other programs find it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ouroboros.bench.settings import BenchSettings, contestants
from ouroboros.drafting.factory import NEEDS_DRAFT
from ouroboros.errors import InputError
from ouroboros.generate import Decoder
from ouroboros.models.base import CausalModel
from ouroboros.models.grow import write_grown
from ouroboros.models.quantised import QUANTISED
from ouroboros.pairing import EMBEDDED
from ouroboros.text import Tokenizer

__all__ = ["BenchPair", "open_pair"]


@dataclass(frozen=True, slots=True)
class BenchPair:
    """``target_path``, ``draft_path``: directories or hub ids."""

    target: CausalModel
    draft: CausalModel | None
    tokenizer: Tokenizer | None
    target_path: str
    draft_path: str | None


@contextlib.contextmanager
def open_pair(
    settings: BenchSettings, load: Callable[[str | None, str | None, str], Decoder], progress: Callable[[str], None]
) -> Iterator[BenchPair]:
    """Loads the pair; grown models are written to a directory first, which is there as long as the pair is open.

    Args:
        load: a decoder from target, draft and method.

    Raises:
        InputError, LoadError: as ``load`` and ``write_grown``; or a method needs a draft model, and there is none.
    """
    needs_draft = any(one.method in NEEDS_DRAFT for one in contestants(settings))
    if settings.target is not None and settings.draft is None and needs_draft:
        raise InputError(
            f"the methods {' and '.join(sorted(NEEDS_DRAFT))} need a draft model: give draft, or leave them out"
        )
    method = "speculative" if needs_draft else "autoregressive"
    with contextlib.ExitStack() as stack:
        target, draft = settings.target, settings.draft
        if settings.grow is not None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ouroboros-grown-")))
            sources = (target or str(EMBEDDED / "target"), draft or str(EMBEDDED / "draft"))
            rounded = settings.dtype in QUANTISED  # made of bfloat16 when they are loaded
            for name, source, shape in zip(("target", "draft"), sources, settings.grow, strict=True):
                progress(f"growing the {name}")
                write_grown(source, shape, directory / name, "bfloat16" if rounded else settings.dtype)
            target, draft = str(directory / "target"), str(directory / "draft")
        progress("loading")
        decoder = load(target, draft if needs_draft else None, method)
        with contextlib.closing(decoder):
            yield BenchPair(
                decoder.target,
                decoder.draft,
                decoder.tokenizer,
                target or str(EMBEDDED / "target"),
                draft or (str(EMBEDDED / "draft") if settings.target is None else None),
            )
