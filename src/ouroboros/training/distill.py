"""A draft trained for its target, from files of prompts to a directory: the stages, in their order.

    beginning    a given draft, a pruned copy of the target, or random weights
    generations  the target's own text on the prompts, by the library's own decoding; also on those set aside
    before       what the draft that it begins with is worth
    rounds       a loss is chosen, the draft is trained and written (rounds.py)
    after        what it is worth now

Each stage leaves files by which it is skipped when the run is resumed. The target is held by the engine or as a module
that teaches, in turns, so that a device need not hold it twice.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ouroboros.errors import InputError, LoadError
from ouroboros.generate import Decoder
from ouroboros.models.loading import pick_device, resolve
from ouroboros.pairing import load
from ouroboros.phrases.memory import Memory
from ouroboros.phrases.storage import save_pool
from ouroboros.text import Tokenizer
from ouroboros.training.measure import Measured, measure
from ouroboros.training.modules import choose_sizes, new_module, prune, read_module, stored_dtype, write_module
from ouroboros.training.prompts import Material, gather
from ouroboros.training.records import Job, Record, jobs_for, phrases_of, record
from ouroboros.training.report import DistillReport, write_report
from ouroboros.training.rounds import Rounds
from ouroboros.training.settings import DistillSettings, Progress
from ouroboros.training.workspace import Workspace

__all__ = ["distill"]


def distill(
    settings: DistillSettings, progress: Progress = lambda stage, done, total, note: None, resume: bool = False
) -> DistillReport:
    """Trains a draft and writes it to ``settings.out``.

    Args:
        progress: told of every step forward. resume: go on with the interrupted run in ``settings.out``.

    Raises:
        InputError: settings or files that do not fit together. LoadError: a model that cannot be read, or a draft with
            another tokenizer. PoolFileError: the pool's file cannot be written.
    """
    run = _Run(settings, progress, resume)
    written = run.generate()
    before = run.measured("before", run.beginning)
    return run.train(written, before)


@dataclass(frozen=True, slots=True)
class _Written:
    """The target's text: to train on, to choose a loss by, to measure with; and how many phrases a pool got of it."""

    train: list[Record]
    chosen_by: list[Record]
    held_out: list[Record]
    phrases: int | None


