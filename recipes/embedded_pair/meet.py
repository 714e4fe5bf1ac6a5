"""Target and draft trained together until they draw alike: the draft follows, and the target gives way a little.

The aim is what counts while decoding: how often both draw the same token from the noise that they share. What holds the
target is its distance from what it was before; and since two models agree most where text repeats itself, every third
step unlearns loops, as in its refinement. It knows nothing of files.

Tensor names: B sequences, L tokens, N learned rows, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ouroboros.training.examples import Batch
from ouroboros.training.losses import forward_kl, shared_noise
from ouroboros.training.optimizers import build_optimizers
from ouroboros.training.trainer import Plan, Trainer
from recipes.embedded_pair.follow import END, FORBIDDEN
from recipes.embedded_pair.models import head_rows
from recipes.embedded_pair.refine import LOOPS_EVERY, unlikelihood

TARGET_RATE = 0.4  # of the draft's learning rate
TEMPERATURE = 0.8  # at which they are to draw alike
FOLLOW, ALIKE, LOOPS = 0.5, 2.0, 1.0  # weights beside the target's distance from what it was


class Pair(torch.nn.Module):
    """Two modules with one set of weights to train and to save."""

    def __init__(self, target: Any, draft: Any) -> None:
        super().__init__()
        self.target, self.draft = target, draft


class Meeting(Trainer):
    """Trains ``target`` and ``draft`` in place; ``before``: the target as it was. The batches are ``alternate``'s of
    ``own_batches`` and ``Loops``: in turn text that was not allowed to end, other text, and loops."""

    def __init__(self, before: Any, target: Any, draft: Any, plan: Plan) -> None:
        super().__init__(Pair(target, draft), before, plan)
        self._optimizers = [
            *build_optimizers(target, plan.rate * TARGET_RATE, plan.muon),
            *build_optimizers(draft, plan.rate, plan.muon),
        ]

    def loss(self, batch: Batch) -> Tensor:
        """KL(before ‖ target) + KL(target ‖ draft), which moves the draft alone, + the share of draws that differ,
        which moves both; of loops that the target may not say them; [N]."""
        ids_BL, learned_BL = batch.ids_BL.to(self._device), batch.learned_BL.to(self._device)
        place = self.step % LOOPS_EVERY
        if place == LOOPS_EVERY - 1:
            with self._autocast():
                loops_NV = head_rows(self.draft.target, ids_BL, learned_BL)
            return LOOPS * unlikelihood(loops_NV, ids_BL.roll(-1, dims=1)[learned_BL])
        forbidden = torch.tensor([] if place else [END], dtype=torch.long, device=self._device)

        def logits(module: Any) -> Tensor:
            with self._autocast():
                rows_NV = head_rows(module, ids_BL, learned_BL)
            return rows_NV.float().index_fill(1, forbidden, FORBIDDEN)

        with torch.no_grad():
            before_NV = logits(self._target).log_softmax(-1)
        target_NV, draft_NV = logits(self.draft.target), logits(self.draft.draft)
        kept_N = forward_kl(before_NV, target_NV.log_softmax(-1))
        followed_N = forward_kl(target_NV.detach().log_softmax(-1), draft_NV.log_softmax(-1))
        apart_N = shared_noise((target_NV / TEMPERATURE).log_softmax(-1), (draft_NV / TEMPERATURE).log_softmax(-1))
        return kept_N + FOLLOW * followed_N + ALIKE * apart_N
