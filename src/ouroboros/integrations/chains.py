"""Chains for the requests of another engine, which verifies what is proposed and tells nothing but the new tokens.

A request's text is looked up in the phrase pool, and where a phrase ends the look-up goes on from there; the likeliest
path of the plan that comes of it (drafting/plan.py) is its chain. How much of all chains is proposed is decided for the
whole batch, by what its forwards have been seen to take. It knows nothing of any engine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set

from ouroboros.control.cost import Costs, Prior
from ouroboros.control.estimates import Calibration
from ouroboros.drafting.offers import Offers
from ouroboros.drafting.plan import Plan
from ouroboros.models.base import Work
from ouroboros.phrases.memory import Memory

__all__ = ["Chain", "Spending"]

BRANCHES = 2  # phrases that are looked at after each place
READ = 512  # tokens of a prompt that are learned in one step, so that a long one does not hold up the batch
ROW = 1 / 16  # of a forward's time, that a row takes before anything was measured
UNSURE = (0.5, 1.5, 0.1)  # of the first forward and of that; see cost.Prior


class Chain:
    """One request's, from step to step.

    Args:
        memory: phrases are looked up there and go there, predictions are read. chances: what guesses have proved to be
            worth in earlier requests; it learns. prompt: is kept and grows. stop_ids: nothing is proposed after one.

    Attributes:
        text: all tokens so far.
    """

    def __init__(self, memory: Memory, chances: Calibration, prompt: list[int], stop_ids: Set[int]) -> None:
        self.text = prompt
        self._memory = memory
        self._chances = Calibration(chances)
        self._stop_ids = stop_ids
        self._offers = Offers(memory.phrases, prompt, harvest=False, most=READ)
        self._plan: Plan | None = None

    def grow(self, tokens: Sequence[int]) -> None:
        """The text goes on with these tokens: what was proposed is told how it did."""
        if self._plan is not None and tokens:
            self._plan.learn(tokens)
            self._offers.credit(tokens)
        self._plan = None
        self.text += tokens

    def propose(self, most: int, least: float) -> tuple[list[int], list[float]]:
        """Up to ``most`` tokens, and the chance of each to be accepted, which falls along the chain and is at least
        ``least``."""
        plan = self._plan = Plan(self.text[-1], self._chances, self._stop_ids)
        self._offers.begin(self.text)
        tree, chances, node, looked = plan.tree, plan.chances, 0, -1
        while node != looked and tree.depths[node] < most and (node == 0 or tree.tokens[node] not in self._stop_ids):
            looked = node
            self._hang(plan, node, most - tree.depths[node], least)
            while children := [child for child in tree.children(node) if chances[child] >= least]:
                node = max(children, key=chances.__getitem__)
        path = tree.path(node)[1 : most + 1]
        return [tree.tokens[n] for n in path], [chances[n] for n in path]

    def _hang(self, plan: Plan, node: int, length: int, least: float) -> None:
        """What may follow a node: phrases, and what the target is known to predict there."""
        tree = plan.tree
        found = self._offers.look_up(tree.path_tokens(node), BRANCHES, length)
        plan.hang(node, found.phrases, length, least)
        parent = tree.parents[node]
        before = tree.tokens[parent] if parent >= 0 else self.text[-2] if len(self.text) > 1 else None
        row = self._memory.predictions.look_up(before, tree.tokens[node])
        if row is not None and len(row.ids):
            plan.recycle(node, [row.ids[0]], [math.exp(min(row.logs[0], 0.0))], row.near, least)


class Spending:
    """How many tokens of all chains are worth their rows: T(n) is learned from the forwards that are made, and the
    most tokens a second are chosen. Until a forward was measured there are none."""

    def __init__(self) -> None:
        self._costs: Costs | None = None

    def observe(self, rows: int, seconds: float) -> None:
        """A step whose forward had so many rows took so long, all told."""
        if self._costs is None and rows > 0 and seconds > 0:
            self._costs = Costs(Work(), Prior(seconds, ROW * seconds / rows, unsure=UNSURE))
        elif self._costs is not None:
            self._costs.observe(rows, 0, seconds)

    def lengths(self, chains: Sequence[Sequence[float]]) -> list[int]:
        """Of each chain, by its tokens' chances, how many tokens are proposed."""
        sizes = [0] * len(chains)
        if self._costs is None:
            return sizes
        tokens, rows = float(len(chains)), len(chains)
        best = tokens / self._costs.seconds(rows, 0) if rows else 0.0
        taken, order = 0, sorted(((c, i) for i, chances in enumerate(chains) for c in chances), reverse=True)
        for count, (chance, _) in enumerate(order, start=1):
            tokens += chance
            rate = tokens / self._costs.seconds(rows + count, 0)
            if rate > best:
                best, taken = rate, count
        for _, number in order[:taken]:
            sizes[number] += 1
        return sizes
