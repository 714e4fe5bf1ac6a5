"""What a user may choose: sampling parameters of a request and options of a method, as frozen dataclasses.

Invariant: an instance that exists is valid; every check is in ``__post_init__``. The command line takes its defaults
and its ``--set name=value`` conversions from the fields here. This file knows nothing of models.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ouroboros.errors import InputError

__all__ = [
    "METHODS",
    "AutoregressiveOptions",
    "LookaheadOptions",
    "MethodOptions",
    "OuroborosOptions",
    "PromptLookupOptions",
    "SamplingParams",
    "SpeculativeOptions",
    "SuffixDecodingOptions",
    "TokenRecyclingOptions",
    "options_for",
    "options_from_strings",
]

Processor = Callable[[Any, Any], Any]  # (input_ids [B, L], scores [B, V]) -> scores; no torch in this file
MAX_SEED = 2**63 - 1
GRAMMARS = ("json_schema", "regex", "lark")


def _check_int(name: str, value: object, low: int, high: int | None = None) -> None:
    allowed = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise InputError(f"{name} must be {allowed}, not {value!r}")


def _check_number(name: str, value: object, test: bool, allowed: str) -> None:
    if not test:
        raise InputError(f"{name} must be {allowed}, not {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _logit_bias(bias: object) -> tuple[tuple[int, float], ...]:
    try:
        pairs = tuple(sorted(bias.items() if isinstance(bias, Mapping) else bias or ()))  # type: ignore[call-overload]
        for token, value in pairs:
            _check_int("a token of logit_bias", token, 0)
            _check_number("logit_bias", value, _is_number(value), "a mapping from token ids to numbers")
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
    values = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    if isinstance(values, Iterable) and not isinstance(values, str | bytes):
        ids = tuple(values)
        if ids and all(hasattr(token, "__index__") for token in ids):
            return tuple(int(token) for token in ids)
    raise InputError(f"negative_prompt must be a text or token ids, not empty, not {prompt!r}")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request is continued. Order: bias, penalties, processors, temperature, top-k, top-p, min-p.

    Attributes:
        max_new_tokens: upper bound of new tokens, at least 1.
        temperature: 0 is greedy decoding, which ignores top_k, top_p and min_p.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches top_p, in (0, 1].
        min_p: drop tokens less likely than min_p times the likeliest, in [0, 1].
        repetition_penalty: above 1 discourages tokens of the prompt and the output; 1 changes nothing.
        presence_penalty, frequency_penalty: subtracted from the logits of the output's tokens, once, per occurrence.
        logit_bias: added to the logits of these tokens; a mapping from token id to number.
        processors: callables ``(input_ids [B, L], scores [B, V]) -> scores``, such as transformers' LogitsProcessors;
            they are called for each tree node on its own history, in any order, also with the draft model's scores, and
            so must be functions of their arguments alone.
        grammar: one entry: ``json_schema`` (mapping or text), ``regex`` or ``lark``; the output then matches it.
        guidance_scale: classifier-free guidance: above 1 stresses the prompt against ``negative_prompt``, at twice
            the work; 1 is off. negative_prompt: text or token ids; None: the prompt's last token alone.
        n: samples of the prompt, the i-th (from 0) with seed + i; they share the prefill and the phrases.
        logprobs: the n likeliest tokens with their log-probabilities at each new token (0: the token's own alone).
        seed: 0 … 2**63-1; None draws one, which ``stats.seed`` reports.
        stop: texts that end the output where they begin.
        ignore_eos: go on past end-of-sequence tokens.

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
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _check_int("max_new_tokens", self.max_new_tokens, 1)
        _check_int("top_k", self.top_k, 0)
        value: float = self.temperature
        _check_number("temperature", value, _is_number(value) and value >= 0, "a number of at least 0")
        value = self.top_p
        _check_number("top_p", value, _is_number(value) and 0 < value <= 1, "a number above 0 and at most 1")
        value = self.min_p
        _check_number("min_p", value, _is_number(value) and 0 <= value <= 1, "a number from 0 to 1")
        value = self.repetition_penalty
        _check_number("repetition_penalty", value, _is_number(value) and value > 0, "a number above 0")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _check_number(name, value, _is_number(value), "a number")
        object.__setattr__(self, "logit_bias", _logit_bias(self.logit_bias))
        object.__setattr__(self, "processors", _processors(self.processors))
        if self.grammar is not None:
            known = isinstance(self.grammar, Mapping) and len(self.grammar) == 1 and set(self.grammar) <= set(GRAMMARS)
            if not known:
                raise InputError(f"grammar must have one entry, named {' or '.join(GRAMMARS)}, not {self.grammar!r}")
            if self.ignore_eos:
                raise InputError("ignore_eos must be False with a grammar, which says itself where the output ends")
        value = self.guidance_scale
        _check_number("guidance_scale", value, _is_number(value) and value >= 0, "a number of at least 0")
        if self.negative_prompt is not None:
            object.__setattr__(self, "negative_prompt", _negative_prompt(self.negative_prompt))
            if value == 1:
                raise InputError("negative_prompt needs a guidance_scale other than 1, which is off")
        _check_int("n", self.n, 1)
        if self.logprobs is not None:
            _check_int("logprobs", self.logprobs, 0, 1000)
        if self.seed is not None:
            _check_int("seed", self.seed, 0, MAX_SEED)
        stop = (self.stop,) if isinstance(self.stop, str) else () if self.stop is None else self.stop
        try:
            stop = tuple(stop)
        except TypeError:
            raise InputError(f"stop must be a text or a sequence of texts, not {self.stop!r}") from None
        for text in stop:
            if not isinstance(text, str) or not text:
                raise InputError(f"stop must hold texts of at least one character, not {text!r}")
        object.__setattr__(self, "stop", stop)
        if not isinstance(self.ignore_eos, bool):
            raise InputError(f"ignore_eos must be True or False, not {self.ignore_eos!r}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


@dataclass(frozen=True, slots=True)
class MethodOptions:
    """What every method's options share: whole numbers are bounded by ``BOUNDS``, the rest by their type.

    ``NARROW``: what ``load`` takes in place of defaults where each row of a forward costs time, as on a CPU.
    """

    BOUNDS: ClassVar[Mapping[str, tuple[int, int]]] = {}
    NARROW: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, bool):
                if not isinstance(value, bool):
                    raise InputError(f"{field.name} must be True or False, not {value!r}")
            elif isinstance(field.default, float):
                _check_number(field.name, value, _is_number(value) and 0 <= value <= 1, "a number from 0 to 1")
            else:
                low, high = self.BOUNDS[field.name]
                _check_int(field.name, value, low, high)


@dataclass(frozen=True, slots=True)
class AutoregressiveOptions(MethodOptions):
    """Plain decoding has nothing to choose."""


@dataclass(frozen=True, slots=True)
class SpeculativeOptions(MethodOptions):
    """Leviathan et al. 2023: ``draft_tokens`` (γ) tokens of the draft model in each step."""

    BOUNDS: ClassVar[Mapping[str, tuple[int, int]]] = {"draft_tokens": (1, 128)}
    draft_tokens: int = 5


@dataclass(frozen=True, slots=True)
class PromptLookupOptions(MethodOptions):
    """Saxena 2023: the text that followed the latest earlier occurrence of the last n tokens, longest n first."""

    BOUNDS: ClassVar[Mapping[str, tuple[int, int]]] = {
        "draft_tokens": (1, 128),
        "max_ngram": (1, 16),
        "min_ngram": (1, 16),
    }
    draft_tokens: int = 10
    max_ngram: int = 3
    min_ngram: int = 1

    def __post_init__(self) -> None:
        MethodOptions.__post_init__(self)
        if self.min_ngram > self.max_ngram:
            raise InputError(f"min_ngram must be at most max_ngram ({self.max_ngram}), not {self.min_ngram}")


@dataclass(frozen=True, slots=True)
class LookaheadOptions(MethodOptions):
    """Fu et al. 2024: a Jacobi window of ``window`` columns and ``ngram``-1 levels, and pool phrases to verify.

    ``prompt_ngrams`` lets the n-grams of the prompt and of the output into the pool too.
    """

    BOUNDS: ClassVar[Mapping[str, tuple[int, int]]] = {"window": (1, 64), "ngram": (2, 16), "branches": (0, 64)}
    window: int = 10
    ngram: int = 5
    branches: int = 8
    prompt_ngrams: bool = True


@dataclass(frozen=True, slots=True)
class SuffixDecodingOptions(MethodOptions):
    """Oliaro et al. 2024: counted continuations of the longest match, in the own text and in earlier outputs.

    Attributes:
        draft_tokens: nodes at most. factor: nodes for each matched token. max_match: longest match that counts.
        min_chance: nodes that are less likely than this are left out. reuse: draw on earlier outputs too.
    """

    BOUNDS: ClassVar[Mapping[str, tuple[int, int]]] = {
        "draft_tokens": (1, 128),
        "factor": (1, 16),
        "max_match": (1, 256),
    }
    draft_tokens: int = 32
    factor: int = 1
    max_match: int = 24
    min_chance: float = 0.1
    reuse: bool = True


@dataclass(frozen=True, slots=True)
class TokenRecyclingOptions(MethodOptions):
    """Luo et al. 2024: each token's ``successors`` likeliest successors, in a tree of ``tree_tokens`` nodes."""

    BOUNDS: ClassVar[Mapping[str, tuple[int, int]]] = {"tree_tokens": (1, 128), "successors": (1, 8)}
    tree_tokens: int = 80
    successors: int = 8


