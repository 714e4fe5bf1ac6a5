"""The library's face: a loaded pair that generates text, streams it, and keeps a conversation in its caches.

A request is checked and turned into tokens, then runs through the decoding loop. All checks of a pair happen in
``load``; all checks of a request happen before its first forward.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, cast, overload

from ouroboros.config import MAX_SEED, MethodOptions, SamplingParams
from ouroboros.control.controller import Control
from ouroboros.decoder import Step, decode
from ouroboros.drafting.base import Drafter
from ouroboros.drafting.factory import build_drafter
from ouroboros.drafting.forced import ForcedDrafter
from ouroboros.errors import InputError, OuroborosError
from ouroboros.grammar import Grammar
from ouroboros.models.base import CausalModel
from ouroboros.models.context import Context
from ouroboros.models.guided import GuidedModel
from ouroboros.phrases.pool import PhrasePool
from ouroboros.phrases.storage import save_pool
from ouroboros.prompts import Prompt, check_ids, encode, is_batch, short
from ouroboros.sampling import Sampler
from ouroboros.stats import StatsRecorder
from ouroboros.stream import GenerationResult, Stream
from ouroboros.text import Tokenizer

__all__ = ["Decoder", "Session"]


class Decoder:
    """A loaded pair, ready to generate; made by ``load``. As a context manager it saves its pool. Not thread-safe.

    Attributes:
        target, draft: the models. tokenizer: None where the target has none. method, options: how it decodes.
        pool: the phrases that it keeps between calls; None where every call starts with an empty pool. pool_file: where
            ``close`` saves them; None to save nothing. control: what chooses each step's sizes, where the options ask
            for it; None to decode by their fixed sizes.
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
        self.control: Control | None = None

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
        session = Session(self, PhrasePool() if self.pool is None else self.pool)
        each = [replace(params, n=1, seed=(seed + i) % (MAX_SEED + 1)) for i in range(params.n)]
        return [session.stream(prompt, one) for one in each]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, **settings: Any) -> Stream:
        """As ``generate``, for one prompt and one sample, chunk by chunk."""
        return self.session().stream(prompt, params, **settings)

    def session(self) -> Session:
        """For requests that begin alike, one after the other: the turns of a chat."""
        return Session(self, self.pool)


class Session:
    """Requests that use the same KV caches one after the other: each computes only what follows the prefix that it
    shares with the one before (``stats.cached_tokens`` says how much it was). It holds the caches as long as it lives.

    Args:
        decoder: whose models and method it uses. pool: None for an empty one with every request.
        target: a context of the decoder's target model to begin in, as another session's left it.
    """

    def __init__(self, decoder: Decoder, pool: PhrasePool | None, target: Context | None = None) -> None:
        self._decoder = decoder
        self._pool = pool
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
        stop_ids = frozenset() if params.ignore_eos else _eos_token_ids(decoder)
        grammar = _grammar(decoder, params, stop_ids, len(ids))
        sampler = Sampler(params, seed, info.vocab_size, len(ids), [grammar] if grammar else [])
        recorder = StatsRecorder(decoder.method, info.backend, info.dtype, info.device, seed, len(ids))
        recorder.trees, recorder.draft_trees = info.trees, decoder.draft is None or decoder.draft.info.trees
        steps = self._run(ids, negative, params, sampler, stop_ids, grammar, recorder)
        return Stream(steps, decoder.tokenizer, params.stop, recorder, ids, stop_ids, params.logprobs)

    def _run(
        self,
        ids: list[int],
        negative: list[int] | None,
        params: SamplingParams,
        sampler: Sampler,
        stop_ids: frozenset[int],
        grammar: Grammar | None,
        recorder: StatsRecorder,
    ) -> Iterator[Step]:
        if self._busy:
            raise OuroborosError("the session's last stream has not ended: iterate to its end or close it first")
        decoder = self._decoder
        pool = PhrasePool() if self._pool is None else self._pool
        target, draft = self._contexts(ids, negative, params.guidance_scale)
        info = target.model.info

        def start() -> Drafter:
            limits = info.max_positions, info.trees
            controller = None
            if decoder.control is not None:
                room, report = params.max_new_tokens, recorder.decisions.append
                controller = decoder.control.controller(params.temperature, len(ids), room, report)
            drafter = build_drafter(decoder.options, draft, sampler, pool, ids, stop_ids, *limits, controller)
            return ForcedDrafter(drafter, grammar.forced) if grammar and decoder.method != "autoregressive" else drafter

        keep = params.logprobs is not None
        self._busy = True
        try:
            yield from decode(target, start, sampler, ids, params.max_new_tokens, stop_ids, recorder, keep)
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


def _grammar(decoder: Decoder, params: SamplingParams, stop_ids: frozenset[int], prompt_length: int) -> Grammar | None:
    if params.grammar is None:
        return None
    if decoder.tokenizer is None:
        raise InputError("grammar needs a tokenizer, and this model has none")
    return Grammar(params.grammar, decoder.tokenizer, decoder.target.info.vocab_size, stop_ids, prompt_length)


def _eos_token_ids(decoder: Decoder) -> frozenset[int]:
    ids = decoder.target.info.eos_token_ids
    if not ids and decoder.tokenizer is not None and decoder.tokenizer.eos_token_id is not None:
        return frozenset({decoder.tokenizer.eos_token_id})
    return ids


def _params(params: SamplingParams | None, settings: Mapping[str, Any]) -> SamplingParams:
    if params is None:
        known = SamplingParams.__dataclass_fields__
        for name in settings:
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
