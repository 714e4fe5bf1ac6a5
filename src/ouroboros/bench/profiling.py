"""Measures a profile of T(n, context): forwards of all sizes in turns, since times differ from run to run."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence

from ouroboros.control.machine import machine, time_forward
from ouroboros.control.profile import CostProfile, describe
from ouroboros.errors import InputError
from ouroboros.models.base import CausalModel
from ouroboros.models.context import Context

__all__ = ["CONTEXTS", "ROWS", "measure"]

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
CONTEXTS = (256, 1024)


def measure(
    model: CausalModel,
    rows: Sequence[int] = ROWS,
    contexts: Sequence[int] = CONTEXTS,
    repeats: int = 7,
    progress: Callable[[str], None] = lambda text: None,
    typical: Callable[[Sequence[float]], float] = statistics.median,
) -> CostProfile:
    """Times forwards of all sizes in random order, ``repeats`` rounds each; logits of all rows are computed.

    ``typical``: which of a size's times counts.

    Raises:
        InputError: a size that is no whole number of at least 1, or that the model's context does not hold.
    """
    info = model.info
    for name, sizes in (("rows", rows), ("context", contexts)):
        if not sizes or any(size < 1 for size in sizes):
            raise InputError(f"{name} must be whole numbers of at least 1, not {list(sizes)}")
    if repeats < 1:
        raise InputError(f"repeats must be a whole number of at least 1, not {repeats}")
    rows, contexts = sorted(set(rows)), sorted(set(contexts))
    if max(rows) + max(contexts) > info.max_positions:
        wanted = f"{max(contexts)} cached positions and {max(rows)} rows"
        raise InputError(f"{wanted} are more than the {info.max_positions} that the model's context holds")
    order = random.Random(0)
    medians, spreads = [], []
    for size in contexts:
        progress(f"a cache of {size} positions")
        tokens = [order.randrange(info.vocab_size) for _ in range(size + 1)]
        context = Context(model)
        context.prefill(tokens)
        for n in rows:  # one round to warm up
            time_forward(context, n, tokens)
        times: dict[int, list[float]] = {n: [] for n in rows}
        for _ in range(repeats):
            for n in order.sample(rows, len(rows)):
                times[n].append(time_forward(context, n, tokens))
        medians.append(tuple(typical(times[n]) for n in rows))
        spreads.append(tuple(_spread(times[n]) for n in rows))
    return CostProfile(
        describe(info), machine(info.device), tuple(rows), tuple(contexts), tuple(medians), tuple(spreads)
    )


def _spread(times: Sequence[float]) -> float:
    if len(times) < 2:
        return 0.0
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return high - low
