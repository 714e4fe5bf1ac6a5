"""A draft that follows its target on the target's own text.

Half of the text was written with the end-of-sequence forbidden, as speed is usually measured: behind the end of a
function a model that may not end is in a state of its own. There both distributions are compared without that token,
which would else hide all others.

Tensor names: B sequences, L tokens, N learned rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ouroboros.training.examples import Batch, Batches, Example
from ouroboros.training.losses import mixed_loss
from ouroboros.training.trainer import Plan, Trainer
from recipes.embedded_pair.models import head_rows

END = 0
FORBIDDEN = -1e9  # a logit


@dataclass(frozen=True)
class OwnText:
    """What the target wrote for a prompt; ``ends``: whether it was allowed to end."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    ends: bool

    @property
    def example(self) -> Example:
        return Example((*self.prompt, *self.tokens), len(self.prompt))


def own_batches(
    texts: Sequence[OwnText], others: Sequence[Example], batch: int, length: int, seed: int
) -> Callable[[int], Batch]:
    """Batches of a ``Follower``: on even steps text that was not allowed to end, on odd ones the rest."""
    endless = Batches([one.example for one in texts if not one.ends], batch, length, seed)
    ended = Batches([*(one.example for one in texts if one.ends), *others], batch, length, seed + 1)
    return lambda step: (ended if step % 2 else endless)(step // 2)


class Follower(Trainer):
    """Learns the target's distribution; on even steps without the end-of-sequence."""

    def __init__(self, target: Any, module: Any, plan: Plan) -> None:
        super().__init__(module, target, plan)

    def loss(self, batch: Batch) -> Tensor:
        ids_BL, learned_BL = batch.ids_BL.to(self._device), batch.learned_BL.to(self._device)
        with torch.no_grad(), self._autocast():
            target_NV = head_rows(self._target, ids_BL, learned_BL).float()
        with self._autocast():
            draft_NV = head_rows(self.draft, ids_BL, learned_BL).float()
        if self.step % 2 == 0:
            target_NV[:, END] = FORBIDDEN
            draft_NV = draft_NV.index_fill(1, torch.tensor([END], device=self._device), FORBIDDEN)
        return mixed_loss(self.plan.loss, target_NV, draft_NV, ids_BL.roll(-1, dims=1)[learned_BL])
