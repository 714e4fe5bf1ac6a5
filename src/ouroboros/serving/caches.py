"""All KV caches of a scheduler: those in use, and those kept for the next request that begins alike.

A request takes the kept caches that share most with its prompt, or copies the rows of others that do, and leaves its
own when it ends. Invariant: their rows take ``limit`` bytes at most; the caches that were kept longest ago go first. A
buffer does not shrink, so rows count that a cache once had.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ouroboros.models.base import CausalModel
from ouroboros.models.context import Context

__all__ = ["CacheStore", "Caches", "bytes_of"]

LOSS = 16  # rows of a kept cache that may be lost to a request that goes on otherwise; of more it gets a copy
KEPT = 64  # caches of ended requests, at most
GROWTH = 64  # rows that must be free beside a prompt's before its request is let in


def bytes_of(model: CausalModel | None, rows: int) -> int:
    """What rows of a model's cache take; 0 where nobody knows."""
    return 0 if model is None else rows * model.info.work.cache_bytes


@dataclass(slots=True, eq=False)
class Caches:
    """Of one request: the target's and the draft model's. ``most``: rows that each has had at most."""

    target: Context
    draft: Context | None
    most: tuple[int, int] = (0, 0)

    def shared(self, prompt: Sequence[int]) -> int:
        """Rows of the target's cache that a request with this prompt would find."""
        return min(self.target.shared(prompt), self.target.slot.length, len(prompt) - 1)

    def measure(self) -> int:
        """Bytes that the rows take."""
        target, draft = (_rows(context) for context in (self.target, self.draft))
        self.most = max(self.most[0], target), max(self.most[1], draft)
        draft_model = None if self.draft is None else self.draft.model
        return bytes_of(self.target.model, self.most[0]) + bytes_of(draft_model, self.most[1])

    def fork(self, prompt: Sequence[int]) -> Caches:
        """New ones with a copy of the rows that ``prompt`` shares with these."""
        draft = None if self.draft is None else self.draft.fork(prompt[self.draft.start :])
        return Caches(self.target.fork(prompt), draft)


def _rows(context: Context | None) -> int:
    return 0 if context is None else context.slot.length + context.slot.pending


class CacheStore:
    """
    Args:
        limit: bytes; None: as many as there are. keep: whether caches are kept for later requests.
    """

    def __init__(self, limit: int | None = None, keep: bool = True) -> None:
        self.limit = limit
        self._keep = keep
        self._used: list[Caches] = []
        self._kept: list[Caches] = []  # the one that was used last is the last

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._kept)

    @property
    def bytes(self) -> int:
        """Of all rows."""
        return sum(caches.measure() for caches in (*self._used, *self._kept))

    def make_room(self, needed: int) -> bool:
        """Lets go of kept caches until ``needed`` more bytes fit. Returns whether they do."""
        if self.limit is None:
            return True
        while self._kept and self.bytes + needed > self.limit:
            del self._kept[0]
        return self.bytes + needed <= self.limit

    def coming(self, prompt: Sequence[int], target: CausalModel) -> int:
        """How many more rows of ``prompt`` than are there now some request in use is about to compute."""
        alike = [caches for caches in self._used if caches.target.model is target]
        there = max((caches.shared(prompt) for caches in (*alike, *self._kept)), default=0)
        return max((min(c.target.shared(prompt), len(prompt) - 1) for c in alike), default=0) - there

    def take(
        self, prompt: Sequence[int], target: CausalModel, draft: CausalModel | None, whatever: bool
    ) -> Caches | None:
        """Caches for a request, with what is there of its prompt; None if there is no room for the rest, unless they
        must be had ``whatever`` they take."""
        best = self._best(prompt, target)
        kept = best is not None and best in self._kept
        if best is not None and kept:
            self._kept.remove(best)  # what is wanted is not let go of to make room for it
        rows = len(prompt) + GROWTH
        needed = bytes_of(target, rows) + bytes_of(draft, rows)
        goes_on = best is not None and kept and best.target.slot.length - best.shared(prompt) <= LOSS
        held = best.measure() if best is not None and kept else 0
        if not goes_on and self.make_room(held + needed):
            found = Caches(Context(target), None if draft is None else Context(draft))
            if best is not None:
                found = best.fork(prompt)
                if kept:
                    self._kept.append(best)
        elif best is not None and kept and (self.make_room(max(needed, held)) or whatever):
            found = best
        elif whatever:
            found = Caches(Context(target), None if draft is None else Context(draft))
        else:
            if best is not None and kept:
                self._kept.append(best)
            return None
        self._used.append(found)
        return found

    def _best(self, prompt: Sequence[int], target: CausalModel) -> Caches | None:
        """Those that share most with a prompt; kept ones where they are equal."""
        alike = [caches for caches in (*self._kept, *self._used) if caches.target.model is target]
        best = max(alike, key=lambda caches: caches.shared(prompt), default=None)
        return best if best is not None and best.shared(prompt) > 0 else None

    def give(self, caches: Caches) -> None:
        """Its request has ended; what it leaves is kept."""
        self._used.remove(caches)
        if self._keep:
            for context in (caches.target, caches.draft):
                if context is not None:
                    context.slot.rewind(context.slot.length)  # pending nodes are no text
            self._kept.append(caches)
            del self._kept[:-KEPT]
            self.make_room(0)

    def lose(self, caches: Caches) -> None:
        """Nobody needs them any more, or nobody knows what they hold."""
        self._used.remove(caches)

    def clear(self) -> None:
        """Nothing is kept."""
        self._kept.clear()
