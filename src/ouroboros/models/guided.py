"""Classifier-free guidance (Sanchez et al. 2023, "Stay on topic with Classifier-Free Guidance", section 3): one model,
two contexts, one set of logits.

The second context begins with a negative prompt in place of the prompt; both get the same new tokens. A tree is scored
in both by one forward, so that everything above a model (verification, drafting, sampling) knows nothing of guidance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ouroboros.models.base import CausalModel, ScoreRequest, Slot
from ouroboros.tree import TokenTree

__all__ = ["GuidedModel"]


class GuidedModel:
    """A model whose logits are ``negative + scale × (positive - negative)``, all in log-probabilities (see
    base.CausalModel). It serves one prompt.

    Args:
        model: the model that is asked twice. scale: 1 leaves its answers as they are; more stresses the prompt.
        prompt, negative: token ids, at least one each, within the model's context. second: what is asked for the
            negative context, where ``model`` is not.
    """

    def __init__(
        self,
        model: CausalModel,
        scale: float,
        prompt: Sequence[int],
        negative: Sequence[int],
        second: CausalModel | None = None,
    ) -> None:
        self._model = model
        self._second = second or model
        self._scale = scale
        self._frame = _Frame(len(prompt) - 1, tuple(negative))
        longer = max(0, len(negative) - len(prompt))  # the negative context is ahead by so much
        work = replace(model.info.work, cache_bytes=2 * model.info.work.cache_bytes)
        positions = min(model.info.max_positions, self._second.info.max_positions - longer)
        self.info = replace(model.info, max_positions=positions, part_of_text=False, work=work, mixes=False)

    def open(self) -> _GuidedSlot:
        slot = _GuidedSlot(self._model.open(), self._second.open(), self._frame)
        if len(self._frame.negative) <= self._second.info.max_positions:  # else no prompt fits, and nothing is scored
            self._second.prefill(slot.negative, self._frame.negative[:-1])
        return slot

    def prefill(self, slot: Slot, token_ids: Sequence[int]) -> None:
        own = _own(slot)
        others = self._frame.translate(own.length, token_ids)
        self._model.prefill(own.positive, token_ids)
        self._second.prefill(own.negative, others)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        slots = [_own(request.slot) for request in requests]
        positive = [replace(r, slot=slot.positive) for r, slot in zip(requests, slots, strict=True)]
        negative = [self._frame.request(r, slot) for r, slot in zip(requests, slots, strict=True)]
        if self._second is self._model:
            logits = self._model.score([*positive, *negative])
        else:
            logits = [*self._model.score(positive), *self._second.score(negative)]
        pairs = zip(logits[: len(requests)], logits[len(requests) :], strict=True)
        return [_guided(yes_RV, no_RV, self._scale) for yes_RV, no_RV in pairs]


def _guided(positive_RV: Tensor, negative_RV: Tensor, scale: float) -> Tensor:
    """In fp32 at least, as transformers' processor of this name computes it."""
    if positive_RV.element_size() < 4:
        positive_RV, negative_RV = positive_RV.float(), negative_RV.float()
    yes_RV, no_RV = positive_RV.log_softmax(-1), negative_RV.log_softmax(-1)
    impossible_RV = torch.isneginf(yes_RV) | torch.isneginf(no_RV)  # in a translated vocabulary; -inf less -inf is nan
    return (scale * (yes_RV - no_RV) + no_RV).masked_fill_(impossible_RV, -torch.inf)


@dataclass(frozen=True, slots=True)
class _Frame:
    """How positions of the one context map to the other: the last prompt token at ``root`` is the last of ``negative``;
    before it there is nothing to map, behind it tokens are the same."""

    root: int
    negative: tuple[int, ...]

    def position(self, position: int) -> int:
        return max(position, self.root) - self.root + len(self.negative) - 1

    def translate(self, start: int, tokens: Sequence[int]) -> list[int]:
        """The other context's tokens for those at ``start`` and on."""
        places = enumerate(tokens, start)
        return [self.negative[-1] if place == self.root else token for place, token in places if place >= self.root]

    def request(self, request: ScoreRequest, slot: _GuidedSlot) -> ScoreRequest:
        tree, root = request.tree, slot.length + len(request.catch_up)
        assert root >= self.root, "a tree cannot hang inside the prompt"
        if root == self.root:
            tree = _with_root(tree, self.negative[-1])
        return replace(request, slot=slot.negative, tree=tree, catch_up=self.translate(slot.length, request.catch_up))


class _GuidedSlot:
    """Two slots in step (see base.Slot); its lengths are the positive one's."""

    def __init__(self, positive: Slot, negative: Slot, frame: _Frame) -> None:
        self.positive, self.negative = positive, negative
        self._frame = frame

    @property
    def length(self) -> int:
        return self.positive.length

    @property
    def pending(self) -> int:
        return self.positive.pending

    def commit(self, path: Sequence[int]) -> None:
        self.positive.commit(path)
        self.negative.commit(path)

    def truncate(self, pending: int) -> None:
        self.positive.truncate(pending)
        self.negative.truncate(pending)

    def rewind(self, length: int) -> None:
        self.positive.rewind(length)
        self.negative.rewind(min(self._frame.position(length), self.negative.length))

    def fork(self, length: int) -> _GuidedSlot:
        behind = min(self._frame.position(length), self.negative.length)
        return _GuidedSlot(self.positive.fork(length), self.negative.fork(behind), self._frame)


def _with_root(tree: TokenTree, token: int) -> TokenTree:
    copy = TokenTree(token)
    for node in range(1, len(tree)):
        copy.add(tree.parents[node], tree.tokens[node], tree.origins[node])
    return copy


def _own(slot: Slot) -> _GuidedSlot:
    assert isinstance(slot, _GuidedSlot), "a slot belongs to the model that opened it"
    return slot
