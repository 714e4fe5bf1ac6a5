"""The scheduler: many requests at once, one forward for what all of them need.

A round (``step``): requests that were cancelled leave, waiting ones are let in, room is made for the rows to come, and
one forward answers what the running requests need. Those that draft go first, one draft forward for all of them; when
all have their trees, one forward of the target scores them together, and reads of prompts as much as doubles its time:
running requests never wait more than twice as long as without. Rows are a common good: each request is told what
the others have in the forward and what they yield (``Load``), so that it drafts what pays for all.

Invariant: what a request writes depends on nothing here. Who calls ``step`` owns models, flows and caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from ouroboros.config import MethodOptions
from ouroboros.control.experience import Control
from ouroboros.decoding.loop import Begun, Event, Step
from ouroboros.decoding.request import Request, start
from ouroboros.decoding.run import wait_for
from ouroboros.flow import Answer, Need, Score
from ouroboros.models.base import CausalModel, ScoreRequest
from ouroboros.serving.caches import Caches, CacheStore
from ouroboros.serving.job import Job, Sink
from ouroboros.serving.loads import Loads
from ouroboros.serving.pace import MOST, Pace
from ouroboros.tree import TokenTree

__all__ = ["Scheduler"]

AGE = 10.0  # seconds of waiting that one level of priority is worth: nobody waits for ever


class Scheduler:
    """
    Args:
        options: of the method. control: what is known of costs and texts; learns from each forward. clock: seconds.
        max_requests: that run at once. caches: where requests find and leave theirs; None: nothing is kept.

    Attributes:
        waiting, running: requests; the running ones in the order in which they were let in. put_back: how many times
            one was, for want of memory.
    """

    def __init__(
        self,
        options: MethodOptions,
        control: Control,
        clock: Callable[[], float] = time.perf_counter,
        max_requests: int = 8,
        caches: CacheStore | None = None,
    ) -> None:
        self.caches = CacheStore(keep=False) if caches is None else caches
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self.put_back = 0
        self._options, self._control, self._clock, self._max = options, control, clock, max_requests
        self._number = 0
        self._pace = Pace()
        self._loads = Loads()

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    def add(
        self, request: Request, target: CausalModel, draft: CausalModel | None, sink: Sink, priority: int = 0
    ) -> Job:
        """A request waits its turn: first come, first served. ``priority``: as if it had come 10 seconds earlier for
        each level."""
        self._number += 1
        job = Job(request, target, draft, sink, (self._clock() - AGE * priority, self._number))
        self.waiting.append(job)
        return job

    def cancel(self, job: Job) -> None:
        """It leaves before the next forward, with what it has."""
        job.cancelled = True

    def step(self) -> None:
        """One round."""
        for job in [job for job in (*self.running, *self.waiting) if job.cancelled]:
            self._end(job)
        self._admit()
        self._make_room()
        drafting = [job for job in self.running if job.asks_draft]
        if drafting:
            self._loads.drafted(len(drafting))
            self._score(drafting)
            return
        asking = [job for job in self.running if job.asks_target]
        self._read(asking, self._score(asking))

    def give_up(self, error: Exception) -> None:
        """Ends all requests, and forgets all caches."""
        for job in (*self.running, *self.waiting):
            self._end(job, error)
        self.caches.clear()

    # --- who runs ---

    def _admit(self) -> None:
        """Lets requests in, as long as there is room for their prompts."""
        self.waiting.sort(key=lambda job: job.place)
        for job in list(self.waiting):
            if len(self.running) >= self._max:
                break
            self._loads.coming = min(len(self.waiting), self._max - len(self.running)) - 1
            text = job.text
            if self.caches.coming(text, job.target) > 0:
                continue  # another one is reading the same prompt: its rows are there soon
            try:
                job.caches = self.caches.take(text, job.target, job.draft, whatever=not self.running)
            except Exception as error:  # guidance reads its negative prompt here
                self._end(job, error)
                continue
            if job.caches is None:
                break
            self.waiting.remove(job)
            self.running.append(job)
            self._start(job, job.caches)
        self._loads.coming = 0

    def _start(self, job: Job, caches: Caches) -> None:
        request = job.request
        if job.written:  # it was put back: what it wrote is read again
            request = replace(request, prompt=job.text, written=len(job.written))
        else:
            job.since = self._clock()
        self._loads.tell(job, self.running)
        try:
            job.flow = start(request, self._options, caches.target, caches.draft, self._control, job.load)
        except Exception as error:
            self._end(job, error)
            return
        self._go_on(job, None)

    def _make_room(self) -> None:
        """For the rows to come: kept caches go first, then the youngest request waits and is read again later."""
        while not self.caches.make_room(sum(job.growth(MOST) for job in self.running)) and len(self.running) > 1:
            self._put_back(max(self.running, key=lambda job: job.place))

    def _put_back(self, job: Job) -> None:
        job.close()
        assert job.caches is not None
        self.caches.lose(job.caches)
        job.caches = job.flow = job.need = None
        self.running.remove(job)
        self.waiting.append(job)
        self.put_back += 1

    def _end(self, job: Job, error: Exception | None = None) -> None:
        error = job.close() or error
        if job.caches is not None:
            (self.caches.give if error is None else self.caches.lose)(job.caches)
        (self.running if job in self.running else self.waiting).remove(job)
        job.caches = job.flow = job.need = None
        job.sink.end(error, job.cancelled)

    # --- forwards ---

    def _score(self, jobs: Sequence[Job]) -> float | None:
        """One forward of each model that these requests ask, and with the target's what it may read of prompts.
        Returns the seconds that are left for reading; None for as many as it takes, since nobody waits."""
        groups: dict[int, list[Job]] = {}
        for job in jobs:
            assert job.need is not None
            groups.setdefault(id(job.need.model), []).append(job)
        return sum(self._forward(group, self._parts(group)) for group in groups.values()) if groups else None

    def _forward(self, group: Sequence[Job], parts: Sequence[tuple[Job, ScoreRequest]]) -> float:
        """One forward that scores for a group and reads parts of others' prompts. Returns what it took for the group,
        less what it took for the others."""
        needs = [job.need for job in group if isinstance(job.need, Score)]
        model, asked = needs[0].model, [*(need.request for need in needs), *(part for _, part in parts)]
        sizes = [len(request.tree) - request.slot.pending + len(request.catch_up) for request in asked]
        rows, read = sum(sizes), sum(sizes[len(group) :])
        context = sum(request.slot.length * size for request, size in zip(asked, sizes, strict=True))
        began = self._clock()
        try:
            logits = model.score(asked)
            wait_for(model)
        except Exception as error:
            self._fail([*group, *(job for job, _ in parts)], error)
            return 0.0
        seconds = self._clock() - began
        self._control.observe(model, rows, context // max(1, rows), seconds)
        reading = self._pace.scored(model, seconds, read)
        for job in group:
            job.draft_rows = 0
            job.measure()
        if group[0].asks_target:
            self._loads.scored(len(group), read)
        for (job, part), size in zip(parts, sizes[len(group) :], strict=True):
            part.slot.commit([0])
            self._has_read(job, size, reading * size / read)
        for job, logits_RV in zip(group, logits, strict=False):
            self._go_on(job, Answer(logits_RV, seconds, rows, job.around))
        return seconds - 2 * reading

    def _parts(self, group: Sequence[Job]) -> list[tuple[Job, ScoreRequest]]:
        """What is read of prompts in a forward of this group."""
        model, parts = group[0].target, []
        if group[0].asks_target and model.info.mixes:
            budget = self._pace.budget(model)
            for job in self._readers(model):
                if budget > 0:
                    part = job.unread(budget)
                    parts.append((job, ScoreRequest(part.slot, TokenTree(part.tokens[-1]), (), part.tokens[:-1])))
                    budget -= part.rows
        return parts

    def _read(self, asked: Sequence[Job], left: float | None) -> None:
        """Reads prompts in forwards of their own, for so many seconds; None: as much as one forward takes."""
        with_next = {id(job.target) for job in asked if job.target.info.mixes}  # those come with the next scoring
        for job in self._readers():
            part = job.unread(MOST)
            if id(part.model) in with_next or (left is not None and left <= 0):
                continue
            if left is not None:
                part = job.unread(self._pace.budget(part.model, left))
            began = self._clock()
            try:
                part.model.prefill(part.slot, part.tokens)
                wait_for(part.model)
            except Exception as error:
                self._fail([job], error)
                continue
            seconds = self._clock() - began
            self._control.observe(part.model, part.rows, part.slot.length, seconds)
            self._pace.read(part.model, seconds, part.rows)
            self._has_read(job, part.rows, seconds)
            left = (left or 0.0) - seconds

    def _readers(self, model: CausalModel | None = None) -> list[Job]:
        """Those that read a prompt (with this model), the first come first."""
        found = [job for job in self.running if job.reads and (model is None or job.unread(1).model is model)]
        return sorted(found, key=lambda job: job.place)

    def _has_read(self, job: Job, tokens: int, seconds: float) -> None:
        job.read, job.reading = job.read + tokens, job.reading + seconds
        job.measure()
        if not job.unread(1).tokens:
            self._go_on(job, Answer(seconds=job.reading, rows=job.read, around=job.around))

    def _fail(self, jobs: Iterable[Job], error: Exception) -> None:
        """The model failed: so do all who were in the forward, for it may have left half a row in each cache."""
        for job in jobs:
            self._end(job, error)

    def _go_on(self, job: Job, answer: Answer | None) -> None:
        """Hands a request its answer; it goes on until it needs something else, or ends."""
        assert job.flow is not None
        began = self._clock()
        job.need, job.read, job.reading = None, 0, 0.0
        self._loads.tell(job, self.running)
        try:
            need: Need | Event = job.flow.send(answer)
            while isinstance(need, Begun | Step):
                if not job.tell(need, self._clock()):
                    self._end(job)
                    return
                need = job.flow.send(None)
        except StopIteration:
            self._end(job)
        except Exception as error:
            self._end(job, error)
        else:
            job.wait_with(need, self._clock() - began)
