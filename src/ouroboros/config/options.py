"""How a method drafts: one frozen dataclass a method. An instance that exists is valid. Knows nothing of models."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ouroboros.config.checks import check_int, check_number, is_number
from ouroboros.errors import InputError

__all__ = [
    "METHODS",
    "AutoregressiveOptions",
    "LookaheadOptions",
    "MethodOptions",
    "OuroborosOptions",
    "PromptLookupOptions",
    "SpeculativeOptions",
    "SuffixDecodingOptions",
    "TokenRecyclingOptions",
    "options_for",
    "options_from_strings",
]


@dataclass(frozen=True, slots=True)
class MethodOptions:
    """What every method's options share: whole numbers are bounded by ``BOUNDS``, the rest by their type."""

    BOUNDS: ClassVar[Mapping[str, tuple[int, int]]] = {}

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue  # left to what forwards cost
            if isinstance(field.default, bool):
                if not isinstance(value, bool):
                    raise InputError(f"{field.name} must be True or False, not {value!r}")
            elif isinstance(field.default, float):
                check_number(field.name, value, is_number(value) and 0 <= value <= 1, "a number from 0 to 1")
            else:
                low, high = self.BOUNDS[field.name]
                check_int(field.name, value, low, high)


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
    """Fu et al. 2024: a Jacobi window of ``window`` columns and ``ngram``-1 levels, and ``branches`` pool phrases to
    verify. Sizes that are None are chosen by what rows cost on this machine; where that is not known, as published.

    ``prompt_ngrams`` lets the n-grams of the prompt and of the output into the pool too.
    """

    PUBLISHED: ClassVar[tuple[int, int, int]] = (10, 5, 8)

    BOUNDS: ClassVar[Mapping[str, tuple[int, int]]] = {"window": (1, 64), "ngram": (2, 16), "branches": (0, 64)}
    window: int | None = None
    ngram: int | None = None
    branches: int | None = None
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
    """Luo et al. 2024: each token's ``successors`` likeliest successors, in a tree of ``tree_tokens`` nodes. None: as
    many as are worth their rows on this machine; where that is not known, as published."""

    PUBLISHED: ClassVar[int] = 80

    BOUNDS: ClassVar[Mapping[str, tuple[int, int]]] = {"tree_tokens": (1, 128), "successors": (1, 8)}
    tree_tokens: int | None = None
    successors: int = 8


@dataclass(frozen=True, slots=True)
class OuroborosOptions(MethodOptions):
    """Ouroboros (Zhao et al. 2024), each of its four mechanisms with a switch.

    Attributes:
        control: each step's sizes are chosen by what they cost on this machine and what they yield on this text; the
            numbers below are then the most that may be chosen. Without it they are what every step takes.
        draft_tokens: γ, draft until the draft is this long.
        draft_context: of a text the draft model reads so many tokens at its end, and begins anew with so many when they
            have become twice as many; 0: as many as its context holds. What is far is left to the phrases.
        siblings: further choices of the draft model, offered beside each of its draft tokens.
        tree_tokens: at most this many draft tokens go to the target model in one forward.
        window, ngram: W columns and N-1 levels of the lookahead window in each draft forward.
        branches, branch_tokens: K phrases of up to β tokens behind a node: the draft's end, or any with ``control``.
        min_chance, side_branches, candidates: without ``control`` alone. Drafting ends where the draft is accepted to
            its end with less than this chance; each draft forward scores so many likely nodes beside the draft, and so
            many pool phrases behind it.
        phrase_drafting: mechanism 1, pool phrases and window in each draft forward.
        lengthening: mechanism 2, pool phrases that the draft model has not seen, for the target model to check.
        harvest: mechanism 3, phrases from the target's predictions on rejected tokens.
        reuse: mechanism 4, the pool outlives the request.
        recycling: with ``control``, what the target predicted elsewhere behind the same one or two tokens joins the
            phrases (after Token Recycling, Luo et al. 2024, with probabilities and the request's noise).
    """

    BOUNDS: ClassVar[Mapping[str, tuple[int, int]]] = {
        "draft_tokens": (1, 128),
        "draft_context": (0, 2**20),
        "side_branches": (0, 64),
        "siblings": (0, 16),
        "tree_tokens": (1, 512),
        "window": (0, 64),
        "ngram": (2, 16),
        "candidates": (0, 64),
        "branches": (0, 64),
        "branch_tokens": (1, 64),
    }
    control: bool = True
    draft_tokens: int = 16
    draft_context: int = 0
    min_chance: float = 0.1
    side_branches: int = 3
    siblings: int = 2
    tree_tokens: int = 64
    window: int = 6
    ngram: int = 4
    candidates: int = 4
    branches: int = 3
    branch_tokens: int = 8
    phrase_drafting: bool = True
    lengthening: bool = True
    harvest: bool = True
    reuse: bool = True
    recycling: bool = True


METHODS: Mapping[str, type[MethodOptions]] = {
    "autoregressive": AutoregressiveOptions,
    "speculative": SpeculativeOptions,
    "lookahead": LookaheadOptions,
    "prompt_lookup": PromptLookupOptions,
    "suffix_decoding": SuffixDecodingOptions,
    "token_recycling": TokenRecyclingOptions,
    "ouroboros": OuroborosOptions,
}


def options_for(method: str, options: MethodOptions | Mapping[str, Any] | None = None) -> MethodOptions:
    """``options`` checked against ``method``, made of a mapping of its fields, or the method's defaults.

    Raises:
        InputError: the method is unknown, or the options belong to another method, or are unknown or out of range.
    """
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    kind = METHODS[method]
    if options is None:
        return kind()
    if isinstance(options, Mapping):
        _known(method, kind, options)
        return kind(**options)
    if type(options) is not kind:
        raise InputError(f"options for method {method!r} must be {kind.__name__}, not {options!r}")
    return options


def options_from_strings(method: str, settings: Mapping[str, str]) -> MethodOptions:
    """The method's options from ``name -> value`` texts, as the command line gives them.

    Raises:
        InputError: unknown method or option, or a value that does not convert or is out of range.
    """
    kind = type(options_for(method))
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    _known(method, kind, settings)
    for name, text in settings.items():
        values[name] = _convert(name, text, fields[name].default)
    return kind(**values)


def _known(method: str, kind: type[MethodOptions], names: Iterable[str]) -> None:
    """
    Raises:
        InputError: the method has no option of one of these names.
    """
    fields = [field.name for field in dataclasses.fields(kind)]
    for name in names:
        if name not in fields:
            raise InputError(f"method {method!r} has no option {name!r} (its options: {', '.join(fields) or 'none'})")


def _convert(name: str, text: str, default: object) -> int | float | bool | None:
    if default is None and text.lower() == "auto":
        return None
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
