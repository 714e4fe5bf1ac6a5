"""SpreadModel: a model whose weights lie in several processes, which all make the same forwards.

Rank 0 decodes as one process would: it alone draws, drafts and looks at a clock. What its forwards are, and what was
committed or dropped before them, goes to the others in one message a forward; they do the same to slots of their own.
So no two ranks can ever decide differently, and the text is that of one process. Outside of ``lead`` and ``follow`` all
ranks are called alike, as with any module of this kind (the probe at load).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from torch import Tensor

from ouroboros.errors import OuroborosError
from ouroboros.models.base import CausalModel, ScoreRequest, Slot
from ouroboros.models.ranks import Ranks
from ouroboros.tree import Origin, TokenTree

__all__ = ["SpreadModel"]

T = TypeVar("T")


class _LedSlot:
    """See base.Slot: rank 0's own rows. What is done to them is noted for the other ranks, in order."""

    def __init__(self, number: int, rows: Slot, notes: list[tuple[Any, ...]], count: list[int]) -> None:
        self.number, self.rows = number, rows
        self._notes, self._count = notes, count
        weakref.finalize(self, notes.append, ("close", number)).atexit = False

    @property
    def length(self) -> int:
        return self.rows.length

    @property
    def pending(self) -> int:
        return self.rows.pending

    def commit(self, path: Sequence[int]) -> None:
        self._notes.append(("commit", self.number, list(path)))
        self.rows.commit(path)

    def truncate(self, pending: int) -> None:
        self._notes.append(("truncate", self.number, pending))
        self.rows.truncate(pending)

    def rewind(self, length: int) -> None:
        self._notes.append(("rewind", self.number, length))
        self.rows.rewind(length)

    def fork(self, length: int) -> _LedSlot:
        self._count[0] += 1
        self._notes.append(("fork", self.number, length, self._count[0]))
        return _LedSlot(self._count[0], self.rows.fork(length), self._notes, self._count)


class SpreadModel:
    """See base.CausalModel, and the header.

    Args:
        model: this rank's part. ranks: all of them.
    """

    def __init__(self, model: CausalModel, ranks: Ranks) -> None:
        self.info, self.ranks = model.info, ranks
        self._model = model
        self._notes: list[tuple[Any, ...]] = []  # for the next message
        self._count = [0]  # slots that were opened
        self._slots: dict[int, Slot] = {}  # of the others, by rank 0's numbers
        self._leading = self._busy = False

    def open(self) -> Slot:
        if not self._leading:
            return self._model.open()
        self._count[0] += 1
        self._notes.append(("open", self._count[0]))
        return _LedSlot(self._count[0], self._model.open(), self._notes, self._count)

    def prefill(self, slot: Slot, token_ids: Sequence[int]) -> None:
        if not isinstance(slot, _LedSlot):
            return self._model.prefill(slot, token_ids)
        if not token_ids:
            return None  # no forward: nobody would know when it was heard of
        self._tell(("prefill", slot.number, list(token_ids)))
        return self._forward(lambda: self._model.prefill(slot.rows, token_ids))

    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        slots = [request.slot for request in requests]
        if not all(isinstance(slot, _LedSlot) for slot in slots):
            return self._model.score(requests)
        parts, own = [], []
        for request, slot in zip(requests, slots, strict=True):
            assert isinstance(slot, _LedSlot)
            tree, rows = request.tree, None if request.rows is None else list(request.rows)
            parts.append((slot.number, list(tree.tokens), list(tree.parents), rows, list(request.catch_up)))
            own.append(ScoreRequest(slot.rows, tree, request.rows, request.catch_up))
        self._tell(("score", parts))
        return self._forward(lambda: self._model.score(own))

    def _tell(self, forward: tuple[Any, ...] | None) -> None:
        notes = self._notes[:]
        del self._notes[: len(notes)]  # a slot may be dropped meanwhile, on any thread
        self.ranks.send((notes, forward))

    def _forward(self, call: Callable[[], T]) -> T:
        """Makes this rank's part of a forward."""
        try:
            found = call()
        except RuntimeError as error:
            raise self.ranks.gone(error) from error
        if self.ranks.leads:
            self.ranks.drop()  # whoever took part has heard of it
        return found

    def _begin(self) -> None:
        if self.ranks.lost:
            raise OuroborosError("another rank was lost in an earlier request; load the model again on all ranks")
        if self._busy:
            told = "a model in several processes decodes one request at a time"
            raise OuroborosError(f"{told}: iterate over the last stream to its end, or close it, first")
        self.ranks.meet()
        self._busy = True

    def lead(self, events: Generator[T]) -> Generator[T]:
        """Rank 0's side of a request: the same events, which reach the others too. What is opened meanwhile can be
        used in later requests.

        Raises:
            OuroborosError: another rank is gone, or another request has not ended.
        """
        failed: Exception | None = None
        self._begin()
        self._leading = True
        try:
            for event in events:
                self._notes.append(("event", event))
                self._tell(None)  # now: whoever takes it may wait for the other ranks before it takes the next
                yield event
        except Exception as error:
            failed = error
            raise
        finally:
            events.close()
            self._leading = self._busy = False
            if not self.ranks.lost:
                known = failed if failed is None or isinstance(failed, OuroborosError) else OuroborosError(str(failed))
                self._notes.append(("end", known))
                self._tell(None)
                self.ranks.meet()  # so that nobody is left alone with a message that cannot be read any more
                self.ranks.drop()

    def follow(self) -> Generator[Any]:
        """The other ranks' side: makes what rank 0 asks for. Yields rank 0's events; closed early, it goes on to the
        request's end without anybody to take them.

        Raises:
            OuroborosError: rank 0 is gone; or what ended the request there.
        """
        self._begin()
        end: tuple[Exception | None] | None = None
        wanted = True
        while end is None:
            notes, forward = self.ranks.hear()
            for what, *about in notes:
                if what == "event":
                    if wanted:
                        try:
                            yield about[0]
                        except GeneratorExit:
                            wanted = False
                elif what == "end":
                    end = (about[0],)
                else:
                    self._apply(what, *about)
            if forward is not None:
                self._follow(*forward)
        self.ranks.meet()
        self._busy = False
        if end[0] is not None and wanted:
            raise end[0]

    def _apply(self, what: str, number: int, *about: Any) -> None:
        """One of rank 0's notes, on this rank's slots."""
        slots = self._slots
        if what == "open":
            slots[number] = self._model.open()
        elif what == "close":
            slots.pop(number, None)
        elif what == "fork":
            length, copy = about
            slots[copy] = slots[number].fork(length)
        else:
            getattr(slots[number], what)(*about)  # commit, truncate, rewind

    def _follow(self, what: str, *about: Any) -> None:
        """One of rank 0's forwards."""
        if what == "prefill":
            number, tokens = about
            self._forward(lambda: self._model.prefill(self._slots[number], tokens))
            return
        requests = []
        for number, tokens, parents, rows, catch_up in about[0]:
            tree = TokenTree(tokens[0])
            for token, parent in zip(tokens[1:], parents[1:], strict=True):
                tree.add(parent, token, Origin.DRAFT)
            requests.append(ScoreRequest(self._slots[number], tree, rows, catch_up))
        self._forward(lambda: self._model.score(requests))
