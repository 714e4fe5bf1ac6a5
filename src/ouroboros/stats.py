"""The only place that defines a figure. Counts come from the decoder; every ratio is computed here.

Definitions (prefill is in no count of forwards and in no decoding time):
    acceptance_rate            accepted_tokens / draft_tokens
    tokens_per_target_forward  new_tokens / target_forwards (the bonus token included)
    tokens_per_second          new_tokens / decode_seconds
    plain_forwards             target forwards that were asked for nothing but the next token
    cached_tokens              of the prompt's, those that the target's KV cache held from an earlier request
    new_tokens                 accepted_tokens + bonus tokens, what a stop cut away not counted

Figures of several runs are functions here; docs/metrics.md says what each is for.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ouroboros.tree import Origin, TokenTree

__all__ = [
    "LONGEST_CHAIN",
    "LOOPING",
    "Decision",
    "Stats",
    "StatsRecorder",
    "chain_bound",
    "fraction_of_bound",
    "geometric_mean",
    "quantile",
    "repeated_4grams",
    "speculative_estimate",
    "speed_up",
    "speed_up_interval",
    "times_per_token",
]

LOOPING = 0.2  # texts with a larger share of repeated 4-grams flatter every method that copies
_ROUNDS = 2000  # of the bootstrap
LONGEST_CHAIN = 64  # tokens, of the chains that bounds are made of


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def repeated_4grams(tokens: Sequence[int]) -> float:
    """Share of the 4-grams that stood in the same text before: how much of it loops."""
    grams = [tuple(tokens[i : i + 4]) for i in range(len(tokens) - 3)]
    return _ratio(len(grams) - len(set(grams)), len(grams))


def speed_up(plain: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]) -> float:
    """Tokens per second over those of plain decoding, of (new tokens, seconds) of the same prompts.

    A ratio of sums: what someone who runs these prompts one after the other sees. It weighs a prompt by its time, so
    that one which loops, and flies by, does not outweigh the others as in a mean of ratios.
    """
    return _ratio(_rate(other), _rate(plain))


def _rate(runs: Sequence[tuple[float, float]]) -> float:
    return _ratio(sum(tokens for tokens, _ in runs), sum(seconds for _, seconds in runs))


def geometric_mean(values: Sequence[float]) -> float:
    """Over tasks: each counts alike, and twice as fast outweighs twice as slow exactly. nan for no values."""
    return math.exp(sum(math.log(value) for value in values) / len(values)) if values else math.nan


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed; nan for no values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def times_per_token(steps: Sequence[tuple[int, float]]) -> list[float]:
    """Of (tokens, seconds) of each step: what each token took, those of one step alike."""
    return [seconds / tokens for tokens, seconds in steps for _ in range(tokens)]


def speed_up_interval(tasks: Sequence[Sequence[Sequence[float]]], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the geometric mean of the tasks' speed-ups: each task's prompts are drawn again.

    Args:
        tasks: of each task, of each prompt: plain decoding's tokens and seconds, and the other's tokens and seconds.
    """
    source = np.random.default_rng(seed)
    logs_R = np.zeros(_ROUNDS)
    for prompts in tasks:
        drawn_RP = source.integers(len(prompts), size=(_ROUNDS, len(prompts)))
        sums_R4 = np.array(prompts, dtype=float)[drawn_RP].sum(1)
        logs_R += np.log(sums_R4[:, 2] * sums_R4[:, 1] / (sums_R4[:, 3] * sums_R4[:, 0]))
    low, high = np.quantile(np.exp(logs_R / len(tasks)), (0.025, 0.975))
    return float(low), float(high)


def fraction_of_bound(speed_up: float, tokens_per_target_forward: float) -> float:
    """What is left of the speed if drafting and the rows of drafts cost nothing: then each target forward would take as
    long as one of plain decoding, and the speed-up would be the tokens per target forward."""
    return _ratio(speed_up, tokens_per_target_forward)


def chain_bound(agreement: float, cost: Callable[[int], float]) -> float:
    """The speed-up of the best chain whose drafts cost nothing, if each is right with this chance, all alike.

    Args:
        agreement: α, share of positions at which the draft model draws the target's token. cost: T(n), seconds of a
            target forward over n rows; a chain of n - 1 drafts needs n, and yields 1 + α + … + α^(n-1) tokens.
    """
    return max(_chain(agreement, n - 1) * cost(1) / cost(n) for n in range(1, LONGEST_CHAIN + 1))


