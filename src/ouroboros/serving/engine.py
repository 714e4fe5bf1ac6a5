"""The engine: many requests at once, from any thread or event loop. Its own thread owns models, flows and memories.

    with ouroboros.Engine(decoder, max_requests=8, kv_memory=4 << 30) as engine:
        ticket = engine.submit("def add(a, b):", max_new_tokens=64, memory="tenant")   # returns at once
        for chunk in ticket: ...            # or: async for chunk in ticket; the chunks of Decoder.stream
        ticket.result(timeout=None)         # GenerationResult; or: await ticket.finished()
        ticket.cancel()                     # ends before the next forward; its result is what it wrote

``submit`` checks everything that can be checked (InputError). What goes wrong later is an OuroborosError, raised by the
ticket: a processor that raises ends its own request, a forward that fails ends all that were in it, and the engine goes
on. ``close`` ends all requests with what they have. Who may wait, and for how long, is the caller's business: ``load``
says how many run and wait.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from ouroboros.config import SamplingParams
from ouroboros.config.checks import check_int
from ouroboros.decoding.request import Request
from ouroboros.errors import InputError, OuroborosError
from ouroboros.generate import Decoder
from ouroboros.models.memory import available_memory
from ouroboros.phrases.memory import Memory
from ouroboros.preparing import params_of
from ouroboros.prompts import Prompt
from ouroboros.serving.caches import CacheStore, bytes_of
from ouroboros.serving.job import Job
from ouroboros.serving.scheduler import Scheduler
from ouroboros.serving.ticket import Ticket

__all__ = ["Engine", "EngineLoad"]


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What an engine has to do now. ``running``, ``waiting``: requests. ``kept``: caches of ended requests, for later
    ones. ``kv_bytes``: of all caches; 0 where nobody knows."""

    running: int
    waiting: int
    kept: int
    kv_bytes: int


