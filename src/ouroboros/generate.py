"""The library's face: a loaded pair that generates text, streams it, and keeps a conversation in its caches.

A request is checked and turned into tokens, then runs through the decoding loop. All checks of a pair happen in
``load``; all checks of a request happen before its first forward.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, cast, overload

from ouroboros.config import MAX_SEED, MethodOptions, SamplingParams, options_for
from ouroboros.control.experience import Control
from ouroboros.decoding.loop import Event
from ouroboros.decoding.request import Request, start
from ouroboros.decoding.run import run
from ouroboros.drafting.sizes import by_costs, pays
from ouroboros.errors import InputError, OuroborosError
from ouroboros.grammar import Grammar
from ouroboros.models.base import CausalModel
from ouroboros.models.context import Context
from ouroboros.models.guided import GuidedModel
from ouroboros.phrases.lock import PoolLock
from ouroboros.phrases.memory import Memory
from ouroboros.phrases.pool import PhrasePool
from ouroboros.phrases.storage import save_pool
from ouroboros.prompts import Prompt, check_ids, encode, is_batch, short
from ouroboros.sampling import Sampler
from ouroboros.stats import StatsRecorder
from ouroboros.stream import GenerationResult, Stream
from ouroboros.text import Tokenizer

__all__ = ["Decoder", "Session", "fingerprint"]

_LOGGER = logging.getLogger("ouroboros")


class Decoder:
    """A loaded pair, ready to generate; made by ``load``. As a context manager it saves its memory. Not thread-safe.

    Args:
        target, draft: the models. tokenizer: None where the target has none. method, options: how it decodes; None for
            the method's defaults. memory: what it keeps between calls; None where every call starts with an empty one.
        memory_file: where ``close`` saves that; None to save nothing. memory_lock: the right to, until it is closed;
            None to take it for as long as it is written. control: what it knows of costs and texts; None for a new one.
            clock: seconds, of which costs are learned.

    All arguments are attributes of the same names.
    """

    def __init__(
        self,
        target: CausalModel,
        draft: CausalModel | None = None,
        tokenizer: Tokenizer | None = None,
        method: str = "ouroboros",
        options: MethodOptions | None = None,
        memory: Memory | None = None,
        *,
        memory_file: str | os.PathLike[str] | None = None,
        memory_lock: PoolLock | None = None,
        control: Control | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.target = target
        self.draft = draft
        self.tokenizer = tokenizer
        self.method = method
        self.options = options_for(method, options)
        self.memory = memory
        self.memory_file, self.memory_lock = memory_file, memory_lock
        self.control = Control() if control is None else control
        self.clock = clock
        if by_costs(self.options):
            costs = self.control.costs(target)
            if draft is not None:
                self.control.costs(draft)
            if not pays(self.options, costs):
                told = "rows cost too much here for it to be faster than plain decoding (ouroboros profile shows T(n))"
                _LOGGER.warning("method %r: %s", method, told)

    @property
    def pool(self) -> PhrasePool | None:
        """The phrases that it keeps between calls; None where every call starts with an empty pool."""
        return None if self.memory is None else self.memory.phrases

    @property
    def fingerprint(self) -> str:
        """What binds a pool file to this vocabulary."""
        return fingerprint(self.tokenizer, self.target)

    def __enter__(self) -> Decoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Saves the pool to the file it was given, if any.

        Raises:
            PoolFileError: the file cannot be written, or somebody else is to save to it since a first ``close``.
        """
        if self.memory_file is not None and self.memory is not None:
            with self.memory_lock or contextlib.nullcontext():
                save_pool(self.memory, self.memory_file, self.fingerprint, self.memory_lock)

    @overload
    def generate(
        self, prompt: Prompt | Sequence[Prompt], params: SamplingParams | None = None, *, n: int, **settings: Any
    ) -> Any: ...

    @overload
    def generate(self, prompt: Prompt, params: SamplingParams | None = None, **settings: Any) -> GenerationResult: ...

    @overload
    def generate(
        self, prompt: Sequence[Prompt], params: SamplingParams | None = None, **settings: Any
    ) -> list[GenerationResult]: ...

    def generate(self, prompt: Prompt | Sequence[Prompt], params: SamplingParams | None = None, **settings: Any) -> Any:
        """Continues a prompt, or each of a list of prompts.

        Args:
            prompt: text, token ids, messages (mappings with role and content, for the tokenizer's chat template), or a
                list of these. params: or its fields as keywords (see SamplingParams).

        Returns:
            GenerationResult; with ``n`` above 1 a list of n of them. For a list of prompts a list of what each yields.

        Raises:
            InputError: an empty or too long prompt, or a parameter out of range.
        """
        params = _params(params, settings)
        prompts = prompt if is_batch(prompt) else [cast(Prompt, prompt)]
        streams = [self._samples(one, params) for one in prompts]  # all are checked before the first runs
        results = [[_drain(stream) for stream in samples] for samples in streams]
        found = results if params.n > 1 else [one for (one,) in results]
        return found if is_batch(prompt) else found[0]

    def _samples(self, prompt: Prompt, params: SamplingParams) -> list[Stream]:
        seed = secrets.randbits(63) if params.seed is None else params.seed
        session = Session(self, Memory() if self.memory is None else self.memory)
        each = [replace(params, n=1, seed=(seed + i) % (MAX_SEED + 1)) for i in range(params.n)]
        return [session.stream(prompt, one) for one in each]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, **settings: Any) -> Stream:
        """As ``generate``, for one prompt and one sample, chunk by chunk."""
        return self.session().stream(prompt, params, **settings)

    def session(self) -> Session:
        """For requests that begin alike, one after the other: the turns of a chat."""
        return Session(self, self.memory)


