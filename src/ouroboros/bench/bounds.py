"""What agreement and T(n) allow: the speed-up of a chain whose drafts cost nothing, and of speculative decoding.

T(n) was measured once, and memory may have been faster or slower while a prompt ran. Plain decoding
of that prompt tells: what its tokens took over T(1) shifts T(n), and the bounds of a task are means over its prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ouroboros.bench.records import Case
from ouroboros.bench.settings import PLAIN
from ouroboros.control.profile import CostProfile
from ouroboros.stats import LONGEST_CHAIN, chain_bound, geometric_mean, speculative_estimate

__all__ = ["Bounds", "bounds", "shifted"]

BEND = 6  # how sharply T(n) turns from waiting for memory to arithmetic: two states of one machine (docs/LOG.md)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Speed-ups over plain decoding that a task's ``agreement`` allows: of a ``chain`` without costs, and of
    ``speculative`` decoding at its best length."""

    agreement: float
    chain: float
    speculative: float


def _agreement(cases: Sequence[Case]) -> float | None:
    """α: share of positions at which the draft model draws the target's token."""
    known = [(case.agreed, len(case.token_ids)) for case in cases if case.agreed is not None]
    positions = sum(size for _, size in known)
    return sum(count for count, _ in known) / positions if positions else None


def bounds(cases: Sequence[Case], profiles: Mapping[str, CostProfile]) -> Bounds | None:
    """Of one task at one temperature. None without a draft model or T(n).

    Args:
        profiles: of ``target`` and ``draft``.
    """
    alpha = _agreement(cases)
    if alpha is None or not {"target", "draft"} <= set(profiles):
        return None
    each = [_of_case(case, alpha, profiles["target"], profiles["draft"]) for case in cases]
    chains, estimates = zip(*each, strict=True)
    return Bounds(alpha, geometric_mean(chains), geometric_mean(estimates))


def _of_case(case: Case, alpha: float, target: CostProfile, draft: CostProfile) -> tuple[float, float]:
    context = case.prompt_tokens + len(case.token_ids) // 2
    table = [0.0, *(target.cost(rows, context) for rows in range(1, LONGEST_CHAIN + 1))]
    plain = next((run for run in case.runs if run.label == PLAIN and run.decoded_tokens), None)
    ratio = 1.0 if plain is None else plain.decode_seconds / plain.decoded_tokens / table[1]
    cost = shifted(table, ratio).__getitem__
    return chain_bound(alpha, cost), speculative_estimate(alpha, cost, ratio * draft.cost(1, context))


def shifted(seconds: Sequence[float], ratio: float) -> list[float]:
    """T(n) for n = 0, 1, 2, … where reading memory takes ``ratio`` times what it took when it was measured.

    A forward of one row is taken to wait for memory alone, M; one of n rows for M and for arithmetic A(n), of which the
    longer hides most of the shorter: T(n)^6 = M^6 + A(n)^6.
    """
    if ratio == 1 or len(seconds) < 2:
        return list(seconds)
    one = seconds[1] ** BEND
    return [seconds[0], *((max(t**BEND - one, 0.0) + one * ratio**BEND) ** (1 / BEND) for t in seconds[1:])]
