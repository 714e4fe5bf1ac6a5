"""The only place that defines a figure. Counts come from the decoder; every ratio is computed here.

Definitions (prefill is in no count of forwards and in no decoding time):
    acceptance_rate            accepted_tokens / draft_tokens
    tokens_per_target_forward  new_tokens / target_forwards (the bonus token included)
    tokens_per_second          new_tokens / decode_seconds
    cached_tokens              of the prompt's, those that the target's KV cache held from an earlier request
    new_tokens                 accepted_tokens + bonus tokens, what a stop cut away not counted
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["Stats", "StatsRecorder", "repeated_4grams"]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def repeated_4grams(tokens: Sequence[int]) -> float:
    """Share of the 4-grams that stood in the same text before: how much of it loops."""
    grams = [tuple(tokens[i : i + 4]) for i in range(len(tokens) - 3)]
    return _ratio(len(grams) - len(set(grams)), len(grams))


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True, slots=True)
class Stats:
    """What one request did. Times in seconds; rates in 0 … 1; see the header for the formulas.

    ``trees``, ``draft_trees``: False where the target, or the draft model, takes chains only: ``lookahead`` and
    ``ouroboros`` then do without the branches that it would score.
    """

    method: str
    backend: str
    dtype: str
    device: str
    trees: bool
    draft_trees: bool
    seed: int
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    target_forwards: int
    draft_forwards: int
    draft_tokens: int
    accepted_tokens: int
    accepted_by_source: Mapping[str, int]
    draft_tokens_by_source: Mapping[str, int]
    accepted_by_origin: Mapping[str, int]
    accepted_by_depth: tuple[int, ...]
    draft_tokens_by_depth: tuple[int, ...]
    prefill_seconds: float
    draft_prefill_seconds: float
    decode_seconds: float
    draft_seconds: float

    @property
    def acceptance_rate(self) -> float:
        return _ratio(self.accepted_tokens, self.draft_tokens)

    @property
    def acceptance_rate_by_source(self) -> dict[str, float]:
        accepted = self.accepted_by_source
        return {name: _ratio(accepted.get(name, 0), offered) for name, offered in self.draft_tokens_by_source.items()}

    @property
    def acceptance_rate_by_depth(self) -> tuple[float, ...]:
        return tuple(_ratio(a, n) for a, n in zip(self.accepted_by_depth, self.draft_tokens_by_depth, strict=True))

    @property
    def tokens_per_target_forward(self) -> float:
        return _ratio(self.new_tokens, self.target_forwards)

    @property
    def draft_forwards_per_token(self) -> float:
        return _ratio(self.draft_forwards, self.new_tokens)

    @property
    def tokens_per_second(self) -> float:
        return _ratio(self.new_tokens, self.decode_seconds)

    def to_dict(self) -> dict[str, object]:
        """Every field and every ratio, as plain JSON values."""
        values: dict[str, object] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in (
            "acceptance_rate",
            "acceptance_rate_by_source",
            "acceptance_rate_by_depth",
            "tokens_per_target_forward",
            "draft_forwards_per_token",
            "tokens_per_second",
        ):
            values[name] = getattr(self, name)
        return {name: _plain(value) for name, value in values.items()}


@dataclass(slots=True)
class StatsRecorder:
    """Counts while a request runs; ``freeze`` turns the counts into ``Stats``."""

    method: str
    backend: str
    dtype: str
    device: str
    seed: int
    prompt_tokens: int
    trees: bool = True
    draft_trees: bool = True
    cached_tokens: int = 0
    bonus_tokens: int = 0
    target_forwards: int = 0
    draft_forwards: int = 0
    prefill_seconds: float = 0.0
    draft_prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    draft_seconds: float = 0.0
    offered: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    origins: Counter[str] = field(default_factory=Counter)
    offered_by_depth: list[int] = field(default_factory=list)
    accepted_by_depth: list[int] = field(default_factory=list)

    def offer(self, label: str, depth: int) -> None:
        """One draft token went to the target model at this depth (1 = directly behind the committed text)."""
        while len(self.offered_by_depth) < depth:
            self.offered_by_depth.append(0)
            self.accepted_by_depth.append(0)
        self.offered[label] += 1
        self.offered_by_depth[depth - 1] += 1

    def emit(self, label: str, origin: str, depth: int) -> None:
        """One token became output; ``depth`` is its place in the step, from 1."""
        if label == "bonus":
            self.bonus_tokens += 1
            return
        self.accepted[label] += 1
        self.origins[origin] += 1
        self.accepted_by_depth[depth - 1] += 1

    def freeze(self) -> Stats:
        accepted = self.accepted.total()
        return Stats(
            method=self.method,
            backend=self.backend,
            dtype=self.dtype,
            device=self.device,
            trees=self.trees,
            draft_trees=self.draft_trees,
            seed=self.seed,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            new_tokens=accepted + self.bonus_tokens,
            target_forwards=self.target_forwards,
            draft_forwards=self.draft_forwards,
            draft_tokens=self.offered.total(),
            accepted_tokens=accepted,
            accepted_by_source=dict(self.accepted),
            draft_tokens_by_source=dict(self.offered),
            accepted_by_origin=dict(self.origins),
            accepted_by_depth=tuple(self.accepted_by_depth),
            draft_tokens_by_depth=tuple(self.offered_by_depth),
            prefill_seconds=self.prefill_seconds,
            draft_prefill_seconds=self.draft_prefill_seconds,
            decode_seconds=self.decode_seconds,
            draft_seconds=self.draft_seconds,
        )
