"""Text that cannot be otherwise is drafted for nothing: what a grammar forces comes before any other draft.

The inner drafter sees it as if it were committed; its tree hangs below. The target may still split the same text into
other tokens, and is asked as always.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ouroboros.drafting.base import Drafter
from ouroboros.flow import Flow
from ouroboros.stats import Decision
from ouroboros.tree import Origin, TokenTree
from ouroboros.verify import Verdict

__all__ = ["ForcedDrafter"]


class ForcedDrafter:
    """See base.Drafter.

    Args:
        forced: tokens of the only continuation of a text, as far as there is but one.
    """

    def __init__(self, inner: Drafter, forced: Callable[[Sequence[int]], list[int]]) -> None:
        self._inner = inner
        self._forced = forced
        self._count = 0
        self._tree = TokenTree(0)

    def start(self, prompt: Sequence[int]) -> Flow[None]:
        yield from self._inner.start(prompt)

    def propose(self, sequence: Sequence[int], room: int) -> Flow[TokenTree]:
        forced = self._forced(sequence)[:room]
        self._count = len(forced)
        self._tree = yield from self._inner.propose([*sequence, *forced], room - len(forced))
        if not forced:
            return self._tree
        tree = TokenTree(sequence[-1])
        top = tree.extend(0, forced, Origin.FORCED)
        for node in range(1, len(self._tree)):  # node i of the inner tree becomes node i + count
            parent = self._tree.parents[node]
            tree.add(top + parent, self._tree.tokens[node], self._tree.origins[node])
        return tree

    def stop(self, sequence: Sequence[int]) -> None:
        self._inner.stop(sequence)

    def observe(self, verdict: Verdict) -> Decision | None:
        count = self._count
        if len(verdict.path) <= count:
            return None  # the target spelt it otherwise, and never saw what the inner drafter proposed
        return self._inner.observe(
            Verdict(
                tree=self._tree,
                path=tuple(node - count for node in verdict.path[count:]),
                tokens=verdict.tokens[count:],
                origins=verdict.origins[count:],
                predictions=verdict.predictions[count:],
                logits_NV=verdict.logits_NV[count:],
            )
        )
