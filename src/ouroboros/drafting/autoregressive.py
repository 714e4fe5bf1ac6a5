"""Plain decoding: a tree of its root alone, one token per target forward. The measure of every other method."""

from __future__ import annotations

from collections.abc import Sequence

from ouroboros.tree import TokenTree
from ouroboros.verify import Verdict

__all__ = ["AutoregressiveDrafter"]


class AutoregressiveDrafter:
    """See base.Drafter."""

    draft_forwards = 0

    def propose(self, sequence: Sequence[int], room: int) -> TokenTree:
        return TokenTree(sequence[-1])

    def observe(self, verdict: Verdict) -> None:
        pass
