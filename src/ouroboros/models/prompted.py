"""PromptedModel: a transformers model whose prompt someone else has read, with whatever belonged to it.

Invariant: its one slot never holds less than the prompt. The prompt's last row is the root of the first tree, scored
before it was asked for; so a prompt may hold what is no token (embeddings, images, virtual tokens) anywhere. It knows
nothing of how a prompt is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ouroboros.models.base import ScoreRequest, Slot
from ouroboros.models.transformers_cache import RowSlot
from ouroboros.models.transformers_config import UNLIMITED
from ouroboros.models.transformers_model import TransformersModel

__all__ = ["PromptedModel", "Reading", "ShiftedModel"]


@dataclass(frozen=True, slots=True)
class Reading:
    """A prompt that was read.

    Attributes:
        slot: all of its rows, committed; so many ``rows``. logits_1V: behind the last one. position: of the first new
            token, the largest of its numbers.
    """

    slot: RowSlot
    rows: int
    logits_1V: Tensor
    position: int


class PromptedModel:
    """A model that goes on from a prompt (see base.CausalModel). It opens one slot.

    Args:
        model: what computes the new rows. reading: of the prompt. length: tokens that callers take the prompt for, at
            least one; what else it has lies before them, and is not seen.
    """

    def __init__(self, model: TransformersModel, reading: Reading, length: int) -> None:
        self._model = model
        self._slot = _PromptedSlot(reading, length)
        positions = model.info.max_positions
        if positions < UNLIMITED:
            positions += length - reading.position
        self.info = replace(model.info, max_positions=positions, part_of_text=False)

    def open(self) -> _PromptedSlot:
        return self._slot

    def prefill(self, slot: Slot, token_ids: Sequence[int]) -> None:
        self._model.prefill(_own(slot).inner, token_ids)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        return [self._score(request) for request in requests]

    def _score(self, request: ScoreRequest) -> Tensor:
        slot = _own(request.slot)
        if not slot.at_prompt:
            return self._model.score([replace(request, slot=slot.inner)])[0]
        assert not request.catch_up
        wanted = list(range(slot.pending, len(request.tree)) if request.rows is None else request.rows)
        others = [row for row in wanted if row > 0]
        logits_RV = slot.logits_1V
        if len(request.tree) > slot.inner.pending:
            [found_RV] = self._model.score([replace(request, slot=slot.inner, rows=others)])
            logits_RV = torch.cat((logits_RV, found_RV))
        slot.shown = True
        places = [others.index(row) + 1 if row > 0 else 0 for row in wanted]
        return logits_RV[torch.tensor(places, dtype=torch.long)]


class ShiftedModel:
    """A model whose texts begin at a later position than the first (see base.CausalModel). ``ahead``: by so much."""

    def __init__(self, model: TransformersModel, ahead: int) -> None:
        self._model = model
        self._ahead = ahead
        self.info = replace(model.info, max_positions=model.info.max_positions - ahead)
        self.prefill, self.score = model.prefill, model.score

    def open(self) -> RowSlot:
        slot = self._model.open()
        slot.ahead = self._ahead
        return slot


class _PromptedSlot:
    """See base.Slot. While it holds the prompt alone the last row lies pending in ``inner``."""

    def __init__(self, reading: Reading, length: int) -> None:
        self.inner = reading.slot
        self.logits_1V = reading.logits_1V
        self.shown = False  # whether the root's logits were asked for
        self._prompt = reading.rows
        self._before = self._prompt - length  # rows that callers do not see
        self.inner.reopen()

    @property
    def at_prompt(self) -> bool:
        return self.inner.length < self._prompt

    @property
    def length(self) -> int:
        return self.inner.length - self._before

    @property
    def pending(self) -> int:
        return self.inner.pending if self.shown or not self.at_prompt else 0

    def commit(self, path: Sequence[int]) -> None:
        if path or not self.at_prompt:
            self.inner.commit(path)
        else:
            self.truncate(0)

    def truncate(self, pending: int) -> None:
        if self.at_prompt:
            self.shown = self.shown and pending > 0
            self.inner.truncate(max(1, pending))
        else:
            self.inner.truncate(pending)

    def fork(self, length: int) -> _PromptedSlot:
        raise AssertionError("a prompt that someone else has read has one slot")

    def rewind(self, length: int) -> None:
        """Not below the prompt without its last token, whatever is asked."""
        rows = length + self._before
        if rows >= self._prompt:
            self.inner.rewind(rows)
            return
        if self.at_prompt:
            self.inner.truncate(1)
        else:
            self.inner.rewind(self._prompt)
            self.inner.reopen()
        self.shown = False


def _own(slot: Slot) -> _PromptedSlot:
    assert isinstance(slot, _PromptedSlot), "a slot belongs to the model that opened it"
    return slot
