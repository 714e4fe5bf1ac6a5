"""Drafting for a target that takes chains only: of each proposed tree its first path is kept.

Drafters add what they rank likeliest first, so the first path is the best guess at the whole block.
"""

from __future__ import annotations

from collections.abc import Sequence

from ouroboros.drafting.base import Drafter
from ouroboros.tree import TokenTree
from ouroboros.verify import Verdict

__all__ = ["ChainDrafter"]


class ChainDrafter:
    """See base.Drafter. The inner drafter learns what the target said of the chain, as a tree of its own."""

    def __init__(self, inner: Drafter) -> None:
        self._inner = inner

    @property
    def draft_forwards(self) -> int:
        return self._inner.draft_forwards

    def propose(self, sequence: Sequence[int], room: int) -> TokenTree:
        return self._inner.propose(sequence, room).chain()

    def observe(self, verdict: Verdict) -> None:
        self._inner.observe(verdict)
