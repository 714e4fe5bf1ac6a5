"""A model that remembers: rows of logits by the text before them, computed once and answered from then on.

Which tokens a step yields, and what a drafter learns of it, depends on the rows of the target alone. So a method, run
on a recorded target, does what it does on the target itself, forward by forward, and other settings of it that meet the
same rows cost next to nothing: the replay of recorded outputs (SuffixDecoding, Oliaro et al. 2024, measures with such a
one), made exact also where drafts learn from rejected rows.

Invariant: a slot holds its text as a path in the recording; the model behind is only brought up to date when it is
asked. Rows come back as they were given, so that outputs differ from the model's own by rounding at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ouroboros.models.base import CausalModel, ScoreRequest, Slot
from ouroboros.models.context import Context
from ouroboros.tree import TokenTree

__all__ = ["RecordedModel", "Recording"]

CATCH_UP = 32  # more tokens than these are prefilled in a forward of their own


class _Place:
    """A text that was met: the row behind it, if it is known, and the texts that are one token longer."""

    __slots__ = ("longer", "row_V")

    def __init__(self) -> None:
        self.longer: dict[int, _Place] = {}
        self.row_V: Tensor | None = None


class Recording:
    """What one model answered. Memory: a row of the vocabulary for each text that was scored."""

    def __init__(self) -> None:
        self.start = _Place()
        self.rows = 0


class RecordedModel:
    """A model in front of a model (see base.CausalModel).

    Args:
        model: is asked for rows that the recording lacks. recording: to read and to add to; by default a new one.
        ask: False answers such rows with zeros. That is exact for drafters which read no rows but those on the path of
            accepted tokens, as long as the whole output is recorded.

    Attributes:
        forwards: of the model behind. scored: for each ``score`` and request (new rows, committed tokens before them).
    """

    def __init__(self, model: CausalModel, recording: Recording | None = None, ask: bool = True) -> None:
        self.info = model.info
        self.recording = Recording() if recording is None else recording
        self.forwards = 0
        self.scored: list[tuple[int, int]] = []
        self._context = Context(model)  # all slots': texts that begin alike are read once
        self._ask = ask

    def open(self) -> _RecordedSlot:
        return _RecordedSlot(self.recording.start)

    def prefill(self, slot: Slot, token_ids: Sequence[int]) -> None:
        own = _own(slot)
        assert own.pending == 0, "tokens cannot be committed behind pending nodes"
        own.write(token_ids)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        return [self._score(request) for request in requests]

    def _score(self, request: ScoreRequest) -> Tensor:
        slot, tree = _own(request.slot), request.tree
        first = slot.pending
        self.scored.append((len(tree) - first + len(request.catch_up), slot.length))
        slot.follow(tree, request.catch_up)
        rows = range(first, len(tree)) if request.rows is None else request.rows
        places = [slot.nodes[row] for row in rows]
        missing = [row for row in rows if slot.nodes[row].row_V is None]
        if missing and self._ask:
            self._fill(slot, tree, missing)
        known = [place.row_V for place in places]
        like = next((row_V for row_V in known if row_V is not None), torch.empty(self.info.vocab_size))
        if not known:
            return like.new_empty((0, self.info.vocab_size))
        return torch.stack([torch.zeros_like(like) if row_V is None else row_V for row_V in known])

    def _fill(self, slot: _RecordedSlot, tree: TokenTree, missing: Sequence[int]) -> None:
        """Asks for the missing rows, with those above them and no others."""
        kept = sorted({node for row in missing for node in tree.path(row)})
        index = {node: place for place, node in enumerate(kept)}
        text = [*slot.tokens, tree.tokens[0]]
        behind = self._context.follow(text)
        if len(behind) > CATCH_UP:
            self._context.prefill(text)
            behind = ()
        wanted = [index[row] for row in missing]
        request = ScoreRequest(self._context.slot, tree.select(kept), wanted, behind)
        self.forwards += 1
        for row, row_V in zip(missing, self._context.model.score([request])[0], strict=True):
            place = slot.nodes[row]
            if place.row_V is None:
                self.recording.rows += 1
            place.row_V = row_V


class _RecordedSlot:
    """One sequence (see base.Slot). ``tokens``: committed. ``nodes``: the places of the pending nodes."""

    def __init__(self, start: _Place) -> None:
        self.tokens: list[int] = []
        self.nodes: list[_Place] = []
        self._places = [start]  # behind nothing, behind the first token, and so on
        self._tree = TokenTree(0)

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def pending(self) -> int:
        return len(self.nodes)

    def write(self, token_ids: Iterable[int]) -> None:
        for token in token_ids:
            self.tokens.append(token)
            self._places.append(_longer(self._places[-1], token))

    def follow(self, tree: TokenTree, catch_up: Sequence[int]) -> None:
        """Finds the places of the tree's new nodes, after ``catch_up``."""
        assert not catch_up or self.pending == 0, "catch-up tokens cannot follow pending nodes"
        self.write(catch_up)
        self._tree = tree
        for node in range(self.pending, len(tree)):
            above = self._places[-1] if node == 0 else self.nodes[tree.parents[node]]
            self.nodes.append(_longer(above, tree.tokens[node]))

    def commit(self, path: Sequence[int]) -> None:
        self.tokens += [self._tree.tokens[node] for node in path]
        self._places += [self.nodes[node] for node in path]
        self.nodes = []

    def truncate(self, pending: int) -> None:
        del self.nodes[pending:]

    def rewind(self, length: int) -> None:
        self.nodes = []
        del self.tokens[length:], self._places[length + 1 :]

    def fork(self, length: int) -> _RecordedSlot:
        copy = _RecordedSlot(self._places[0])
        copy.write(self.tokens[:length])
        return copy


def _longer(place: _Place, token: int) -> _Place:
    found = place.longer.get(token)
    if found is None:
        found = place.longer[token] = _Place()
    return found


def _own(slot: Slot) -> _RecordedSlot:
    assert isinstance(slot, _RecordedSlot), "a slot belongs to the model that opened it"
    return slot
