"""The library's face: ``load`` a pair, ``generate`` text, ``stream`` it.

It turns prompts into tokens, runs the decoding loop, and turns steps into text, cut where a stop string begins. All
checks of a pair happen in ``load``; all checks of a request happen before its first forward.
"""

from __future__ import annotations

import operator
import os
import secrets
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeGuard, cast, overload

import torch
from torch import Tensor

from ouroboros.config import MethodOptions, SamplingParams
from ouroboros.decoder import Step, decode
from ouroboros.drafting.base import Drafter
from ouroboros.drafting.factory import build_drafter
from ouroboros.drafting.forced import ForcedDrafter
from ouroboros.errors import InputError, OuroborosError
from ouroboros.grammar import Grammar
from ouroboros.models.base import CausalModel
from ouroboros.phrases.pool import PhrasePool
from ouroboros.phrases.storage import save_pool
from ouroboros.sampling import Sampler
from ouroboros.stats import Stats, StatsRecorder
from ouroboros.text import TextStream, Tokenizer

__all__ = ["Chunk", "Decoder", "GenerationResult", "Prompt", "Stream", "TokenLogprobs"]

Prompt = str | Sequence[int]


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
        stats: what happened. logprobs: of each new token, if they were asked for.
    """

    text: str | None
    token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]
    finish_reason: str
    stats: Stats
    logprobs: tuple[TokenLogprobs, ...] | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one target forward yielded.

    Attributes:
        text: whole characters that are certain not to belong to a stop string. token_ids: the step's tokens.
        sources: each token's origin: ``draft``, ``phrase`` or ``bonus``.
        pieces: (text, source) of each token; joined they are ``text``.
    """

    text: str
    token_ids: tuple[int, ...]
    sources: tuple[str, ...]
    pieces: tuple[tuple[str, str], ...]


class Stream:
    """One request as it is decoded: iterate over its chunks; ``close`` (or leaving the context) cancels it.

    ``result`` is there once the iteration has ended or the stream is closed.
    """

    def __init__(
        self,
        steps: Iterator[Step],
        tokenizer: Tokenizer | None,
        stops: Sequence[str],
        recorder: StatsRecorder,
        prompt: Sequence[int],
        stop_ids: frozenset[int],
        logprobs: int | None = None,
    ) -> None:
        self._text = TextStream(tokenizer, prompt, stops)
        self._has_text = tokenizer is not None
        self._recorder = recorder
        self._prompt = tuple(prompt)
        self._stop_ids = stop_ids
        self._logprobs: list[TokenLogprobs] | None = None if logprobs is None else []
        self._top = logprobs or 0
        self._token_ids: list[int] = []
        self._written: list[str] = []
        self._reason = "cancelled"
        self._result: GenerationResult | None = None
        self._chunks = self._run(steps)

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
        self._finish()

    @property
    def result(self) -> GenerationResult:
        """The whole request.

        Raises:
            OuroborosError: the stream has not ended yet.
        """
        if self._result is None:
            raise OuroborosError("the stream has not ended: iterate to its end or close it before reading its result")
        return self._result

    def _run(self, steps: Iterator[Step]) -> Generator[Chunk]:
        for step in steps:
            chunk, stopped = self._take(step)
            yield chunk
            if stopped:
                self._reason = "stop"
                break
        else:
            self._reason = "length"
        rest = self._text.finish()  # may complete a stop string that ends in what was held back
        self._reason = "stop" if self._text.stopped else self._reason
        if rest:
            self._written.append(rest)
            yield Chunk(rest, (), (), ((rest, "bonus"),))
        self._finish()

    def _take(self, step: Step) -> tuple[Chunk, bool]:
        """The part of a step up to where the text stops, and whether it stops there."""
        pieces = []
        stopped = False
        for depth, (token, origin) in enumerate(zip(step.tokens, step.origins, strict=True), start=1):
            self._recorder.emit(origin.label, origin.value, depth)
            piece = ""
            if token in self._stop_ids:
                stopped = True
            else:
                piece, stopped = self._text.push(token)
            pieces.append((piece, origin.label))
            if stopped:
                break
        token_ids = step.tokens[: len(pieces)]
        text = "".join(piece for piece, _ in pieces)
        self._token_ids += token_ids
        if self._logprobs is not None and step.logits_TV is not None:
            self._logprobs += _logprobs(step.logits_TV[: len(token_ids)], token_ids, self._top)
        self._written.append(text)
        return Chunk(text, token_ids, tuple(source for _, source in pieces), tuple(pieces)), stopped

    def _finish(self) -> None:
        if self._result is None:
            self._result = GenerationResult(
                text="".join(self._written) if self._has_text else None,
                token_ids=tuple(self._token_ids),
                prompt_token_ids=self._prompt,
                finish_reason=self._reason,
                stats=self._recorder.freeze(),
                logprobs=None if self._logprobs is None else tuple(self._logprobs),
            )


