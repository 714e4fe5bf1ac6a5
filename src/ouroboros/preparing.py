"""From what a user asks for to a request: all checks happen here, before its first forward. It decodes nothing."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ouroboros.config import MethodOptions, SamplingParams, options_for
from ouroboros.decoding.request import Request
from ouroboros.drafting.factory import NEEDS_DRAFT
from ouroboros.errors import InputError
from ouroboros.grammar import Grammar
from ouroboros.models.base import CausalModel, ModelInfo
from ouroboros.models.guided import GuidedModel
from ouroboros.phrases.memory import Memory
from ouroboros.prompts import Prompt, check_ids, encode, short
from ouroboros.sampling import Sampler
from ouroboros.stats import StatsRecorder
from ouroboros.stream import Transcript
from ouroboros.text import Tokenizer

__all__ = ["Guidance", "Prepared", "params_of", "prepare"]


@dataclass(frozen=True, slots=True)
class Guidance:
    """Classifier-free guidance of one prompt (see models/guided.py)."""

    scale: float
    prompt: tuple[int, ...]
    negative: tuple[int, ...]

    def around(self, model: CausalModel) -> CausalModel:
        return GuidedModel(model, self.scale, self.prompt, self.negative)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that may begin. ``guidance``: of its models, if any. ``transcript``: takes what it writes."""

    request: Request
    transcript: Transcript
    guidance: Guidance | None = None


def prepare(
    prompt: Prompt,
    params: SamplingParams,
    memory: Memory,
    target: CausalModel,
    draft: CausalModel | None,
    tokenizer: Tokenizer | None,
    method: str,
) -> Prepared:
    """
    Args:
        params: of one sample; a seed is drawn where there is none. memory: what the request reads and adds to.

    Raises:
        InputError: an empty or too long prompt, or a parameter out of range.
    """
    info = target.info
    limit = info.max_positions - 1
    ids = encode(prompt, tokenizer, info.vocab_size, limit)
    guidance = None
    if params.guidance_scale != 1:
        negative = [ids[-1]]
        if params.negative_prompt is not None:
            negative = encode(params.negative_prompt, tokenizer, info.vocab_size, limit, name="negative_prompt")
        guidance = Guidance(params.guidance_scale, tuple(ids), tuple(negative))
    check_ids([token for token, _ in params.logit_bias], info.vocab_size, "logit_bias")
    if params.stop and tokenizer is None:
        raise InputError(f"stop needs a tokenizer, and this model has none: {params.stop!r}")
    seed = secrets.randbits(63) if params.seed is None else params.seed
    check_ids(params.stop_token_ids, info.vocab_size, "stop_token_ids")
    eos = frozenset() if params.ignore_eos else _eos_token_ids(info, tokenizer)
    grammar = _grammar(params, tokenizer, info.vocab_size, eos, len(ids))
    stop_ids = eos.union(params.stop_token_ids)
    if tokenizer is not None:
        stop_ids |= tokenizer.stop_ids(params.stop)
    own = _options(params.method, method, draft)
    method = params.method or method
    request = Request(
        prompt=ids,
        sampler=Sampler(params, seed, info.vocab_size, len(ids), [grammar] if grammar else []),
        stop_ids=stop_ids,
        memory=memory,
        forced=grammar.forced if grammar and method != "autoregressive" else None,
        keep_logits=params.logprobs is not None,
        prediction=_prediction(params, tokenizer, info.vocab_size, method),
        options=own,
    )
    recorder = StatsRecorder(method, info.backend, info.dtype, info.device, seed, len(ids))
    recorder.trees, recorder.draft_trees = info.trees, draft is None or draft.info.trees
    return Prepared(request, Transcript(tokenizer, params.stop, recorder, ids, stop_ids, params.logprobs), guidance)


def params_of(params: SamplingParams | None, settings: Mapping[str, Any]) -> SamplingParams:
    """The parameters, given as such or as keywords.

    Raises:
        InputError: both, something else, or an unknown keyword.
    """
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


def _grammar(
    params: SamplingParams, tokenizer: Tokenizer | None, vocab_size: int, stop_ids: frozenset[int], prompt_length: int
) -> Grammar | None:
    if params.grammar is None:
        return None
    if tokenizer is None:
        raise InputError("grammar needs a tokenizer, and this model has none")
    return Grammar(params.grammar, tokenizer, vocab_size, stop_ids, prompt_length)


def _options(wanted: str | None, method: str, draft: CausalModel | None) -> MethodOptions | None:
    """Of a method that is not the decoder's own."""
    if wanted is None or wanted == method:
        return None
    if wanted in NEEDS_DRAFT and draft is None:
        raise InputError(f"method {wanted!r} needs a draft model, and none was loaded")
    return options_for(wanted)


def _prediction(params: SamplingParams, tokenizer: Tokenizer | None, vocab_size: int, method: str) -> Sequence[int]:
    """The tokens of the text that is expected; none for plain decoding."""
    expected = params.prediction
    if isinstance(expected, str):
        if tokenizer is None:
            raise InputError("a text as prediction needs a tokenizer, and this model has none: give token ids")
        ids = tokenizer.encode(expected) if expected else []
        while ids and tokenizer.is_silent(ids[0]):  # what a tokenizer puts before a text
            del ids[0]
        while ids and tokenizer.is_silent(ids[-1]):
            del ids[-1]
        expected = tuple(ids)
    check_ids(expected or (), vocab_size, "prediction")
    return () if expected is None or method == "autoregressive" else expected


def _eos_token_ids(info: ModelInfo, tokenizer: Tokenizer | None) -> frozenset[int]:
    ids = frozenset(token for token in info.eos_token_ids if 0 <= token < info.vocab_size)  # configs may name others
    if not ids and tokenizer is not None and tokenizer.eos_token_id is not None:
        return frozenset({tokenizer.eos_token_id})
    return ids