def speculative_estimate(agreement: float, cost: Callable[[int], float], draft_seconds: float) -> float:
    """As ``chain_bound``, where each draft costs ``draft_seconds``: speculative decoding at its best γ (Leviathan et
    al. 2023, theorem 3.8, with a measured T(n))."""
    lengths = range(LONGEST_CHAIN)
    return max(_chain(agreement, g) * cost(1) / (cost(g + 1) + g * draft_seconds) for g in lengths)


def _chain(agreement: float, drafts: int) -> float:
    return sum(agreement**i for i in range(drafts + 1))


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
    plain_forwards: int
    draft_forwards: int
    draft_tokens: int
    accepted_tokens: int
    accepted_by_source: Mapping[str, int]
    draft_tokens_by_source: Mapping[str, int]
    accepted_by_origin: Mapping[str, int]
    draft_tokens_by_origin: Mapping[str, int]
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


@dataclass(frozen=True, slots=True)
class Decision:
    """One step of a controller (control/controller.py), for those who ask why.

    Attributes:
        rate: tokens per second that costs were held against. draft_rows: of each draft forward, its window's too.
        rows: of the target's forward. expected: tokens that the step should yield. tokens: those it yielded.
        gain, price: of the draft forward that was not made: tokens that it should add, and that its time is worth.
        probe: the draft model was asked though it was not expected to pay.
    """

    rate: float
    draft_rows: tuple[int, ...]
    rows: int
    expected: float
    tokens: int
    gain: float
    price: float
    probe: bool


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
    plain_forwards: int = 0
    draft_forwards: int = 0
    prefill_seconds: float = 0.0
    draft_prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    draft_seconds: float = 0.0
    offered: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    origins: Counter[str] = field(default_factory=Counter)
    offered_origins: Counter[str] = field(default_factory=Counter)
    offered_by_depth: list[int] = field(default_factory=list)
    accepted_by_depth: list[int] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)

    def begin(self, cached_tokens: int, seconds: float, draft_seconds: float) -> None:
        """The prompt has been read, in ``seconds``, the draft model's part among them."""
        self.cached_tokens = cached_tokens
        self.prefill_seconds, self.draft_prefill_seconds = seconds - draft_seconds, draft_seconds

    def step(
        self,
        tree: TokenTree,
        origins: Sequence[Origin],
        seconds: float,
        draft_forwards: int,
        draft_seconds: float,
        decision: Decision | None = None,
    ) -> None:
        """The target was asked for ``tree``, and tokens of these ``origins`` became output."""
        self.target_forwards += 1
        self.plain_forwards += len(tree) == 1
        self.draft_forwards += draft_forwards
        self.decode_seconds += seconds
        self.draft_seconds += draft_seconds
        missing = max(tree.depths) - len(self.offered_by_depth)
        self.offered_by_depth += [0] * missing
        self.accepted_by_depth += [0] * missing
        for origin, depth in zip(tree.origins[1:], tree.depths[1:], strict=True):
            self.offered[origin.label] += 1
            self.offered_origins[origin.value] += 1
            self.offered_by_depth[depth - 1] += 1
        for depth, origin in enumerate(origins):
            if origin is Origin.BONUS:
                self.bonus_tokens += 1
            else:
                self.accepted[origin.label] += 1
                self.origins[origin.value] += 1
                self.accepted_by_depth[depth] += 1
        if decision is not None:
            self.decisions.append(decision)

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
            plain_forwards=self.plain_forwards,
            draft_forwards=self.draft_forwards,
            draft_tokens=self.offered.total(),
            accepted_tokens=accepted,
            accepted_by_source=dict(self.accepted),
            draft_tokens_by_source=dict(self.offered),
            accepted_by_origin=dict(self.origins),
            draft_tokens_by_origin=dict(self.offered_origins),
            accepted_by_depth=tuple(self.accepted_by_depth),
            draft_tokens_by_depth=tuple(self.offered_by_depth),
            prefill_seconds=self.prefill_seconds,
            draft_prefill_seconds=self.draft_prefill_seconds,
            decode_seconds=self.decode_seconds,
            draft_seconds=self.draft_seconds,
        )