class _Run:
    def __init__(self, settings: DistillSettings, progress: Progress, resume: bool) -> None:
        self.settings = settings
        self.progress = progress
        self.seconds: dict[str, float] = {}
        self.device = pick_device(settings.device)
        self.target_path = resolve(settings.target)
        self.tokenizer = Tokenizer.from_directory(self.target_path)
        self.stored = stored_dtype(self.target_path)
        if settings.pool is not None and not Path(settings.pool).absolute().parent.is_dir():
            raise InputError(f"pool {settings.pool!r} cannot be made: there is no such directory")
        self.draft_path = None if settings.draft is None else resolve(settings.draft)
        if self.draft_path is not None:
            _check_tokenizers(self.tokenizer, Tokenizer.from_directory(self.draft_path), str(settings.draft))
        with self._target() as target:
            self.target_parameters = _count(target)
            self.material = self._gather(target.config)  # what is wrong shows before a directory is made
            beginning = self._beginning(target)
            del target
        self.space = Workspace(settings, resume)
        self._check_unchanged()
        self.beginning = self.draft_path or self.space.path("beginning")
        if beginning is not None and not self.space.read("begun"):
            write_module(beginning, self.beginning, torch.float32, self.target_path)
            self.space.write("begun", True)

    # ------------------------------------------------------------------------------------------------------- stages

    def _beginning(self, target: Any) -> Any | None:
        """The draft that it begins with; None for one that was given."""
        if self.settings.start == "draft":
            return None
        if self.settings.start == "pruned":
            assert self.settings.layers is not None
            return prune(target, self.settings.layers)
        return new_module(choose_sizes(self.settings, int(target.config.vocab_size)), target, self.settings.seed)

    def generate(self) -> _Written:
        """Has the target write, and fills the pool."""
        settings, material = self.settings, self.material
        train = jobs_for(material.train, settings.temperatures, settings.samples, settings.seed)
        with self._engine() as decoder:
            written = [
                self._record(decoder, name, jobs)
                for name, jobs in (
                    ("generations", train),
                    ("selection", self._measuring(material.selection)),
                    ("held-out", self._measuring(material.held_out)),
                )
            ]
            phrases = None
            if settings.pool is not None:
                pool = phrases_of(written[0])
                save_pool(Memory(pool), settings.pool, decoder.fingerprint)
                phrases = len(pool)
        return _Written(written[0], written[1], written[2], phrases)

    def measured(self, name: str, draft: Path) -> list[Measured]:
        """Real decoding of the held-out prompts with the draft in a directory; read, where it was measured before."""
        kept = self.space.read(name)
        if kept is not None:
            return [Measured.from_dict(one) for one in kept]
        settings, jobs = self.settings, self._measuring(self.material.held_out)
        with self._engine() as decoder, self._timed(f"measuring {name}"):
            tell = partial(self._count_up, f"measuring {name}")
            found = measure(decoder, draft, jobs, settings.new_tokens, settings.gamma, tell)
        self.space.write(name, [asdict(one) for one in found])
        return found

    def train(self, written: _Written, before: Sequence[Measured]) -> DistillReport:
        """Trains, writes and measures the draft."""
        settings, out = self.settings, self.space.out
        with self._target() as target:
            places = self.material.texts, self.beginning, self.target_path
            rounds = Rounds(settings, self.space, self.progress, target, *places, self._draft_writes)
            with self._timed("trials"):
                loss, trials = rounds.choose(written.train, written.chosen_by)
            with self._timed("training"):
                draft = rounds.train(loss, written.train, written.held_out)
            kind = self.stored if settings.save_dtype == "auto" else getattr(torch, settings.save_dtype)
            write_module(draft, out, kind, self.target_path)
            size, final_loss, figures, learned = _count(draft), rounds.final_loss, rounds.figures, rounds.learned
            del target, rounds, draft
        after = self.measured("after", out)
        report = DistillReport(
            settings=settings,
            loss=loss,
            trials=trials,
            final_loss=final_loss,
            before=before,
            after=after,
            rounds=figures,
            train_prompts=len(self.material.train),
            train_tokens=learned,
            draft_parameters=size,
            target_parameters=self.target_parameters,
            seconds=self.seconds,
            phrases=written.phrases,
        )
        write_report(report, out)
        self.space.remove()
        return report

    # ------------------------------------------------------------------------------------------------------- pieces

    def _gather(self, config: Any) -> Material:
        settings = self.settings
        positions = int(getattr(config, "max_position_embeddings", 2**31))
        limit = min(settings.length - 1, positions - settings.new_tokens)
        selection = settings.held_out if settings.loss == "auto" else 0
        sources = settings.prompts, settings.texts, self.tokenizer, int(config.vocab_size)
        return gather(*sources, limit, settings.held_out, selection, settings.seed)

    def _check_unchanged(self) -> None:
        known = self.space.read("material")
        if known is None:
            self.space.write("material", self.material.digest)
        elif known != self.material.digest:
            raise InputError(f"the prompts or texts have changed since the training in {self.settings.out!r} began")

    def _measuring(self, prompts: Sequence[Sequence[int]]) -> list[Job]:
        return jobs_for(prompts, self.settings.measure_temperatures, 1, self.settings.seed, every=True)

    def _record(self, decoder: Decoder, name: str, jobs: Sequence[Job]) -> list[Record]:
        path = self.space.path(f"{name}.jsonl")
        with self._timed(name):
            return record(decoder, jobs, self.settings.new_tokens, path, partial(self._count_up, name))

    def _draft_writes(self, directory: Path, name: str, jobs: Sequence[Job]) -> list[Record]:
        with self._engine(directory) as decoder:
            return self._record(decoder, name, jobs)

    def _count_up(self, stage: str, done: int, total: int) -> None:
        self.progress(stage, done, total, "")

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began

    @contextmanager
    def _target(self) -> Iterator[Any]:
        """The target as a module that teaches."""
        wide = self.settings.dtype == "float32" or (self.settings.dtype == "auto" and self.device.type == "cpu")
        yield read_module(self.target_path, torch.float32 if wide else self.stored, self.device).requires_grad_(False)
        _free()

    @contextmanager
    def _engine(self, path: Path | None = None) -> Iterator[Decoder]:
        """The library's decoder of the target, with the draft if one was given; or of ``path`` alone."""
        kind: str | torch.dtype = self.settings.dtype
        if kind == "auto" and self.device.type == "cuda":
            kind = self.stored
        draft = self.draft_path if path is None else None
        method = "lookahead" if draft is None else "ouroboros"
        yield load(path or self.target_path, draft, method=method, dtype=kind, device=self.settings.device)
        _free()


def _count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _check_tokenizers(target: Tokenizer | None, draft: Tokenizer | None, name: str) -> None:
    if target is not None and draft is not None and target.fingerprint != draft.fingerprint:
        raise LoadError(f"the draft model {name!r} has another tokenizer than the target; both must be the same")


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