class Session:
    """Requests that use the same KV caches one after the other: each computes only what follows the prefix that it
    shares with the one before (``stats.cached_tokens`` says how much it was). It holds the caches as long as it lives.

    Args:
        decoder: whose models and method it uses. memory: None for an empty one with every request.
        target: a context of the decoder's target model to begin in, as another session's left it.
    """

    def __init__(self, decoder: Decoder, memory: Memory | None, target: Context | None = None) -> None:
        self._decoder = decoder
        self._memory = memory
        self._kept: tuple[object, Context, Context | None] | None = None  # guidance, target's context, draft's
        if target is not None:
            self._kept = None, target, None if decoder.draft is None else Context(decoder.draft)
        self._busy = False

    def generate(self, prompt: Prompt, params: SamplingParams | None = None, **settings: Any) -> GenerationResult:
        """As ``Decoder.generate``, for one prompt and one sample."""
        return _drain(self.stream(prompt, params, **settings))

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, **settings: Any) -> Stream:
        """As ``Decoder.stream``. It must have ended, or be closed, before the next one is begun.

        Raises:
            InputError: an empty or too long prompt, or a parameter out of range.
        """
        params = _params(params, settings)
        if params.n != 1:
            raise InputError(f"n must be 1 for a single stream, not {params.n}: use the decoder's generate")
        decoder, info = self._decoder, self._decoder.target.info
        limit = info.max_positions - 1
        ids = encode(prompt, decoder.tokenizer, info.vocab_size, limit)
        negative = None
        if params.guidance_scale != 1:
            negative = [ids[-1]]
            if params.negative_prompt is not None:
                negative = encode(
                    params.negative_prompt, decoder.tokenizer, info.vocab_size, limit, name="negative_prompt"
                )
        check_ids([token for token, _ in params.logit_bias], info.vocab_size, "logit_bias")
        if params.stop and decoder.tokenizer is None:
            raise InputError(f"stop needs a tokenizer, and this model has none: {params.stop!r}")
        seed = secrets.randbits(63) if params.seed is None else params.seed
        check_ids(params.stop_token_ids, info.vocab_size, "stop_token_ids")
        eos = frozenset() if params.ignore_eos else _eos_token_ids(decoder)
        grammar = _grammar(decoder, params, eos, len(ids))
        stop_ids = eos.union(params.stop_token_ids)
        if decoder.tokenizer is not None:
            stop_ids |= decoder.tokenizer.stop_ids(params.stop)
        processors = [grammar] if grammar else []
        request = Request(
            prompt=ids,
            sampler=Sampler(params, seed, info.vocab_size, len(ids), processors),
            stop_ids=stop_ids,
            memory=Memory() if self._memory is None else self._memory,
            forced=grammar.forced if grammar and decoder.method != "autoregressive" else None,
            keep_logits=params.logprobs is not None,
        )
        recorder = StatsRecorder(decoder.method, info.backend, info.dtype, info.device, seed, len(ids))
        recorder.trees, recorder.draft_trees = info.trees, decoder.draft is None or decoder.draft.info.trees
        events = self._run(request, negative)
        return Stream(events, decoder.tokenizer, params.stop, recorder, ids, stop_ids, params.logprobs)

    def _run(self, request: Request, negative: list[int] | None) -> Generator[Event]:
        if self._busy:
            raise OuroborosError("the session's last stream has not ended: iterate to its end or close it first")
        decoder = self._decoder
        target, draft = self._contexts(list(request.prompt), negative, request.sampler.params.guidance_scale)
        flow = start(request, decoder.options, target, draft, decoder.control)
        self._busy = True
        try:
            yield from run(flow, decoder.clock, decoder.control.observe)
        except Exception:
            self._kept = None  # a forward that failed may have left half a row
            raise
        finally:
            self._busy = False

    def _contexts(self, ids: list[int], negative: list[int] | None, scale: float) -> tuple[Context, Context | None]:
        """Those of the last request if its guidance was the same (it is bound to its prompts), else new ones."""
        guidance = None if negative is None else (scale, ids, negative)
        if self._kept is None or self._kept[0] != guidance:

            def context(model: CausalModel) -> Context:
                return Context(model if negative is None else GuidedModel(model, scale, ids, negative))

            draft = self._decoder.draft
            self._kept = guidance, context(self._decoder.target), None if draft is None else context(draft)
        return self._kept[1:]


