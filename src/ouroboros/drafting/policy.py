"""What an Ouroboros step spends on drafting is a policy's choice: the protocol, and the fixed sizes as published.

The drafter (ouroboros.py) has the mechanisms; a policy says which nodes of the plan the draft model scores next, where
phrases hang, and what goes to the target model. ``control/controller.py`` is the policy that chooses by costs.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence, Set
from typing import Protocol

from ouroboros.config import OuroborosOptions
from ouroboros.drafting.base import DraftSession
from ouroboros.drafting.plan import UNSCORED, Chances, Plan
from ouroboros.flow import Answer
from ouroboros.stats import Decision
from ouroboros.tree import TokenTree
from ouroboros.verify import Verdict

__all__ = ["FixedSizes", "Hang", "Policy", "one_path"]

Hang = Callable[[int, int, int, float], object]  # node, branches, length, least chance: phrases below the node


class Policy(Protocol):
    """Decides for one request."""

    @property
    def chances(self) -> Chances:
        """What evidence is worth."""

    @property
    def recycles(self) -> bool:
        """Whether this step uses recycled predictions."""

    @property
    def least(self) -> float:
        """Further choices of the draft model that are accepted with less than this chance are left out."""

    def reads(self, draft: DraftSession, prompt: Sequence[int]) -> bool:
        """Whether the draft model reads the prompt now, before the first step."""

    def begin(self, sequence: Sequence[int], room: int) -> None:
        """A step begins, at most ``room`` levels deep."""

    def rows(self, plan: Plan, draft: DraftSession | None, hang: Hang) -> list[int]:
        """Nodes of the plan that the next draft forward scores, parents before children; none to end drafting.
        ``draft`` is None where the draft model's context has no room."""

    def window(self, plan: Plan, rows: Sequence[int], size: int) -> int | None:
        """The node of ``rows`` below which a lookahead window of ``size`` nodes is carried; None for no window."""

    def read(self, seconds: float) -> None:
        """The draft model read text, for so long."""

    def drafted(self, answer: Answer) -> None:
        """A draft forward was made."""

    def choose(self, plan: Plan, hang: Hang) -> list[int]:
        """The nodes that go to the target."""

    def observe(self, plan: Plan, verdict: Verdict) -> Decision | None:
        """The step is over."""


def one_path(tree: TokenTree, nodes: Sequence[int]) -> list[int]:
    """Of these nodes, likeliest first, those on one path from the root: for a target that takes chains only."""
    end, path = 0, []
    for node in nodes:
        if tree.parents[node] == end:
            path.append(node)
            end = node
    return path


class AsTold:
    """See plan.Chances: a guess's own number is its chance."""

    def chance(self, evidence: int, number: float) -> float:
        return number

    def learn(self, evidence: int, number: float, right: bool) -> None:
        pass


class FixedSizes:
    """See Policy. As published (Ouroboros, sections 3.1 and 3.2): a draft of γ tokens, whose forwards carry phrases and
    the window, is lengthened at its end. Beyond the paper: side branches, and an early end where it is unlikely.

    Args:
        trees: whether the target takes trees. draft_trees: whether the draft model does.
    """

    def __init__(self, options: OuroborosOptions, stop_ids: Set[int], trees: bool, draft_trees: bool) -> None:
        self.chances, self.recycles, self.least = AsTold(), False, 0.0
        self._options, self._stop_ids, self._trees = options, stop_ids, trees
        self._side = options.side_branches if draft_trees else 0
        phrases = options.candidates if options.phrase_drafting and draft_trees else 0
        self._candidates = phrases if trees else 0  # beside the draft's own choices they would be the chain instead
        self._room = 0

    def reads(self, draft: DraftSession, prompt: Sequence[int]) -> bool:
        return True

    def begin(self, sequence: Sequence[int], room: int) -> None:
        self._room = room

    def rows(self, plan: Plan, draft: DraftSession | None, hang: Hang) -> list[int]:
        options, tree, end = self._options, plan.tree, plan.end
        full = tree.depths[end] >= min(options.draft_tokens, self._room) or tree.tokens[end] in self._stop_ids
        if draft is None or (end and (full or plan.chances[end] < options.min_chance)):
            return []
        others = [n for n in range(1, len(plan)) if plan.scored[n] == UNSCORED and n != end]
        side = heapq.nlargest(self._side, others, key=plan.chances.__getitem__)
        before = len(plan)
        hang(end, self._candidates, options.branch_tokens, 0.0)
        return [end, *side, *range(before, len(plan))]

    def window(self, plan: Plan, rows: Sequence[int], size: int) -> int | None:
        return rows[0]

    def read(self, seconds: float) -> None:
        pass

    def drafted(self, answer: Answer) -> None:
        pass

    def choose(self, plan: Plan, hang: Hang) -> list[int]:
        options, tree = self._options, plan.tree
        if plan.scored[0] == UNSCORED:
            return []
        if options.lengthening:
            hang(plan.end, options.branches, options.branch_tokens, 0.0)
        order = sorted(range(1, len(plan)), key=lambda node: (-plan.chances[node], node))
        nodes = [node for node in order[: options.tree_tokens] if tree.depths[node] <= self._room]
        return nodes if self._trees else one_path(tree, nodes)

    def observe(self, plan: Plan, verdict: Verdict) -> Decision | None:
        return None
