"""The engine as the routes use it: requests are counted, timed and cancelled here. It knows nothing of HTTP.

Used on one event loop. What blocks (prompts into tokens, grammars, files) runs in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from ouroboros._version import __version__
from ouroboros.config import MAX_SEED, SamplingParams
from ouroboros.errors import OuroborosError
from ouroboros.generate import Decoder
from ouroboros.prompts import Prompt, encode
from ouroboros.server.errors import APIError, of_library
from ouroboros.server.metrics import Metrics
from ouroboros.server.settings import Settings
from ouroboros.server.tenants import Tenants
from ouroboros.server.tool_formats import format_of
from ouroboros.serving.engine import Engine
from ouroboros.serving.ticket import Ticket
from ouroboros.text import Tokenizer

__all__ = ["Run", "Service"]

T = TypeVar("T")
MOST_IDS = 1 << 22  # tokens that a prompt is encoded to before it is told that it is too long


class Run:
    """One client's request: a ticket for each sample of each prompt, in this order.

    Attributes:
        began: seconds, of the clock that the event loop has. memory: the name of its tenant. cut: the server ended it,
            not the client.
    """

    def __init__(self, tickets: Sequence[Ticket], samples: int, began: float, memory: str | None = None) -> None:
        self.tickets = tuple(tickets)
        self.memory = memory
        self.samples = samples
        self.began = began
        self.cut = False
        self.timer: asyncio.TimerHandle | None = None

    @property
    def live(self) -> int:
        """Tickets that have not ended."""
        return sum(not ticket.done for ticket in self.tickets)

    def cancel(self, cut: bool = False) -> None:
        """Ends what has not ended, with what it has. ``cut``: the client still waits for it."""
        self.cut = self.cut or cut
        for ticket in self.tickets:
            ticket.cancel()


class Service:
    """
    Args:
        decoder: loaded. settings: as the server was told. The engine is its own, and ends with ``close``.

    Attributes:
        stopping: no request is let in any more.
    """

    def __init__(self, decoder: Decoder, settings: Settings) -> None:
        self.decoder, self.settings = decoder, settings
        self.words: Tokenizer | None = decoder.tokenizer
        self.metrics = Metrics()
        bound, size = decoder.fingerprint, decoder.target.info.vocab_size
        self.tenants = Tenants(
            decoder.memory,
            decoder.lock,
            settings.memory_dir,
            bound,
            size,
            settings.max_tenants,
            neighbours=settings.neighbours,
        )
        self.engine = Engine(decoder, settings.max_requests, settings.kv_memory, memories=self.tenants.memory)
        self._saving: asyncio.Task[None] | None = None
        self.created = int(time.time())
        self.stopping = False
        self._live: set[Run] = set()
        self._reserved = 0  # tickets that are being made
        self._seconds = 1.0  # that a request took lately

    @property
    def context(self) -> int:
        """Tokens of prompt and output together."""
        return self.decoder.target.info.max_positions

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end a text and are no part of it."""
        own = self.words.eos_token_id if self.words is not None else None
        found = frozenset(self.decoder.target.info.eos_token_ids)
        return found if own is None else found | {own}

    def check_model(self, name: str | None) -> None:
        """
        Raises:
            APIError: another model than is served here.
        """
        if name is not None and name != self.settings.model_name:
            told = f"the model {name!r:.100} does not exist here; there is {self.settings.model_name!r}"
            raise APIError(404, told, "model", "model_not_found")

    @property
    def tool_format(self) -> str:
        """How this model writes calls (see tool_formats.py)."""
        template = None if self.words is None else getattr(self.words.hf, "chat_template", None)
        return self.settings.tool_format or format_of(None if template is None else str(template))

    @property
    def system(self) -> str:
        """What an answer's text depends on beside the request."""
        info = self.decoder.target.info
        return f"ouroboros-{__version__}-{info.backend}-{info.dtype}"

    def memory_name(self, tenant: str | None, memory: str | bool | None) -> str | None:
        """Of the memory that a request reads and writes; None: one of its own.

        Args:
            tenant: of its API key; memories of one key are another's never. memory: as the request says itself.
        """
        return None if memory is False else f"{tenant or ''}/{memory or ''}"

    async def save_often(self) -> None:
        """Snapshots of what has changed, and what neighbours have learned, until it is cancelled."""
        while True:
            await asyncio.sleep(self.settings.save_every)
            await asyncio.to_thread(self.tenants.save)
            await asyncio.to_thread(self.tenants.exchange)

    async def encode(self, prompt: Prompt, param: str = "prompt") -> list[int]:
        """A prompt's tokens.

        Raises:
            APIError: an empty or too long prompt, or one that is not as it should be.
        """
        info = self.decoder.target.info
        ids = await self.call(lambda: encode(prompt, self.words, info.vocab_size, MOST_IDS, param))
        if len(ids) >= info.max_positions:
            told = f"{param} has {len(ids)} tokens; the model's context allows at most {info.max_positions - 1}"
            raise APIError(413, told, param, "context_length_exceeded")
        return ids

    async def call(self, work: Callable[[], T]) -> T:
        """Runs ``work`` in a thread.

        Raises:
            APIError: it raised an error of the library.
        """
        try:
            return await asyncio.to_thread(work)
        except OuroborosError as error:
            raise of_library(error) from error

    async def submit(self, prompts: Sequence[Sequence[int]], params: SamplingParams, memory: str | None) -> Run:
        """Hands the engine a request for ``params.n`` samples of each prompt.

        Raises:
            APIError: the queue is full, the server is stopping, or a parameter is not allowed.
        """
        count = len(prompts) * params.n
        self._check_queue(count)
        loop = asyncio.get_running_loop()
        run = Run((), params.n, loop.time(), memory)
        seed = secrets.randbits(63) if params.seed is None else params.seed
        tickets: list[Ticket] = []

        def submit() -> None:
            for ids in prompts:
                for i in range(params.n):
                    one = replace(params, n=1, seed=(seed + i) % (MAX_SEED + 1))
                    tickets.append(self.engine.submit(list(ids), one, memory=memory))

        self._reserved += count
        try:
            await self.call(submit)
        except BaseException:  # the client may have gone while it was checked
            for ticket in tickets:
                ticket.cancel()
            raise
        finally:
            self._reserved -= count
        run.tickets = tuple(tickets)
        self._live.add(run)
        if self.settings.request_timeout is not None:
            run.timer = loop.call_later(self.settings.request_timeout, run.cancel, True)
        return run

    def _check_queue(self, count: int) -> None:
        if self.stopping:
            raise APIError(503, "the server is stopping", code="stopping", headers={"retry-after": "5"})
        settings = self.settings
        waiting = sum(run.live for run in self._live) + self._reserved
        most = settings.max_requests + settings.max_queue
        if waiting + count > most:
            if count > most:
                raise APIError(400, f"{count} texts are asked for at once; this server takes {most}", "n")
            seconds = math.ceil(self._seconds * (waiting + count - most) / settings.max_requests)
            told = f"the queue is full: {waiting} of {most} requests"
            raise APIError(429, told, code="queue_full", headers={"retry-after": str(min(max(1, seconds), 120))})

    def end(self, run: Run) -> None:
        """The client has been told all, or has gone: what still runs is cancelled."""
        if run.timer is not None:
            run.timer.cancel()
        if run in self._live:
            self._live.discard(run)
            for _ in range(run.live):
                self.metrics.failed("cancelled")
            run.cancel()
            self.tenants.touch(run.memory)
            self._seconds += 0.2 * (asyncio.get_running_loop().time() - run.began - self._seconds)

    async def drain(self) -> None:
        """Waits until no request runs; after ``settings.grace`` seconds they end with what they have."""
        self.stopping = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.grace):
                while self._live:
                    await asyncio.sleep(0.02)
        for run in list(self._live):
            run.cancel(cut=True)

    async def finish(self) -> None:
        """The server ends."""
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Ends the engine, and with it all requests, and saves memories. Does nothing a second time."""
        self.stopping = True
        self.engine.close()
        self.tenants.close()
