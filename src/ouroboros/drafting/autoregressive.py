"""Plain decoding: a tree of its root alone, one token per target forward. The measure of every other method."""

from __future__ import annotations

from collections.abc import Sequence

from ouroboros.flow import Flow
from ouroboros.tree import TokenTree
from ouroboros.verify import Verdict

__all__ = ["AutoregressiveDrafter"]


class AutoregressiveDrafter:
    """See base.Drafter."""

    def start(self, prompt: Sequence[int]) -> Flow[None]:
        yield from ()

    def propose(self, sequence: Sequence[int], room: int) -> Flow[TokenTree]:
        yield from ()
        return TokenTree(sequence[-1])

    def stop(self, sequence: Sequence[int]) -> None:
        pass

    def observe(self, verdict: Verdict) -> None:
        return None
