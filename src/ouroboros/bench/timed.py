"""A model whose forwards take what a profile says, by a clock of their own: speed without the noise of a machine.

What decides by times, as the controller does, decides here as it would if every forward took what was measured. Prefill
before the first forward takes no time: it is no part of decoding. It knows nothing of drafting.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ouroboros.control.profile import CostProfile
from ouroboros.models.base import CausalModel, ScoreRequest, Slot

__all__ = ["TimedModel", "VirtualClock"]


class VirtualClock:
    """Tells ``seconds``, which whoever takes time adds to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class TimedModel:
    """See base.CausalModel."""

    def __init__(self, model: CausalModel, profile: CostProfile, clock: VirtualClock) -> None:
        self.info = model.info
        self._model = model
        self._profile = profile
        self._clock = clock

    def open(self) -> Slot:
        return self._model.open()

    def prefill(self, slot: Slot, token_ids: Sequence[int]) -> None:
        if self._clock.seconds > 0 and token_ids:
            self._clock.seconds += self._profile.cost(len(token_ids), slot.length + len(token_ids))
        self._model.prefill(slot, token_ids)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        rows = sum(len(r.tree) - r.slot.pending + len(r.catch_up) for r in requests)
        self._clock.seconds += self._profile.cost(rows, max(r.slot.length for r in requests))
        return self._model.score(requests)