class Engine:
    """Serves a decoder's models. As a context manager it closes itself; the decoder stays open.

    Args:
        decoder: its models, method, options, memory and what it knows of costs. It may be used beside the engine: they
            take turns. max_requests: that run at once; others wait. kv_memory: bytes that all KV caches take at most,
            those kept for later requests among them; None: half of what is free now. threads: of PyTorch and of the
            kernels, for this engine alone; None: as the caller's. memories: from the name of who asks (or None) to what
            their requests read and write, called in the thread that submits; None: as ``submit`` says.

    Raises:
        InputError: an argument out of range.
    """

    def __init__(
        self,
        decoder: Decoder,
        max_requests: int = 8,
        kv_memory: int | None = None,
        threads: int | None = None,
        memories: Callable[[str | None], Memory] | None = None,
    ) -> None:
        check_int("max_requests", max_requests, 1)
        if decoder.spread is not None:
            raise InputError(
                "an Engine needs a target in one process, not one whose weights lie in several: use generate"
            )
        if kv_memory is None:
            free = available_memory(torch.device(decoder.target.info.device))
            kv_memory = None if free is None else free // 2
        else:
            check_int("kv_memory", kv_memory, 1)
        if threads is not None:
            check_int("threads", threads, 1)
        self._decoder = decoder
        self._caches = CacheStore(kv_memory)
        self._scheduler = Scheduler(decoder.options, decoder.control, decoder.clock, max_requests, self._caches)
        self._memories = self._own_memory if memories is None else memories
        self._named: dict[str, Memory] = {}
        self._lock = threading.Condition()
        self._inbox: list[Callable[[], None]] = []  # what the thread is to do before its next round
        self._jobs: dict[Ticket, Job] = {}  # of requests that have not ended; the thread's own
        self._load = EngineLoad(0, 0, 0, 0)
        self._coming = 0  # submitted, not yet seen by the thread
        self._closed = False
        self._thread = threading.Thread(target=self._serve, args=(threads,), name="ouroboros-engine", daemon=True)
        before = torch.get_num_threads()
        ready = threading.Event()
        self._ready = ready
        self._thread.start()
        ready.wait()
        torch.set_num_threads(before)  # what other threads begin with; the engine's keeps its own

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def decoder(self) -> Decoder:
        return self._decoder

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    @property
    def load(self) -> EngineLoad:
        """As of the last round; requests that were submitted since are waiting."""
        with self._lock:
            known = self._load
            return EngineLoad(known.running, known.waiting + self._coming, known.kept, known.kv_bytes)

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        memory: str | None = None,
        priority: int = 0,
        **settings: Any,
    ) -> Ticket:
        """A request waits for its turn and runs beside others. Thread-safe; returns at once.

        Args:
            prompt, params, settings: as ``Decoder.generate``, of one sample. memory: the name of who asks: what their
                requests leave is read by their later ones alone; None: the decoder's memory, shared by all.
            priority: higher ones are let in earlier, as if they had come 10 seconds before for each level.

        Raises:
            InputError: an empty or too long prompt, a parameter out of range, or more tokens than ``kv_memory`` holds.
            OuroborosError: the engine is closed.
        """
        params = params_of(params, settings)
        if params.n != 1:
            raise InputError(f"n must be 1 for a ticket, not {params.n}: submit each sample, with seeds of its own")
        check_int("priority", priority, -(1 << 31), 1 << 31)
        if memory is not None and not isinstance(memory, str):
            raise InputError(f"memory must be a name or None, not {memory!r}")
        decoder = self._decoder
        prepared = decoder.prepare(prompt, params, self._memories(memory))
        request = prepared.request
        self._check_fits(request, 1 if prepared.guidance is None else 2)
        ticket = Ticket(prepared.transcript, len(request.prompt), self._cancel)

        def add() -> None:
            self._coming -= 1
            try:
                models = decoder.models_for(prepared.guidance)
                self._jobs[ticket] = self._scheduler.add(request, *models, ticket, priority)
            except Exception as error:
                ticket.end(error, cancelled=False)

        with self._lock:
            if self._closed:
                raise OuroborosError("the engine is closed")
            self._coming += 1
            self._inbox.append(add)
            self._lock.notify_all()
        return ticket

    def close(self) -> None:
        """Ends all requests with what they have, and the thread. Does nothing to an engine that is closed."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _own_memory(self, name: str | None) -> Memory:
        if name is None:
            return Memory() if self._decoder.memory is None else self._decoder.memory
        with self._lock:
            return self._named.setdefault(name, Memory())

    def _check_fits(self, request: Request, contexts: int) -> None:
        limit, decoder = self._caches.limit, self._decoder
        each = contexts * (bytes_of(decoder.target, 1) + bytes_of(decoder.draft, 1))
        prompt, new = len(request.prompt), request.sampler.params.max_new_tokens
        tokens = min(prompt + new, decoder.target.info.max_positions)
        if limit is not None and tokens * each > limit:
            told = f"a prompt of {prompt} tokens with max_new_tokens={new} may need {tokens * each} bytes of cache"
            raise InputError(f"{told}; kv_memory is {limit}, enough for {limit // each} tokens in all")

    def _cancel(self, ticket: Ticket) -> None:
        def cancel() -> None:
            job = self._jobs.get(ticket)
            if job is not None:
                self._scheduler.cancel(job)

        with self._lock:
            self._inbox.append(cancel)
            self._lock.notify_all()

    # --- the thread ---

    def _serve(self, threads: int | None) -> None:
        torch.set_num_threads(threads or torch.get_num_threads())
        self._ready.set()
        scheduler = self._scheduler
        while True:
            with self._lock:
                self._note()
                while not self._inbox and not self._closed and scheduler.idle:
                    self._lock.wait()
                messages, self._inbox = self._inbox, []
                for message in messages:
                    message()
                if self._closed:
                    break
            self._round()
        for job in (*scheduler.running, *scheduler.waiting):
            scheduler.cancel(job)
        self._round()

    def _round(self) -> None:
        try:
            with self._decoder.lock:
                self._scheduler.step()
        except Exception as error:  # of the scheduler itself: nobody knows what its requests have
            self._scheduler.give_up(error)
        self._jobs = {ticket: job for ticket, job in self._jobs.items() if not ticket.done}

    def _note(self) -> None:
        scheduler = self._scheduler
        bytes = self._caches.bytes
        self._load = EngineLoad(len(scheduler.running), len(scheduler.waiting), len(self._caches), bytes)
