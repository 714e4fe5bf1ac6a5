"""A ticket: one submitted request as its user sees it, from any thread or event loop.

The engine's thread writes, one consumer reads; they meet in a queue. What has arrived stays until it is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

from ouroboros.decoding.loop import Event
from ouroboros.errors import OuroborosError
from ouroboros.stream import Chunk, GenerationResult, Transcript

__all__ = ["Ticket"]


class Ticket:
    """Iterate over it, or ``async for``, for the chunks of ``Decoder.stream``; made by ``Engine.submit``.

    Attributes:
        prompt_tokens: of the prompt.
    """

    def __init__(self, transcript: Transcript, prompt_tokens: int, cancel: Callable[[Ticket], None]) -> None:
        self.prompt_tokens = prompt_tokens
        self._transcript = transcript
        self._cancel = cancel
        self._changed = threading.Condition()
        self._chunks: deque[Chunk] = deque()
        self._done = False
        self._error: OuroborosError | None = None
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    # --- for who submitted ---

    @property
    def done(self) -> bool:
        """Whether the request has ended: by itself, cancelled, or with an error."""
        return self._done

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        with self._changed:
            self._changed.wait_for(lambda: self._chunks or self._done)
            if self._chunks:
                return self._chunks.popleft()
            self._check()
        raise StopIteration

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        while True:
            with self._changed:
                if self._chunks:
                    return self._chunks.popleft()
                if self._done:
                    self._check()
                    raise StopAsyncIteration
                coming = self._announce()
            await coming

    def result(self, timeout: float | None = None) -> GenerationResult:
        """Waits for the end of the request, chunks read or not; of a cancelled one it is what it wrote.

        Raises:
            OuroborosError: the request failed, or has not ended after ``timeout`` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._done, timeout):
                raise OuroborosError(f"the request has not ended within {timeout:g} seconds")
            return self._found()

    async def finished(self) -> GenerationResult:
        """As ``result``, for an event loop."""
        while True:
            with self._changed:
                if self._done:
                    return self._found()
                coming = self._announce()
            await coming

    def cancel(self) -> None:
        """Ends the request before the next forward; its result is what it wrote. Returns at once, and does nothing to
        a request that has ended."""
        if not self._done:
            self._cancel(self)

    def _found(self) -> GenerationResult:
        self._check()
        result = self._transcript.result
        assert result is not None
        return result

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _announce(self) -> asyncio.Future[None]:
        """Is done when something has changed."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiters.append((loop, future))
        return future

    # --- for the engine's thread (see job.Sink) ---

    def take(self, event: Event) -> bool:
        chunk = self._transcript.take(event)
        if chunk is not None:
            self._add(chunk)
        return not self._transcript.stopped

    def end(self, error: Exception | None, cancelled: bool) -> None:
        if error is not None and not isinstance(error, OuroborosError):
            told = " ".join(str(error).split())[:300]
            wrapped = OuroborosError(f"the request failed: {type(error).__name__}{': ' if told else ''}{told}")
            wrapped.__cause__ = error
            error = wrapped
        rest = self._transcript.end(cancelled or error is not None)
        self._add(rest, error, done=True)

    def _add(self, chunk: Chunk | None, error: OuroborosError | None = None, done: bool = False) -> None:
        with self._changed:
            if chunk is not None:
                self._chunks.append(chunk)
            self._error, self._done = error, done
            waiters, self._waiters = self._waiters, []
            self._changed.notify_all()
        for loop, future in waiters:
            with contextlib.suppress(RuntimeError):  # a loop that is closed waits for nothing
                loop.call_soon_threadsafe(_set, future)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