def fingerprint(tokenizer: Tokenizer | None, target: CausalModel) -> str:
    """What binds a pool file to a vocabulary."""
    return tokenizer.fingerprint if tokenizer else f"ids-{target.info.vocab_size}"


def _grammar(decoder: Decoder, params: SamplingParams, stop_ids: frozenset[int], prompt_length: int) -> Grammar | None:
    if params.grammar is None:
        return None
    if decoder.tokenizer is None:
        raise InputError("grammar needs a tokenizer, and this model has none")
    return Grammar(params.grammar, decoder.tokenizer, decoder.target.info.vocab_size, stop_ids, prompt_length)


def _eos_token_ids(decoder: Decoder) -> frozenset[int]:
    info = decoder.target.info
    ids = frozenset(token for token in info.eos_token_ids if 0 <= token < info.vocab_size)  # configs may name others
    if not ids and decoder.tokenizer is not None and decoder.tokenizer.eos_token_id is not None:
        return frozenset({decoder.tokenizer.eos_token_id})
    return ids


def _params(params: SamplingParams | None, settings: Mapping[str, Any]) -> SamplingParams:
    if params is None:
        known = SamplingParams.__dataclass_fields__
        for name in settings:
            if name in ("tools", "chat_template_kwargs", "continue_final_message", "add_generation_prompt"):
                raise InputError(f"{name!r} belongs to the messages: give ouroboros.Chat(messages, {name}=…) as prompt")
            if name not in known:
                raise InputError(f"no such parameter: {name!r} (allowed: {', '.join(known)})")
        return SamplingParams(**settings)
    if not isinstance(params, SamplingParams):
        raise InputError(f"params must be SamplingParams, not {short(params)}")
    if settings:
        raise InputError(f"give params or keywords, not both: {', '.join(settings)}")
    return params


def _drain(stream: Stream) -> GenerationResult:
    for _ in stream:
        pass
    return stream.result