class Decoder:
    """A loaded pair, ready to generate; made by ``load``. As a context manager it saves its pool. Not thread-safe.

    Attributes:
        target, draft: the models. tokenizer: None where the target has none. method, options: how it decodes.
        pool: the phrases that it keeps between calls; None where every call starts with an empty pool. pool_file: where
            ``close`` saves them; None to save nothing.
    """

    def __init__(
        self,
        target: CausalModel,
        draft: CausalModel | None,
        tokenizer: Tokenizer | None,
        method: str,
        options: MethodOptions,
        pool: PhrasePool | None,
    ) -> None:
        self.target = target
        self.draft = draft
        self.tokenizer = tokenizer
        self.method = method
        self.options = options
        self.pool = pool
        self.pool_file: str | os.PathLike[str] | None = None

    @property
    def fingerprint(self) -> str:
        """What binds a pool file to this vocabulary."""
        return self.tokenizer.fingerprint if self.tokenizer else f"ids-{self.target.info.vocab_size}"

    def __enter__(self) -> Decoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Saves the pool to the file it was given, if any.

        Raises:
            PoolFileError: the file cannot be written.
        """
        if self.pool_file is not None and self.pool is not None:
            save_pool(self.pool, self.pool_file, self.fingerprint)

    @overload
    def generate(self, prompt: Prompt, params: SamplingParams | None = None, **settings: Any) -> GenerationResult: ...

    @overload
    def generate(
        self, prompt: Sequence[Prompt], params: SamplingParams | None = None, **settings: Any
    ) -> list[GenerationResult]: ...

    def generate(
        self, prompt: Prompt | Sequence[Prompt], params: SamplingParams | None = None, **settings: Any
    ) -> GenerationResult | list[GenerationResult]:
        """Continues a prompt, or each of a list of prompts.

        Args:
            prompt: text, token ids, or a list of these. params: or its fields as keywords (see SamplingParams).

        Returns:
            GenerationResult, or a list of them for a list of prompts.

        Raises:
            InputError: an empty or too long prompt, or a parameter out of range.
        """
        if _is_batch(prompt):
            streams = [self.stream(one, params, **settings) for one in prompt]  # all are checked before the first runs
            return [_drain(stream) for stream in streams]
        return _drain(self.stream(cast(Prompt, prompt), params, **settings))

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, **settings: Any) -> Stream:
        """As ``generate``, for one prompt, chunk by chunk."""
        params = _params(params, settings)
        ids = self._encode(prompt)
        _check_ids([token for token, _ in params.logit_bias], self.target.info.vocab_size, "logit_bias")
        if params.stop and self.tokenizer is None:
            raise InputError(f"stop needs a tokenizer, and this model has none: {params.stop!r}")
        seed = secrets.randbits(63) if params.seed is None else params.seed
        info = self.target.info
        stop_ids = frozenset() if params.ignore_eos else self._eos_token_ids()
        grammar = self._grammar(params, stop_ids, len(ids))
        sampler = Sampler(params, seed, info.vocab_size, len(ids), [grammar] if grammar else [])
        recorder = StatsRecorder(self.method, info.backend, info.dtype, info.device, seed, len(ids))
        recorder.trees, recorder.draft_trees = info.trees, self.draft is None or self.draft.info.trees
        pool = PhrasePool() if self.pool is None else self.pool

        def start() -> Drafter:
            limits = info.max_positions, info.trees
            drafter = build_drafter(self.options, self.draft, sampler, pool, ids, stop_ids, *limits)
            return ForcedDrafter(drafter, grammar.forced) if grammar and self.method != "autoregressive" else drafter

        keep = params.logprobs is not None
        steps = decode(self.target, start, sampler, ids, params.max_new_tokens, stop_ids, recorder, keep)
        return Stream(steps, self.tokenizer, params.stop, recorder, ids, stop_ids, params.logprobs)

    def _grammar(self, params: SamplingParams, stop_ids: frozenset[int], prompt_length: int) -> Grammar | None:
        if params.grammar is None:
            return None
        if self.tokenizer is None:
            raise InputError("grammar needs a tokenizer, and this model has none")
        return Grammar(params.grammar, self.tokenizer, self.target.info.vocab_size, stop_ids, prompt_length)

    def _eos_token_ids(self) -> frozenset[int]:
        ids = self.target.info.eos_token_ids
        if not ids and self.tokenizer is not None and self.tokenizer.eos_token_id is not None:
            return frozenset({self.tokenizer.eos_token_id})
        return ids

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            if not prompt:
                raise InputError("prompt is empty ''; it must have at least one character")
            if self.tokenizer is None:
                raise InputError("a text prompt needs a tokenizer, and this model has none: give token ids")
            prompt = self.tokenizer.encode(prompt)
        ids = _token_ids(prompt, self.target.info.vocab_size)
        limit = self.target.info.max_positions - 1
        if not ids:
            raise InputError("prompt is empty []; it must have at least one token")
        if len(ids) > limit:
            raise InputError(f"prompt has {len(ids)} tokens; the target model's context allows at most {limit}")
        return ids


def _logprobs(logits_TV: Tensor, token_ids: Sequence[int], count: int) -> list[TokenLogprobs]:
    logprobs_TV = (logits_TV if logits_TV.dtype == torch.float64 else logits_TV.float()).log_softmax(-1)
    own = logprobs_TV.gather(-1, torch.tensor(token_ids, device=logits_TV.device)[:, None])[:, 0].tolist()
    top = logprobs_TV.topk(min(count, logprobs_TV.shape[-1]), dim=-1)
    rows = zip(own, top.indices.tolist(), top.values.tolist(), strict=True)
    return [TokenLogprobs(value, tuple(zip(ids, values, strict=True))) for value, ids, values in rows]


def _is_batch(prompt: Prompt | Sequence[Prompt]) -> TypeGuard[Sequence[Prompt]]:
    if isinstance(prompt, str) or not isinstance(prompt, Sequence):
        return False
    return bool(prompt) and not hasattr(prompt[0], "__index__")


def _token_ids(prompt: Sequence[int], vocab_size: int) -> list[int]:
    values = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    try:
        ids = [operator.index(value) for value in values]
    except TypeError:
        raise InputError(f"prompt must be a text or a list of token ids, not {_short(prompt)}") from None
    _check_ids(ids, vocab_size, "prompt")
    return ids


def _check_ids(ids: Sequence[int], vocab_size: int, name: str) -> None:
    wrong = next((i for i in ids if not 0 <= i < vocab_size), None)
    if wrong is not None:
        raise InputError(f"{name} holds the token id {wrong}; allowed are 0 to {vocab_size - 1}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _params(params: SamplingParams | None, settings: Mapping[str, Any]) -> SamplingParams:
    if params is None:
        known = SamplingParams.__dataclass_fields__
        for name in settings:
            if name not in known:
                raise InputError(f"no such parameter: {name!r} (allowed: {', '.join(known)})")
        return SamplingParams(**settings)
    if not isinstance(params, SamplingParams):
        raise InputError(f"params must be SamplingParams, not {_short(params)}")
    if settings:
        raise InputError(f"give params or keywords, not both: {', '.join(settings)}")
    return params


def _drain(stream: Stream) -> GenerationResult:
    for _ in stream:
        pass
    return stream.result
