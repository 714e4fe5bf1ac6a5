"""One request as its user sees it: the stream of chunks, and the result when it has ended.

It turns steps into text and ends where the text stops. It knows nothing of models.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor

from ouroboros.decoding.loop import Begun, Event, Step
from ouroboros.errors import OuroborosError
from ouroboros.stats import Decision, Stats, StatsRecorder
from ouroboros.text import TextStream, Tokenizer
from ouroboros.tree import TokenTree

__all__ = ["Chunk", "GenerationResult", "Stream", "TokenLogprobs", "Transcript"]


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A new token's log-probability under the target model (raw, before any warping, natural logarithm), and the
    likeliest tokens' (token id, log-probability), best first."""

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """A finished request.

    Attributes:
        text: the new text, without end-of-sequence token and stop string; None where there is no tokenizer.
        token_ids: the new tokens; a closing end-of-sequence token is among them, and with a stop string they end with
            the token that completes it. prompt_token_ids: the prompt's tokens.
        finish_reason: ``stop`` (end-of-sequence or stop string), ``length``, or ``cancelled`` for a closed stream.
        stats: what happened. logprobs: of each new token, if they were asked for. decisions: of each step, where a
            controller chose its sizes.
    """

    text: str | None
    token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]
    finish_reason: str
    stats: Stats
    logprobs: tuple[TokenLogprobs, ...] | None = None
    decisions: tuple[Decision, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one target forward yielded.

    Attributes:
        text: whole characters that are certain not to belong to a stop string. token_ids: the step's tokens.
        sources: each token's origin: ``draft``, ``phrase`` or ``bonus``.
        pieces: (text, source) of each token; joined they are ``text``. logprobs: of each token, if they were asked for.
        refused: of each token, what was drafted for its place and the target did not draw: token ids.
    """

    text: str
    token_ids: tuple[int, ...]
    sources: tuple[str, ...]
    pieces: tuple[tuple[str, str], ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    refused: tuple[tuple[int, ...], ...] = ()


class Transcript:
    """What a request has written so far: events in, chunks out. Whoever decodes tells it of each event, in order.

    Attributes:
        stopped: a stop token or stop string ended the text. result: the whole request, once it has ended.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        stops: Sequence[str],
        recorder: StatsRecorder,
        prompt: Sequence[int],
        stop_ids: frozenset[int],
        logprobs: int | None = None,
    ) -> None:
        self.stopped = False
        self.result: GenerationResult | None = None
        self._text = TextStream(tokenizer, prompt, stops)
        self._has_text = tokenizer is not None
        self._recorder = recorder
        self._prompt = tuple(prompt)
        self._stop_ids = stop_ids
        self._logprobs: list[TokenLogprobs] | None = None if logprobs is None else []
        self._top = logprobs or 0
        self._token_ids: list[int] = []
        self._written: list[str] = []

    def take(self, event: Event) -> Chunk | None:
        """What an event adds to the text; nothing may follow once it is ``stopped``."""
        if isinstance(event, Begun):
            self._recorder.begin(event.cached_tokens, event.seconds, event.draft_seconds)
            return None
        return self._take(event)

    def end(self, cancelled: bool = False) -> Chunk | None:
        """Nothing follows. Returns the text that was held back, if any; its tokens are among what was written. Does
        nothing to a request that has ended."""
        if self.result is not None:
            return None
        rest = self._text.finish()  # may complete a stop string that ends in what was held back
        if rest:
            self._written.append(rest)
        stopped = self.stopped or (not cancelled and self._text.stopped)
        self.result = GenerationResult(
            text="".join(self._written) if self._has_text else None,
            token_ids=tuple(self._token_ids),
            prompt_token_ids=self._prompt,
            finish_reason="cancelled" if cancelled else "stop" if stopped else "length",
            stats=self._recorder.freeze(),
            logprobs=None if self._logprobs is None else tuple(self._logprobs),
            decisions=tuple(self._recorder.decisions),
        )
        return Chunk(rest, (), (), ((rest, "bonus"),)) if rest else None

    def _take(self, step: Step) -> Chunk:
        """The part of a step up to where the text stops."""
        pieces = []
        for token, origin in zip(step.tokens, step.origins, strict=True):
            piece = ""
            if token in self._stop_ids:
                self.stopped = True
            else:
                piece, self.stopped = self._text.push(token)
            pieces.append((piece, origin.label))
            if self.stopped:
                break
        token_ids = step.tokens[: len(pieces)]
        step.record(self._recorder, len(token_ids))
        text = "".join(piece for piece, _ in pieces)
        self._token_ids += token_ids
        found: list[TokenLogprobs] = []
        if self._logprobs is not None and step.logits_TV is not None:
            found = _logprobs(step.logits_TV[: len(token_ids)], token_ids, self._top)
            self._logprobs += found
        self._written.append(text)
        refused = _refused(step.tree, token_ids)
        sources = tuple(source for _, source in pieces)
        return Chunk(text, token_ids, sources, tuple(pieces), tuple(found), refused)


class Stream:
    """One request as it is decoded: iterate over its chunks; ``close`` (or leaving the context) cancels it.

    ``result`` is there once the iteration has ended or the stream is closed.
    """

    def __init__(self, events: Generator[Event], transcript: Transcript) -> None:
        self._transcript = transcript
        self._chunks = self._run(events)

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops decoding; what was written is kept in ``result``. Does nothing to a stream that has ended."""
        self._chunks.close()
        self._transcript.end(cancelled=True)

    @property
    def result(self) -> GenerationResult:
        """The whole request.

        Raises:
            OuroborosError: the stream has not ended yet.
        """
        if self._transcript.result is None:
            raise OuroborosError("the stream has not ended: iterate to its end or close it before reading its result")
        return self._transcript.result

    def _run(self, events: Generator[Event]) -> Generator[Chunk]:
        with contextlib.closing(events):
            for event in events:
                chunk = self._transcript.take(event)
                if chunk is not None:
                    yield chunk
                if self._transcript.stopped:
                    break
        rest = self._transcript.end()
        if rest is not None:
            yield rest


def _refused(tree: TokenTree, token_ids: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    found: list[tuple[int, ...]] = []
    node: int | None = 0
    for token in token_ids:
        others = () if node is None else tree.children(node)
        found.append(tuple(tree.tokens[child] for child in others if tree.tokens[child] != token))
        node = None if node is None else tree.child(node, token)
    return tuple(found)


def _logprobs(logits_TV: Tensor, token_ids: Sequence[int], count: int) -> list[TokenLogprobs]:
    logprobs_TV = (logits_TV if logits_TV.dtype == torch.float64 else logits_TV.float()).log_softmax(-1)
    own = logprobs_TV.gather(-1, torch.tensor(token_ids, device=logits_TV.device)[:, None])[:, 0].tolist()
    top = logprobs_TV.topk(min(count, logprobs_TV.shape[-1]), dim=-1)
    rows = zip(own, top.indices.tolist(), top.values.tolist(), strict=True)
    return [TokenLogprobs(value, tuple(zip(ids, values, strict=True))) for value, ids, values in rows]
