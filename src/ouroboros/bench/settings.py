"""What a benchmark runs: its settings, and the contestants that follow from them. Knows nothing of models.

A contestant is a method with options and a state of its memory: what it remembers of earlier requests.

    cold      nothing: each prompt as the first one ever
    warm      a few other prompts of the same task, the same for each prompt
    shuffled  all prompts before this one, of all tasks in random order
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ouroboros.config import METHODS, options_from_strings
from ouroboros.errors import InputError

__all__ = ["NINE", "PLAIN", "REMEMBERS", "STATES", "BenchSettings", "Contestant", "contestants"]

PLAIN = "autoregressive"
STATES = ("cold", "warm", "shuffled")
REMEMBERS = ("lookahead", "suffix_decoding", "token_recycling", "ouroboros")
NINE = ("humaneval", "mbpp", "gsm8k", "multi_turn", "translation", "summarization", "qa", "math_reasoning", "rag")
MECHANISMS = ("phrase_drafting", "lengthening", "harvest", "reuse", "recycling")


@dataclass(frozen=True, slots=True)
class Contestant:
    """``options``: what is said of them, as texts; the rest are the method's defaults, or tuned. ``state``: empty for a
    method without memory. ``ablated``: the mechanism that is off in it, if any."""

    name: str
    method: str
    state: str
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ablated: str = ""

    @property
    def label(self) -> str:
        return f"{self.name}, {self.state}" if self.state else self.name


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """Everything that the figures depend on, beside machine and versions. ``None`` and empty: what the models allow.

    Attributes:
        target, draft: directories or hub ids; None for the embedded pair. grow: shapes of target and draft to grow to.
        tasks: names or files. sources: for tasks the original file or hub data set, in place of the sample.
        prompts: of each task that are measured. warm_prompts: of each task, to fill memories; tuning_prompts: of all
            tasks together, to choose the baselines' options (None: one of each; 0: their defaults). All three are
            different prompts.
        max_prompt_tokens: longer prompts are cut from the left.
        variants: further contestants, ``NAME=METHOD`` or ``NAME=METHOD:OPTION=VALUE,…``. ablation: ouroboros without
            each of its mechanisms. peers: names of bench.peers; llama_python: the Python with llama-cpp-python, if it
            is another one.
        peer_prompts, shuffled_prompts, ablation_prompts: on how many of each task's measured prompts (the first ones)
            peers, shuffled memories and the ablation run; None for all. ablation_tasks: on these alone; empty for all.
        quality: judge the answers, which runs the models' code. frozen: results to take T(n) and
            options from; the controller then watches T(n) in place of the clock.

    Raises:
        InputError: a value out of range.
    """

    target: str | None = None
    draft: str | None = None
    grow: tuple[str, str] | None = None
    dtype: str = "auto"
    draft_dtype: str = "auto"
    device: str = "auto"
    backend: str = "auto"
    engine: str = "auto"
    threads: int | None = None
    tasks: tuple[str, ...] = NINE
    sources: tuple[tuple[str, str], ...] = ()
    prompts: int = 2
    warm_prompts: int = 1
    tuning_prompts: int | None = None
    new_tokens: int = 64
    max_prompt_tokens: int | None = 512
    temperatures: tuple[float, ...] = (0.0, 0.8)
    ignore_eos: bool = True
    methods: tuple[str, ...] = tuple(METHODS)
    variants: tuple[str, ...] = ()
    states: tuple[str, ...] = ("cold", "warm")
    ablation: bool = False
    peers: tuple[str, ...] = ()
    peer_prompts: int | None = 1
    shuffled_prompts: int | None = None
    ablation_prompts: int | None = None
    ablation_tasks: tuple[str, ...] = ()
    llama_python: str | None = None
    quality: bool = False
    frozen: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("prompts", 1),
            ("warm_prompts", 1 if "warm" in self.states else 0),
            ("tuning_prompts", 0),
            ("new_tokens", 2),
            ("max_prompt_tokens", 1),
            ("peer_prompts", 1),
            ("shuffled_prompts", 1),
            ("ablation_prompts", 1),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} must be a whole number of at least {least}, not {value}")
        for kind, values, allowed in (("method", self.methods, tuple(METHODS)), ("state", self.states, STATES)):
            for value in values:
                if value not in allowed:
                    raise InputError(f"{kind} must be one of {', '.join(allowed)}, not {value!r}")
        if not self.states or not self.temperatures or min(self.temperatures) < 0:
            raise InputError("a benchmark needs a state of the memory, and temperatures of at least 0")
        if len(set(self.temperatures)) < len(self.temperatures):
            raise InputError(f"temperatures must differ, not {', '.join(map(str, self.temperatures))}")
        if self.draft is not None and self.target is None:
            raise InputError(f"draft {self.draft!r} needs a target; without one the embedded pair is used")
        if self.ablation and "ouroboros" not in self.methods:
            raise InputError("the ablation is one of the method ouroboros, which must be measured too")
        contestants(self)

    def includes(self, one: Contestant | None, task: str, place: int) -> bool:
        """Whether a contestant (None: peers) runs on the prompt at this place (from 0) of the task's measured ones."""
        if one is None:
            most = self.peer_prompts
        elif one.ablated:
            most = self.ablation_prompts if not self.ablation_tasks or task in self.ablation_tasks else 0
        else:
            most = self.shuffled_prompts if one.state == "shuffled" else None
        return most is None or place < most

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {name: _plain(getattr(self, name)) for name in self.__dataclass_fields__}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BenchSettings:
        return cls(**{name: _tuple(value) for name, value in values.items()})


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, tuple) else value


def _tuple(value: Any) -> Any:
    return tuple(_tuple(part) for part in value) if isinstance(value, list) else value


def contestants(settings: BenchSettings) -> list[Contestant]:
    """Plain decoding first, then each method in each state, variants, and the ablation.

    Raises:
        InputError: a variant that is none, or two of one name.
    """
    found = [Contestant(PLAIN, PLAIN, "")]
    for method in METHODS:
        if method in settings.methods and method != PLAIN:
            found += [Contestant(method, method, state) for state in _states(method, settings.states)]
    for text in settings.variants:
        variant = _variant(text)
        found += [dataclasses.replace(variant, state=state) for state in _states(variant.method, settings.states[:1])]
    if settings.ablation:
        state = "warm" if "warm" in settings.states else settings.states[0]
        for name in MECHANISMS:
            if name != "reuse" or state != "cold":  # a cold memory is never reused
                found.append(Contestant(f"without {name}", "ouroboros", state, {name: "off"}, ablated=name))
    labels = [one.label for one in found]
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(f"a contestant must have a name of its own; {label!r} is there twice")
    return found


def _states(method: str, states: Sequence[str]) -> Sequence[str]:
    return states if method in REMEMBERS else ("",)


def _variant(text: str) -> Contestant:
    name, equals, rest = text.partition("=")
    method, _, assignments = rest.partition(":")
    options: dict[str, str] = {}
    for assignment in filter(None, assignments.split(",")):
        option, given, value = assignment.partition("=")
        if not given:
            raise InputError(f"a variant's options must be OPTION=VALUE, not {assignment!r} in {text!r}")
        options[option.strip()] = value.strip()
    if not equals or not name.strip():
        raise InputError(f"a variant must be NAME=METHOD or NAME=METHOD:OPTION=VALUE,…, not {text!r}")
    options_from_strings(method, options)
    return Contestant(name.strip(), method, "", options)
