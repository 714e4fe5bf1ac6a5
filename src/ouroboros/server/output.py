"""What one sample writes, as a client sees it: text, calls, log-probabilities, sources. Streams and whole answers are
made of the same pieces, so that they say the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ouroboros.errors import OuroborosError
from ouroboros.server.errors import of_library
from ouroboros.server.service import Run, Service
from ouroboros.server.tools import Arguments, Begin, CallParser, Content
from ouroboros.serving.ticket import Ticket
from ouroboros.stream import Chunk, GenerationResult, TokenLogprobs
from ouroboros.text import Tokenizer

__all__ = ["Delta", "Output", "merged", "usage_of"]


@dataclass(slots=True)
class Delta:
    """What has come since the last one. ``sources``: of each token its text, where it comes from, the number of its
    step from 1 (None for text of earlier tokens that was held back), and what was drafted in its place and refused."""

    events: list[Content | Begin | Arguments] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    sources: list[dict[str, Any]] = field(default_factory=list)
    finish: str | None = None  # why the text has ended, with its last delta

    @property
    def content(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Content))


class Output:
    """Of one ticket.

    Args:
        parser: of calls; None: all is text. logprobs, sources: whether they were asked for.

    Attributes:
        text, calls, logprobs, sources: all of it so far; of a call its id, name and arguments. finish: why it ended.
    """

    def __init__(
        self,
        index: int,
        ticket: Ticket,
        service: Service,
        parser: CallParser | None = None,
        logprobs: bool = False,
        sources: bool = False,
    ) -> None:
        self.index, self.ticket = index, ticket
        self.text = ""
        self.calls: list[dict[str, str]] = []
        self.logprobs: list[dict[str, Any]] = []
        self.sources: list[dict[str, Any]] = []
        self._steps = 0
        self.finish: str | None = None
        self.result: GenerationResult | None = None
        self._words, self._ends = service.words, service.ends
        self._metrics, self._began, self._first = service.metrics, time.monotonic(), False
        self._parser, self._logprobs, self._with_sources = parser, logprobs, sources

    def take(self, chunk: Chunk) -> Delta:
        """A step's text."""
        if not self._first:
            self._first = True
            self._metrics.first(time.monotonic() - self._began)
        delta = Delta(self._parse(chunk.text))
        if self._logprobs:
            pairs = zip(chunk.token_ids, chunk.logprobs, strict=True)
            delta.logprobs = [_entry(token, one, self._words) for token, one in pairs if token not in self._ends]
        if self._with_sources:
            delta.sources = self._sources_of(chunk)
        return self._note(delta)

    def _sources_of(self, chunk: Chunk) -> list[dict[str, Any]]:
        if not chunk.token_ids:
            return [{"text": text, "source": source, "step": None} for text, source in chunk.pieces]
        self._steps += 1
        found: list[dict[str, Any]] = []
        for (text, source), refused in zip(chunk.pieces, chunk.refused, strict=True):
            found.append({"text": text, "source": source, "step": self._steps})
            if refused and self._words is not None:
                found[-1]["refused"] = [self._words.spelling(token) for token in refused]
        return found

    def end(self, result: GenerationResult) -> Delta:
        """The text is over."""
        delta = self._note(Delta() if self._parser is None else Delta(self._parser.finish()))
        self.result = result
        stopped = result.finish_reason == "stop"
        self.finish = ("tool_calls" if self.calls else "stop") if stopped else "length"
        delta.finish = self.finish
        self._metrics.finished(result.stats, self.finish, time.monotonic() - self._began)
        return delta

    def fail(self) -> None:
        """The request has failed."""
        self._metrics.failed("error")

    def _parse(self, text: str) -> list[Content | Begin | Arguments]:
        if self._parser is not None:
            return self._parser.push(text)
        return [Content(text)] if text else []

    def _note(self, delta: Delta) -> Delta:
        for event in delta.events:
            if isinstance(event, Content):
                self.text += event.text
            elif isinstance(event, Begin):
                self.calls.append({"id": event.id, "name": event.name, "arguments": ""})
            else:
                self.calls[event.index]["arguments"] += event.text
        self.logprobs += delta.logprobs
        self.sources += delta.sources
        return delta


async def merged(outputs: Sequence[Output]) -> AsyncGenerator[tuple[Output, Delta]]:
    """What all of them write, as it comes; the last delta of each has its ``finish``.

    Raises:
        APIError: one of them failed.
    """
    if len(outputs) == 1:
        async for pair in _deltas(outputs[0]):
            yield pair
        return
    queue: asyncio.Queue[tuple[Output, Delta] | Exception] = asyncio.Queue()

    async def pump(output: Output) -> None:
        try:
            async for pair in _deltas(output):
                queue.put_nowait(pair)
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(pump(output)) for output in outputs]
    try:
        left = len(tasks)
        while left:
            found = await queue.get()
            if isinstance(found, Exception):
                raise found
            left -= found[1].finish is not None
            yield found
    finally:
        for task in tasks:
            task.cancel()


async def _deltas(output: Output) -> AsyncGenerator[tuple[Output, Delta]]:
    try:
        async for chunk in output.ticket:
            yield output, output.take(chunk)
        yield output, output.end(await output.ticket.finished())
    except OuroborosError as error:
        output.fail()
        raise of_library(error) from error


def usage_of(run: Run, outputs: Sequence[Output]) -> dict[str, Any]:
    """Tokens as OpenAI counts them: a prompt once, whatever its samples; predicted tokens that the target refused count
    as written."""
    prompts = [ticket.prompt_tokens for ticket in run.tickets[:: run.samples]]
    found = [output.result.stats for output in outputs if output.result is not None]
    accepted = sum(stats.accepted_by_origin.get("predicted", 0) for stats in found)
    rejected = sum(stats.draft_tokens_by_origin.get("predicted", 0) for stats in found) - accepted
    written = sum(stats.new_tokens for stats in found) + rejected
    cached = sum(stats.cached_tokens for stats in found[:: run.samples])
    return {
        "prompt_tokens": sum(prompts),
        "completion_tokens": written,
        "total_tokens": sum(prompts) + written,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": rejected,
        },
    }


def _entry(token: int, one: TokenLogprobs, words: Tokenizer | None) -> dict[str, Any]:
    return {**_named(token, one.logprob, words), "top_logprobs": [_named(i, p, words) for i, p in one.top]}


def _named(token: int, logprob: float, words: Tokenizer | None) -> dict[str, Any]:
    text = f"token_id:{token}" if words is None else words.spelling(token)
    raw = text.encode("utf-8", "replace") if words is None else words.bytes_of(token)
    return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(raw)}
