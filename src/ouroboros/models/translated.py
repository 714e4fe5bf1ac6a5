"""TranslatedModel: a draft model that is spoken to in the target's tokens, and answers in them.

It is a CausalModel over the target's vocabulary around one over another. Each target token is spelt as one or several
draft tokens, so a tree of target tokens becomes a tree of draft tokens, and one forward of it a forward of that. A
target token that is a draft token has that token's logit; the others are never drafted. So every drafter works with it
unchanged (token-level intersection of Timor et al. 2025, for trees). Where the text has grown beyond the inner model's
context, its end is kept. It knows nothing of tokenizers or drafting.

Invariant: the inner cache holds a beginning of ``slot.text`` from ``slot.skipped`` on; while nodes are pending all of
it, and then all nodes of ``slot.tree``.

Tensor names: N nodes, D draft vocabulary, V target vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ouroboros.models.base import CausalModel, ScoreRequest, Slot
from ouroboros.tree import Origin, TokenTree

__all__ = ["TranslatedModel", "TranslatedSlot"]

UNLIMITED = 2**31 - 1  # max_positions: the inner context moves along with the text
NEVER = -1e4  # the logit of what is never drafted: finite, since a grammar may allow nothing else


class TranslatedModel:
    """See base.CausalModel.

    Args:
        inner: the draft model.
        spellings: for each target token its draft tokens, at least one.
        partners: for each target token the draft token that is the same, or -1.
        prefix: draft tokens with which every text begins, where the target's tokens do not say so themselves.
    """

    def __init__(
        self,
        inner: CausalModel,
        spellings: Sequence[tuple[int, ...]],
        partners: Sequence[int],
        prefix: Sequence[int] = (),
    ) -> None:
        assert len(spellings) == len(partners) and all(spellings), "every target token needs a spelling"
        self.inner = inner
        self.info = replace(inner.info, vocab_size=len(spellings), max_positions=UNLIMITED, mixes=False)
        self._spellings = spellings
        self._prefix = tuple(prefix)
        size = inner.info.vocab_size
        columns = [partner if 0 <= partner < size else size for partner in partners]
        self._columns_V = torch.tensor(columns, device=inner.info.device)

    def open(self) -> TranslatedSlot:
        return TranslatedSlot(self.inner.open(), self._spellings, self._prefix, self.inner.info.max_positions)

    def prefill(self, slot: Slot, token_ids: Sequence[int]) -> None:
        own = _own(slot)
        own.write(token_ids)
        self.inner.prefill(own.inner, own.behind())

    @torch.inference_mode()
    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        """One inner forward of all (none where neither nodes nor logits are new)."""
        asked, found = [], {}
        for number, request in enumerate(requests):
            slot, tree = _own(request.slot), request.tree
            rows = range(slot.pending, len(tree)) if request.rows is None else request.rows
            slot.follow(tree, request.catch_up)
            ends = [slot.ends[row] for row in rows]
            nodes = sorted(set(ends))
            if nodes:  # a node that is computed already, as the beginning of a longer spelling, is computed once more
                slot.inner.truncate(min(slot.inner.pending, nodes[0]))
            if slot.inner.pending == len(slot.tree):
                found[number] = torch.empty((0, self.info.vocab_size), device=self._columns_V.device)
            else:
                asked.append((number, ends, nodes, ScoreRequest(slot.inner, slot.tree, nodes, slot.behind())))
        answers = self.inner.score([request for *_, request in asked]) if asked else []
        for (number, ends, nodes, _), logits_ND in zip(asked, answers, strict=True):
            logits_NV = F.pad(logits_ND, (0, 1), value=NEVER).index_select(-1, self._columns_V)
            places = {node: place for place, node in enumerate(nodes)}
            found[number] = logits_NV if nodes == ends else logits_NV[[places[end] for end in ends]]
        return [found[number] for number in range(len(requests))]


class TranslatedSlot:
    """One sequence, in both vocabularies (see base.Slot); made by ``TranslatedModel.open``.

    Attributes:
        inner: the draft model's slot. text: committed draft tokens. skipped: how many of them are beyond its context.
        tree: of draft tokens. ends: for each pending target node the node of ``tree`` that ends it.
    """

    def __init__(
        self, inner: Slot, spellings: Sequence[tuple[int, ...]], prefix: tuple[int, ...], max_positions: int
    ) -> None:
        self.inner = inner
        self.text: list[int] = []
        self.skipped = 0
        self.tree = TokenTree(0)
        self.ends: list[int] = []
        self._spellings = spellings
        self._prefix = prefix
        self._limit = max_positions
        self._deepest = max_positions // 4  # levels of the inner tree: what is spelt beyond is left out
        self._lengths: list[int] = []  # of the text behind each committed target token
        self._sizes: list[int] = []  # of the inner tree behind each pending target node
        self._outer = TokenTree(0)

    @property
    def length(self) -> int:
        return len(self._lengths)

    @property
    def pending(self) -> int:
        return len(self.ends)

    def behind(self) -> list[int]:
        """The part of the text that the inner cache lacks; nothing while nodes are pending."""
        return [] if self.inner.pending else self.text[self.skipped + self.inner.length :]

    def write(self, token_ids: Sequence[int]) -> None:
        """Adds committed target tokens to the text, not to the inner cache."""
        assert self.pending == 0, "tokens cannot be committed behind pending nodes"
        for token in token_ids:
            self._open(token)
            self.text += self._spellings[token]
            self._lengths.append(len(self.text))
        if len(self.text) - self.skipped > self._limit - self._deepest - 1:
            self.skipped = len(self.text) - self._limit // 2
            self.inner.rewind(0)

    def _open(self, token: int) -> None:
        if not self._lengths:
            self.inner.rewind(0)
            self.text = [] if self._spellings[token] == self._prefix else list(self._prefix)

    def follow(self, tree: TokenTree, catch_up: Sequence[int]) -> None:
        """Spells the new nodes of a tree of target tokens, after ``catch_up``."""
        assert not catch_up or self.pending == 0, "catch-up tokens cannot follow pending nodes"
        assert len(tree) > self.pending, "a forward needs new nodes"
        if self.pending == 0:
            self.write(catch_up)
            self._open(tree.tokens[0])
        self._outer = tree
        for node in range(self.pending, len(tree)):
            spelling = self._spellings[tree.tokens[node]]
            if node == 0:
                first, *rest = spelling[-1 - self._deepest :]
                self.tree = TokenTree(first)
                end = self.tree.extend(0, rest, Origin.DRAFT)
            else:
                end = self.ends[tree.parents[node]]
                if self.tree.depths[end] + len(spelling) <= self._deepest:
                    end = self.tree.extend(end, spelling, Origin.DRAFT)
            self.ends.append(end)
            self._sizes.append(len(self.tree))

    def commit(self, path: Sequence[int]) -> None:
        start = len(self.text)
        kept = self.tree.path(self.ends[path[-1]]) if path else []
        self.inner.commit(kept)
        self.text += [self.tree.tokens[node] for node in kept]
        self._lengths += [start + 1 + self.tree.depths[self.ends[node]] for node in path]
        self.ends, self._sizes = [], []

    def truncate(self, pending: int) -> None:
        if pending < self.pending:
            size = self._sizes[pending - 1] if pending else 0
            self.tree.truncate(max(1, size))
            self.inner.truncate(min(self.inner.pending, size))
            del self.ends[pending:], self._sizes[pending:]

    def rewind(self, length: int) -> None:
        self.commit([])
        del self._lengths[length:]
        del self.text[self._lengths[-1] if self._lengths else 0 :]
        left = len(self.text) - self.skipped
        if left <= 0:  # what the inner cache holds begins later in the text
            left = self.skipped = 0
        self.inner.rewind(min(self.inner.length, left))

    def fork(self, length: int) -> TranslatedSlot:
        copy = TranslatedSlot(self.inner.fork(self.inner.length), self._spellings, self._prefix, self._limit)
        copy.text, copy.skipped, copy._lengths = list(self.text), self.skipped, list(self._lengths)
        copy.rewind(length)
        return copy


def _own(slot: Slot) -> TranslatedSlot:
    assert isinstance(slot, TranslatedSlot), "a slot belongs to the model that opened it"
    return slot
