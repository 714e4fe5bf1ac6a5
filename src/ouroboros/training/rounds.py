"""Training proper: the trials that choose a loss, then rounds on the target's text and on the draft's own.

In the first round the draft learns from what the target wrote; in each later one also from what it writes itself by
then, which the target scores (Agarwal et al. 2024; Zhou et al. 2024, DistillSpec). Every stage leaves a file by which
it is skipped when the run is resumed. It knows nothing of where the target's text comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ouroboros.training.examples import Batches, windows
from ouroboros.training.modules import read_module, write_module
from ouroboros.training.records import Job, Record, jobs_for, kept_records
from ouroboros.training.replay import replay
from ouroboros.training.settings import AUTO_LOSSES, DistillSettings, Progress, parse_loss
from ouroboros.training.trainer import Plan, Trainer, mean_of_last, pick_autocast
from ouroboros.training.workspace import Workspace

__all__ = ["Rounds"]

Write = Callable[[Path, str, Sequence[Job]], list[Record]]  # (model's directory, name, jobs) -> its generations


class Rounds:
    """One training of the draft in the directory ``beginning``.

    Args:
        target: the module that teaches. texts: plain texts to learn from as well. beside: directory of the target,
            whose tokenizer goes with every draft. write: has a model write text.

    Attributes:
        losses: of each step. figures: tokens per target forward on the held-out records behind each round. learned:
            tokens learned from, each counted once.
    """

    def __init__(
        self,
        settings: DistillSettings,
        space: Workspace,
        progress: Progress,
        target: Any,
        texts: Sequence[Sequence[int]],
        beginning: Path,
        beside: Path,
        write: Write,
    ) -> None:
        self.settings, self.space, self.progress = settings, space, progress
        self.losses: list[float] = []
        self.figures: list[float] = space.read("rounds") or []
        self.learned = 0
        self._target = target
        self._device = next(target.parameters()).device
        self._vocab_size = int(target.config.vocab_size)
        self._texts = texts
        self._beginning, self._beside, self._write = beginning, beside, write

    def choose(self, train: Sequence[Record], chosen_by: Sequence[Record]) -> tuple[str, dict[str, float]]:
        """The loss, and under ``auto`` the tokens per target forward that each comes to in a short trial."""
        settings = self.settings
        if settings.loss != "auto":
            return settings.loss, {}
        trials: dict[str, float] = self.space.read("trials") or {}
        steps = settings.trial_steps or max(10, settings.steps // 10)
        batches = self._batches(train, 0)
        for loss in AUTO_LOSSES:
            if loss not in trials:
                draft = read_module(self._beginning, torch.float32, self._device)
                trainer = Trainer(draft, self._target, self._plan(loss, steps))
                trainer.run(batches, steps, partial(self._tell, f"trial of {loss}", steps))
                trials[loss] = self._replay(draft, chosen_by)
                self.space.write("trials", trials)
        return max(trials, key=lambda loss: trials[loss]), trials

    def train(self, loss: str, train: Sequence[Record], held_out: Sequence[Record]) -> Any:
        """The trained draft, in float32."""
        settings = self.settings
        draft = read_module(self._beginning, torch.float32, self._device)
        trainer = Trainer(draft, self._target, self._plan(loss, settings.steps))
        checkpoint = self.space.path("checkpoint.pt")
        if checkpoint.exists():
            trainer.load(checkpoint)
        known = list(train)
        began = 0
        for number in range(settings.rounds + 1):
            until = settings.steps * (number + 1) // (settings.rounds + 1)
            if number:
                known += self._own_text(draft, number, trainer.step == began, [one.prompt for one in train])
            tell = partial(self._tell, "training", settings.steps)
            trainer.run(self._batches(known, number), until, tell, checkpoint, settings.checkpoint_every)
            if len(self.figures) <= number:
                self.figures.append(self._replay(draft, held_out))
                self.space.write("rounds", self.figures)
            began = until
        self.losses = trainer.losses
        self.learned = sum(len(one.tokens) for one in known) + sum(map(len, self._texts))
        return draft

    @property
    def final_loss(self) -> float:
        return mean_of_last(self.losses)

    def _own_text(self, draft: Any, number: int, fresh: bool, prompts: Sequence[tuple[int, ...]]) -> list[Record]:
        """The draft's own continuations of the training prompts, as it is when the round begins."""
        name = f"draft-text-{number}"
        each = list(dict.fromkeys(prompts))
        jobs = jobs_for(each, self.settings.temperatures, 1, self.settings.seed + 7919 * number)
        kept = kept_records(self.space.path(f"{name}.jsonl"), jobs)
        if len(kept) == len(jobs):
            return kept
        assert fresh, "a round's text is written before its first step"
        directory = self.space.path(f"round-{number}")
        write_module(draft, directory, torch.float32, self._beside)
        return self._write(directory, name, jobs)

    def _batches(self, records: Sequence[Record], number: int) -> Batches:
        settings = self.settings
        examples = [one.example for one in records] + windows(self._texts, settings.length)
        return Batches(examples, settings.batch, settings.length, settings.seed + number)

    def _plan(self, loss: str, steps: int) -> Plan:
        settings = self.settings
        return Plan(
            steps=steps,
            rate=settings.peak_rate,
            loss=parse_loss(loss),
            muon=settings.optimizer == "muon",
            autocast=pick_autocast(settings.dtype, self._device),
            micro_batch=settings.micro_batch,
        )

    def _replay(self, draft: Any, records: Sequence[Record]) -> float:
        return replay(draft, records, self._vocab_size, self.settings.gamma).tokens_per_target_forward

    def _tell(self, stage: str, steps: int, step: int, loss: float) -> None:
        self.progress(stage, step, steps, f"loss {loss:.3f}")
