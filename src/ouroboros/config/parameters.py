"""How a request is continued: ``SamplingParams``. An instance that exists is valid. Knows nothing of models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ouroboros.config.checks import check_int, check_number, is_number
from ouroboros.config.options import METHODS
from ouroboros.errors import InputError

__all__ = ["GRAMMARS", "MAX_SEED", "Processor", "SamplingParams"]

Processor = Callable[[Any, Any], Any]  # (input_ids [B, L], scores [B, V]) -> scores; no torch in this file
MAX_SEED = 2**63 - 1
MAX_SAMPLES = 1024  # each keeps two counts of the vocabulary
# What 32-bit floats can do one after the other: logits (of a thousand, say) times guidance, times the penalty of
# repetition, less the others, over the temperature, stay below 1e38.
TEMPERATURES = 1e-10, 1e10
REPETITIONS = 1e-6, 1e6
MOST = 1e9  # of a penalty or of the guidance
BANNED, BIAS = -3.4e38, MOST  # of a logit_bias: a token may be ruled out by as much as a 32-bit float has
GRAMMARS = ("json_schema", "regex", "lark")


def _logit_bias(bias: object) -> tuple[tuple[int, float], ...]:
    try:
        pairs = tuple(sorted(bias.items() if isinstance(bias, Mapping) else bias or ()))  # type: ignore[call-overload]
        for token, value in pairs:
            check_int("a token of logit_bias", token, 0)
            fits = is_number(value) and BANNED <= value <= BIAS
            check_number("logit_bias", value, fits, f"a mapping from token ids to numbers from {BANNED:g} to {BIAS:g}")
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"logit_bias must be a mapping from token ids to numbers, not {bias!r}") from None
    return pairs


def _processors(processors: object) -> tuple[Processor, ...]:
    found = tuple(processors) if isinstance(processors, Iterable) else (processors,)
    for processor in found:
        if not callable(processor):
            raise InputError(f"processors must be callables, not {processor!r}")
    return found


def _negative_prompt(prompt: object) -> str | tuple[int, ...]:
    if isinstance(prompt, str) and prompt:
        return prompt
    ids = _ids(prompt)
    if ids:
        return ids
    raise InputError(f"negative_prompt must be a text or token ids, not empty, not {prompt!r}")


def _check_range(name: str, value: float, neutral: bool, allowed: tuple[float, float]) -> None:
    low, high = allowed
    if not (neutral or low <= value <= high):
        raise InputError(f"{name} must be within what 32-bit floats compute with, {low:g} to {high:g}, not {value!r}")


def _ids(values: object) -> tuple[int, ...] | None:
    """Token ids out of a sequence, array or tensor of them; None where it is something else."""
    values = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(values, Iterable) or isinstance(values, str | bytes | Mapping):
        return None
    ids = tuple(values)
    whole = all(hasattr(i, "__index__") and not getattr(i, "ndim", 0) and not isinstance(i, bool) for i in ids)
    return tuple(int(i) for i in ids) if whole else None


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request is continued. Order: bias, penalties, processors, temperature, top-k, top-p, min-p.

    Attributes:
        max_new_tokens: upper bound of new tokens, at least 1.
        temperature: 0 is greedy decoding, which ignores top_k, top_p and min_p; else from 1e-10 to 1e10.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches top_p, in (0, 1].
        min_p: drop tokens less likely than min_p times the likeliest, in [0, 1].
        repetition_penalty: above 1 discourages tokens of the prompt and the output; 1 changes nothing; 1e-6 to 1e6.
        presence_penalty, frequency_penalty: subtracted from the logits of the output's tokens, once, per occurrence;
            from -1e9 to 1e9.
        logit_bias: added to the logits of these tokens; a mapping from token id to number, at most 1e9.
        processors: callables ``(input_ids [B, L], scores [B, V]) -> scores``, such as transformers' LogitsProcessors;
            they are called for each tree node on its own history, in any order, also with the draft model's scores, and
            so must be functions of their arguments alone.
        grammar: one entry: ``json_schema`` (mapping or text), ``regex`` or ``lark``; the output then matches it.
        guidance_scale: classifier-free guidance: above 1 stresses the prompt against ``negative_prompt``, at twice
            the work; 1 is off, 1e9 the most. negative_prompt: text or token ids; None: the prompt's last token alone.
        n: samples of the prompt, at most 1024, the i-th (from 0) with seed + i; they share the prefill and the phrases.
        logprobs: the n likeliest tokens with their log-probabilities at each new token (0: the token's own alone).
        seed: 0 … 2**63-1; None draws one, which ``stats.seed`` reports.
        stop: texts that end the output where they begin. One that is a special token (``<|im_end|>``), of which the
            text shows nothing, stands for that token as well.
        stop_token_ids: tokens that end the output as end-of-sequence tokens do, also with ``ignore_eos``.
        ignore_eos: go on past end-of-sequence tokens.
        prediction: what the output is expected to be, as text or token ids: it is drafted from, and changes no token.
        method: how this request is decoded, by the method's default options; None: as the decoder was told.

    Raises:
        InputError: a value is outside its range.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    processors: tuple[Processor, ...] = ()
    grammar: Mapping[str, Any] | None = None
    guidance_scale: float = 1.0
    negative_prompt: str | tuple[int, ...] | None = None
    n: int = 1
    logprobs: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    prediction: str | tuple[int, ...] | None = None
    method: str | None = None

    def __post_init__(self) -> None:
        check_int("max_new_tokens", self.max_new_tokens, 1)
        check_int("top_k", self.top_k, 0)
        value: float = self.temperature
        check_number("temperature", value, is_number(value) and value >= 0, "a number of at least 0")
        _check_range("temperature", value, value == 0, TEMPERATURES)
        value = self.top_p
        check_number("top_p", value, is_number(value) and 0 < value <= 1, "a number above 0 and at most 1")
        value = self.min_p
        check_number("min_p", value, is_number(value) and 0 <= value <= 1, "a number from 0 to 1")
        value = self.repetition_penalty
        check_number("repetition_penalty", value, is_number(value) and value > 0, "a number above 0")
        _check_range("repetition_penalty", value, False, REPETITIONS)
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            check_number(name, value, is_number(value), "a number")
            _check_range(name, value, False, (-MOST, MOST))
        object.__setattr__(self, "logit_bias", _logit_bias(self.logit_bias))
        object.__setattr__(self, "processors", _processors(self.processors))
        if self.grammar is not None:
            known = isinstance(self.grammar, Mapping) and len(self.grammar) == 1 and set(self.grammar) <= set(GRAMMARS)
            if not known:
                raise InputError(f"grammar must have one entry, named {' or '.join(GRAMMARS)}, not {self.grammar!r}")
            if self.ignore_eos:
                raise InputError("ignore_eos must be False with a grammar, which says itself where the output ends")
        value = self.guidance_scale
        check_number("guidance_scale", value, is_number(value) and value >= 0, "a number of at least 0")
        _check_range("guidance_scale", value, False, (0, MOST))
        if self.negative_prompt is not None:
            object.__setattr__(self, "negative_prompt", _negative_prompt(self.negative_prompt))
            if value == 1:
                raise InputError("negative_prompt needs a guidance_scale other than 1, which is off")
        check_int("n", self.n, 1)
        if self.n > MAX_SAMPLES:
            raise InputError(f"n must be at most {MAX_SAMPLES}, not {self.n}")
        if self.logprobs is not None:
            check_int("logprobs", self.logprobs, 0, 1000)
        if self.seed is not None:
            check_int("seed", self.seed, 0, MAX_SEED)
        stop = (self.stop,) if isinstance(self.stop, str) else () if self.stop is None else self.stop
        try:
            stop = tuple(stop)
        except TypeError:
            raise InputError(f"stop must be a text or a sequence of texts, not {self.stop!r}") from None
        for text in stop:
            if not isinstance(text, str) or not text:
                raise InputError(f"stop must hold texts of at least one character, not {text!r}")
        object.__setattr__(self, "stop", stop)
        ids = _ids(self.stop_token_ids)
        if ids is None or any(token < 0 for token in ids):
            raise InputError(f"stop_token_ids must be token ids, not {self.stop_token_ids!r}")
        object.__setattr__(self, "stop_token_ids", ids)
        if not isinstance(self.ignore_eos, bool):
            raise InputError(f"ignore_eos must be True or False, not {self.ignore_eos!r}")
        if self.prediction is not None and not isinstance(self.prediction, str):
            expected = _ids(self.prediction)
            if expected is None or any(token < 0 for token in expected):
                raise InputError(f"prediction must be a text or token ids, not {self.prediction!r}")
            object.__setattr__(self, "prediction", expected)
        if self.method is not None and (not isinstance(self.method, str) or self.method not in METHODS):
            raise InputError(f"method must be one of {', '.join(METHODS)}, not {self.method!r}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0
