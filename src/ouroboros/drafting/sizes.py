"""Sizes that were not said, for methods whose rows a target forward must carry: what T(n) of this machine allows.

Where rows are free, published sizes are taken; where they cost, a template of recycled successors ends at the row that
is worth its time by the chances of its ranks, and a lookahead window has the most columns whose rows cost little beside
a forward. A method for which there is no such size says so once (``pays``).
"""

from __future__ import annotations

from dataclasses import replace

from ouroboros.config import LookaheadOptions, MethodOptions, OuroborosOptions, TokenRecyclingOptions
from ouroboros.control.cost import Costs
from ouroboros.drafting.token_recycling import best_size

__all__ = ["by_costs", "chosen_sizes", "pays"]

# Windows and phrases to verify, the widest first: as published (Fu et al. 2024) down to what two cores bear, the best
# of the benchmark's grid there (docs/benchmark.md).
LADDER = ((10, 5, 8), (5, 4, 4), (3, 3, 2), (1, 3, 1))
SLACK = 1.25  # times plain decoding's forward: what a lookahead forward may take


def by_costs(options: MethodOptions) -> bool:
    """Whether something is left to what forwards cost."""
    if isinstance(options, OuroborosOptions):
        return options.control
    if isinstance(options, LookaheadOptions):
        return None in (options.window, options.ngram, options.branches)
    return isinstance(options, TokenRecyclingOptions) and options.tree_tokens is None


def chosen_sizes(options: MethodOptions, costs: Costs, context: int) -> MethodOptions:
    """The options with every size that is None filled in, by T(n) behind ``context`` positions."""
    if isinstance(options, TokenRecyclingOptions) and options.tree_tokens is None:
        seconds = [costs.seconds(n, context) for n in range(1, 2 + TokenRecyclingOptions.PUBLISHED)]
        return replace(options, tree_tokens=max(1, best_size(seconds, options.successors)))
    if isinstance(options, LookaheadOptions):
        window, ngram, branches = next((rung for rung in LADDER if _cheap(rung, costs, context)), LADDER[-1])
        return replace(
            options,
            window=window if options.window is None else options.window,
            ngram=ngram if options.ngram is None else options.ngram,
            branches=branches if options.branches is None else options.branches,
        )
    return options


def _cheap(rung: tuple[int, int, int], costs: Costs, context: int) -> bool:
    window, ngram, branches = rung
    rows = 1 + window * (ngram - 1) + branches * (ngram - 1)
    return costs.seconds(rows, context) <= SLACK * costs.seconds(1, context)


def pays(options: MethodOptions, costs: Costs, context: int = 256) -> bool:
    """Whether the method may be expected to be faster than plain decoding with the sizes that it is left to choose."""
    if isinstance(options, TokenRecyclingOptions) and options.tree_tokens is None:
        return best_size([costs.seconds(n, context) for n in range(1, 3)], options.successors) > 0
    if isinstance(options, LookaheadOptions) and options.window is None:
        return _cheap(LADDER[-1], costs, context)
    return True
