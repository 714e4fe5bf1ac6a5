"""Plain decoding: a tree of its root alone, one token per target forward. The measure of every other method."""

from __future__ import annotations

from collections.abc import Sequence

from ouroboros.drafting.base import Modelless
from ouroboros.flow import Flow
from ouroboros.tree import TokenTree

__all__ = ["AutoregressiveDrafter"]


class AutoregressiveDrafter(Modelless):
    """See base.Drafter."""

    def propose(self, sequence: Sequence[int], room: int) -> Flow[TokenTree]:
        yield from ()
        return TokenTree(sequence[-1])