@dataclass(frozen=True, slots=True)
class OuroborosOptions(MethodOptions):
    """Ouroboros (Zhao et al. 2024), each of its four mechanisms with a switch.

    Attributes:
        draft_tokens: γ, draft until the draft is at least this long.
        min_chance: stop drafting early when the draft is accepted to its end with less than this chance.
        side_branches: likely nodes beside the draft that each draft forward scores too.
        siblings: second choices of the draft model, offered beside each of its draft tokens.
        tree_tokens: at most this many draft tokens go to the target model in one forward.
        window, ngram: W columns and N-1 levels of the lookahead window in each draft forward.
        candidates: pool phrases that one draft forward checks.
        branches, branch_tokens: K branches of up to β tokens that lengthen the draft.
        phrase_drafting: mechanism 1, candidates and window in each draft forward.
        lengthening: mechanism 2, pool phrases behind the draft.
        harvest: mechanism 3, phrases from the target's predictions on rejected tokens.
        reuse: mechanism 4, the pool outlives the request.
    """

    BOUNDS: ClassVar[Mapping[str, tuple[int, int]]] = {
        "draft_tokens": (1, 128),
        "side_branches": (0, 64),
        "siblings": (0, 16),
        "tree_tokens": (1, 512),
        "window": (0, 64),
        "ngram": (2, 16),
        "candidates": (0, 64),
        "branches": (0, 64),
        "branch_tokens": (1, 64),
    }
    NARROW: ClassVar[Mapping[str, Any]] = {  # benchmarks/speed.md
        "tree_tokens": 8,
        "window": 0,
        "candidates": 2,
        "side_branches": 1,
        "siblings": 1,
        "branch_tokens": 4,
    }
    draft_tokens: int = 4
    min_chance: float = 0.1
    side_branches: int = 3
    siblings: int = 2
    tree_tokens: int = 32
    window: int = 6
    ngram: int = 4
    candidates: int = 4
    branches: int = 3
    branch_tokens: int = 8
    phrase_drafting: bool = True
    lengthening: bool = True
    harvest: bool = True
    reuse: bool = True


