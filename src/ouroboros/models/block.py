"""Block: one sequence's rows in a forward."""

from __future__ import annotations

from collections.abc import Sequence

from ouroboros.models.kv_cache import KVCache
from ouroboros.tree import TokenTree

__all__ = ["Block"]


class Block:
    """``catch_up`` tokens to be committed, then the tree's nodes not yet pending."""

    def __init__(self, cache: KVCache, catch_up: Sequence[int], tree: TokenTree | None) -> None:
        assert not catch_up or cache.pending == 0, "catch-up tokens cannot follow pending nodes"
        assert tree is None or len(tree) > cache.pending, "a forward needs new nodes"
        self.cache, self.catch_up, self.tree, self.pending = cache, catch_up, tree, cache.pending
        self.tokens = list(catch_up)
        if tree is not None:
            self.tokens += tree.tokens[cache.pending :]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def root(self) -> int:
        """The position of the tree's root."""
        return self.cache.length + len(self.catch_up)

    def positions(self) -> list[int]:
        new = [] if self.tree is None else self.tree.depths[self.pending :]
        return [*range(self.cache.length, self.root), *(self.root + depth for depth in new)]

    def advance(self) -> None:
        """Counts the rows, once every layer has written them."""
        self.cache.advance(len(self.catch_up), len(self) - len(self.catch_up))
