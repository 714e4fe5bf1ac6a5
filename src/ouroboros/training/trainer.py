"""The loop of training: batches, target's logits, loss, steps, checkpoints. It knows nothing of where text comes from.

A run that goes on from a checkpoint has the weights of an uninterrupted one: batches depend on the step alone, nothing
else is drawn, and the checkpoint holds the optimisers' state.

Tensor names: B sequences, L tokens, N learned rows, V vocabulary.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ouroboros.errors import InputError, LoadError
from ouroboros.training.examples import Batch
from ouroboros.training.losses import mixed_loss
from ouroboros.training.optimizers import build_optimizers, rate_at, set_rate

__all__ = ["Plan", "Trainer", "mean_of_last", "pick_autocast"]


@dataclass(frozen=True, slots=True)
class Plan:
    """How it is trained: ``steps`` in all, peak ``rate`` of AdamW, ``muon`` for the layers' matrices, ``loss`` weights
    (see settings.parse_loss), ``autocast``: type of the computation, None for the weights' own; ``micro_batch``:
    sequences of a forward, None for all; ``decay``: over which last part of the steps the rate falls."""

    steps: int
    rate: float
    loss: Mapping[str, float]
    muon: bool = False
    autocast: torch.dtype | None = None
    micro_batch: int | None = None
    decay: float = 1.0
    clip: float = 1.0


def pick_autocast(dtype: str, device: torch.device) -> torch.dtype | None:
    """What ``dtype`` means on this device: bfloat16 autocast, or None for plain float32."""
    wanted = dtype == "bfloat16" or (dtype == "auto" and device.type == "cuda")
    return torch.bfloat16 if wanted else None


class Trainer:
    """Trains ``draft`` in place.

    Args:
        draft: a transformers module with float32 weights. target: one that scores the same tokens; None where the loss
            is of the text alone. forward: what computes the draft's logits, where that is not the module itself (a
            compiled one).
    """

    def __init__(self, draft: Any, target: Any | None, plan: Plan, forward: Any | None = None) -> None:
        self.draft, self.plan = draft, plan
        self.step = 0
        self.losses: list[float] = []
        self._target = target
        self._forward = forward or draft
        self._device = next(draft.parameters()).device
        self._optimizers = build_optimizers(draft, plan.rate, plan.muon)

    def run(
        self,
        batches: Callable[[int], Batch],
        until: int,
        progress: Callable[[int, float], None] = lambda step, loss: None,
        checkpoint: Path | None = None,
        every: int = 200,
    ) -> None:
        """Goes on to the step ``until``.

        Args:
            batches: gives a step's batch. progress: called behind each step with the steps done and the loss.
            checkpoint: written every so many steps, and at the end.

        Raises:
            InputError: the loss is no number any more: the learning rate is too high.
        """
        while self.step < until:
            loss = self._one(batches(self.step))
            self.losses.append(loss)
            self.step += 1
            if not math.isfinite(loss):
                raise InputError(
                    f"the loss is {loss} at step {self.step}; learning_rate must be below {self.plan.rate}"
                )
            progress(self.step, loss)
            if checkpoint is not None and (self.step % every == 0 or self.step == until):
                self.save(checkpoint)

    def _one(self, batch: Batch) -> float:
        set_rate(self._optimizers, rate_at(self.step, self.plan.steps, decay=self.plan.decay))
        rows = int(batch.learned_BL.sum())
        size = self.plan.micro_batch or len(batch.ids_BL)
        total = torch.zeros((), device=self._device)
        for ids_BL, learned_BL in zip(batch.ids_BL.split(size), batch.learned_BL.split(size), strict=True):
            loss = self.loss(Batch(ids_BL, learned_BL)).sum() / rows
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.draft.parameters(), self.plan.clip)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(total)

    def loss(self, batch: Batch) -> Tensor:
        """The loss of each learned row, [N], with its graph."""
        ids_BL = batch.ids_BL.to(self._device, non_blocking=True)
        learned_BL = batch.learned_BL.to(self._device, non_blocking=True)
        next_N = ids_BL.roll(-1, dims=1)[learned_BL]
        target_NV = None
        if self._target is not None and set(self.plan.loss) != {"text"}:
            with torch.no_grad(), self._autocast():
                target_NV = self._target(input_ids=ids_BL, use_cache=False).logits[learned_BL]
        with self._autocast():  # the batch is filled up on the right, where causal attention needs no mask
            draft_NV = self._forward(input_ids=ids_BL, use_cache=False).logits[learned_BL]
        return mixed_loss(self.plan.loss, target_NV, draft_NV, next_N)

    def _autocast(self) -> torch.autocast:
        kind = self.plan.autocast
        return torch.autocast(self._device.type, dtype=kind or torch.bfloat16, enabled=kind is not None)

    def save(self, path: Path) -> None:
        """Writes weights, optimisers and losses; the file is the old one or the new one, never a part."""
        state = {
            "step": self.step,
            "losses": self.losses,
            "draft": self.draft.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
        }
        part = path.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, path)

    def load(self, path: Path) -> None:
        """Goes on from a checkpoint of the same plan.

        Raises:
            LoadError: no checkpoint, or that of another model.
        """
        try:
            state = torch.load(path, map_location=self._device, weights_only=True)
            self.draft.load_state_dict(state["draft"])
            for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.step, self.losses = int(state["step"]), list(state["losses"])
        except Exception as error:  # torch raises what it likes on a damaged file
            raise LoadError(f"cannot go on from {str(path)!r}: {' '.join(str(error).split())[:120]}") from error


def mean_of_last(losses: Sequence[float], share: float = 0.05) -> float:
    """The mean over the last part of a curve."""
    last = losses[-max(1, round(share * len(losses))) :]
    return sum(last) / len(last)
