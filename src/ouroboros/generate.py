"""The library's face: a loaded pair that generates text, streams it, and keeps a conversation in its caches.

A request is checked and turned into tokens, then runs through the decoding loop. All checks of a pair happen in
``load``; all checks of a request happen before its first forward.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, cast, overload

from ouroboros.config import MAX_SEED, MethodOptions, SamplingParams, options_for
from ouroboros.control.experience import Control
from ouroboros.decoding.loop import Event
from ouroboros.decoding.request import start
from ouroboros.decoding.run import locked, run
from ouroboros.drafting.sizes import by_costs, pays
from ouroboros.errors import InputError, OuroborosError
from ouroboros.models.base import CausalModel
from ouroboros.models.context import Context
from ouroboros.models.spread import SpreadModel
from ouroboros.phrases.lock import PoolLock
from ouroboros.phrases.memory import Memory
from ouroboros.phrases.pool import PhrasePool
from ouroboros.phrases.storage import save_pool
from ouroboros.preparing import Guidance, Prepared, params_of, prepare
from ouroboros.prompts import Prompt, is_batch
from ouroboros.serving.batch import Written, run_all
from ouroboros.serving.scheduler import Scheduler
from ouroboros.stream import GenerationResult, Stream
from ouroboros.text import Tokenizer

__all__ = ["Decoder", "Session", "fingerprint"]

_LOGGER = logging.getLogger("ouroboros")


class Decoder:
    """A loaded pair, ready to generate; made by ``load``. As a context manager it saves its memory. Threads that share
    it take turns, step by step; ``Engine`` serves many requests at once.

    Args:
        target, draft: the models. tokenizer: None where the target has none. method, options: how it decodes; None for
            the method's defaults. memory: what it keeps between calls; None where every call starts with an empty one.
        memory_file: where ``close`` saves that; None to save nothing. memory_lock: the right to, until it is closed;
            None to take it for as long as it is written. control: what it knows of costs and texts; None for a new one.
            clock: seconds, of which costs are learned.

    All arguments are attributes of the same names. ``lock`` is held while models, memories or what is known of costs
    are in use.
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
        self.lock = threading.RLock()  # a stream that nobody holds any more is closed wherever that is noticed
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
    def spread(self) -> SpreadModel | None:
        """The target, where its weights lie in several processes: then each of them makes the same calls."""
        return self.target if isinstance(self.target, SpreadModel) else None

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
        params = params_of(params, settings)
        prompts = prompt if is_batch(prompt) else [cast(Prompt, prompt)]
        if len(prompts) == 1 and params.n == 1:
            found = [_drain(self.session().stream(prompts[0], params))]
        else:
            found = self._together(prompts, params) if self.spread is None else self._led(prompts, params)
        if params.n > 1:
            samples = [found[i : i + params.n] for i in range(0, len(found), params.n)]
            return samples if is_batch(prompt) else samples[0]
        return found if is_batch(prompt) else found[0]

    def _together(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[GenerationResult]:
        """Of each prompt all samples, one after the other in the list, and at once in the models' forwards."""
        scheduler = Scheduler(self.options, self.control, self.clock)
        written = []
        for prompt in prompts:  # all are checked before the first runs
            memory = Memory() if self.memory is None else self.memory
            seed = secrets.randbits(63) if params.seed is None else params.seed
            models: tuple[CausalModel, CausalModel | None] | None = None
            for i in range(params.n):
                one = replace(params, n=1, seed=(seed + i) % (MAX_SEED + 1))
                prepared = self.prepare(prompt, one, memory)
                models = self.models_for(prepared.guidance) if models is None else models  # samples share their caches
                sink = Written(prepared.transcript)
                scheduler.add(prepared.request, *models, sink)
                written.append(sink)
        return run_all(scheduler, written, self.lock)

    def _led(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[GenerationResult]:
        """Where the target lies in several processes: what rank 0 gets, on all of them."""
        assert self.spread is not None
        for prompt in prompts:  # what is refused is refused on all ranks, before they meet
            self.prepare(prompt, replace(params, n=1), Memory())
        if not self.spread.ranks.leads:
            return list(self.spread.follow())

        def results() -> Generator[GenerationResult]:
            yield from self._together(prompts, params)

        return list(self.spread.lead(results()))

    def prepare(self, prompt: Prompt, params: SamplingParams, memory: Memory) -> Prepared:
        """See preparing.py."""
        return prepare(prompt, params, memory, self.target, self.draft, self.tokenizer, self.method)

    def models_for(self, guidance: Guidance | None) -> tuple[CausalModel, CausalModel | None]:
        """The models as a request with this guidance sees them."""
        if guidance is None:
            return self.target, self.draft
        return guidance.around(self.target), None if self.draft is None else guidance.around(self.draft)

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
        self._kept: tuple[Guidance | None, Context, Context | None] | None = None  # guidance, target's context, draft's
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
        params = params_of(params, settings)
        if params.n != 1:
            raise InputError(f"n must be 1 for a single stream, not {params.n}: use the decoder's generate")
        prepared = self._decoder.prepare(prompt, params, Memory() if self._memory is None else self._memory)
        return Stream(self._run(prepared), prepared.transcript)

    def _run(self, prepared: Prepared) -> Generator[Event]:
        if self._busy:
            raise OuroborosError("the session's last stream has not ended: iterate to its end or close it first")
        spread = self._decoder.spread
        if spread is None:
            yield from self._decode(prepared)
        elif spread.ranks.leads:
            yield from spread.lead(self._decode(prepared))
        else:
            yield from spread.follow()

    def _decode(self, prepared: Prepared) -> Generator[Event]:
        decoder = self._decoder
        self._busy = True
        try:
            with decoder.lock:
                target, draft = self._contexts(prepared.guidance)
                flow = start(prepared.request, decoder.options, target, draft, decoder.control)
            yield from locked(run(flow, decoder.clock, decoder.control.observe), decoder.lock)
        except Exception:
            self._kept = None  # a forward that failed may have left half a row
            raise
        finally:
            self._busy = False

    def _contexts(self, guidance: Guidance | None) -> tuple[Context, Context | None]:
        """Those of the last request if its guidance was the same (it is bound to its prompts), else new ones."""
        if self._kept is None or self._kept[0] != guidance:
            target, draft = self._decoder.models_for(guidance)
            self._kept = guidance, Context(target), None if draft is None else Context(draft)
        return self._kept[1:]


def fingerprint(tokenizer: Tokenizer | None, target: CausalModel) -> str:
    """What binds a pool file to a vocabulary."""
    return tokenizer.fingerprint if tokenizer else f"ids-{target.info.vocab_size}"


def _drain(stream: Stream) -> GenerationResult:
    for _ in stream:
        pass
    return stream.result