METHODS: Mapping[str, type[MethodOptions]] = {
    "autoregressive": AutoregressiveOptions,
    "speculative": SpeculativeOptions,
    "lookahead": LookaheadOptions,
    "prompt_lookup": PromptLookupOptions,
    "suffix_decoding": SuffixDecodingOptions,
    "token_recycling": TokenRecyclingOptions,
    "ouroboros": OuroborosOptions,
}


def options_for(
    method: str, options: MethodOptions | Mapping[str, Any] | None = None, narrow: bool = False
) -> MethodOptions:
    """``options`` checked against ``method``, made of a mapping of its fields, or the method's defaults.

    Args:
        narrow: whether the method's ``NARROW`` stands in for its defaults, where a mapping names no other value.

    Raises:
        InputError: the method is unknown, or the options belong to another method, or are unknown or out of range.
    """
    if isinstance(options, Mapping):
        return options_from_strings(method, {name: str(value) for name, value in options.items()}, narrow)
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    kind = METHODS[method]
    if options is None:
        return kind(**kind.NARROW) if narrow else kind()
    if type(options) is not kind:
        raise InputError(f"options for method {method!r} must be {kind.__name__}, not {options!r}")
    return options


def options_from_strings(method: str, settings: Mapping[str, str], narrow: bool = False) -> MethodOptions:
    """The method's options from ``name -> value`` texts, as the command line gives them; ``narrow``: see options_for.

    Raises:
        InputError: unknown method or option, or a value that does not convert or is out of range.
    """
    kind = type(options_for(method))
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values: dict[str, Any] = dict(kind.NARROW) if narrow else {}
    for name, text in settings.items():
        if name not in fields:
            allowed = ", ".join(fields) or "none"
            raise InputError(f"method {method!r} has no option {name!r} (its options: {allowed})")
        values[name] = _convert(name, text, fields[name].default)
    return kind(**values)


def _convert(name: str, text: str, default: object) -> int | float | bool:
    if isinstance(default, bool):
        switch = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}
        if text.lower() not in switch:
            raise InputError(f"{name} must be true or false, not {text!r}")
        return switch[text.lower()]
    try:
        return float(text) if isinstance(default, float) else int(text)
    except ValueError:
        kind = "a number" if isinstance(default, float) else "a whole number"
        raise InputError(f"{name} must be {kind}, not {text!r}") from None
