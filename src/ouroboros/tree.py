"""TokenTree: the one shape of everything that is drafted.

A draft chain, a lookahead window, candidate phrases and lengthening branches are all tokens with parents. Node 0 is the
root: the last committed token. Invariants: a parent's index is below its child's; two children of a node never bear the
same token (equal prefixes are one node), so that every distinct prefix is drawn for once; nodes are removed at the end
alone. This file knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum

import numpy as np
import numpy.typing as npt

__all__ = ["Origin", "TokenTree"]


class Origin(Enum):
    """Where a token comes from. ``label`` is the public name: ``draft``, ``phrase`` or ``bonus``."""

    BONUS = "bonus"  # the target model's own draw
    DRAFT = "draft"  # the draft model's choice
    VERIFIED = "verified"  # phrases: the target has written this text
    CORRECTED = "corrected"  # phrases: the target's predictions on rejected tokens
    PROMPT = "prompt"  # phrases: the prompt's own text
    WINDOW = "window"  # phrases: a lookahead window's guess
    RECYCLED = "recycled"  # what the target last gave behind the same token
    PREDICTED = "predicted"  # the text that the request's user expects; a phrase to the outside
    FORCED = "forced"  # a grammar allows nothing else; a phrase to the outside

    __hash__ = object.__hash__  # Enum's own is Python code, and pools look origins up hundreds of times a step

    @property
    def label(self) -> str:
        return self.value if self in (Origin.BONUS, Origin.DRAFT) else "phrase"


class TokenTree:
    """Tokens with parents, growing by ``add``, shrinking by ``truncate``.

    Attributes (lists of equal length, one entry a node; read them, change them through ``add``):
        tokens: token ids. parents: node indices, -1 for the root. depths: 0 for the root.
        origins: who proposed the token first.
    """

    __slots__ = ("_ancestors", "_children", "depths", "origins", "parents", "tokens")

    def __init__(self, root: int) -> None:
        self.tokens = [root]
        self.parents = [-1]
        self.depths = [0]
        self.origins = [Origin.BONUS]
        self._children: list[dict[int, int]] = [{}]
        self._ancestors = [1]  # bit j of entry i: node j is node i or above it

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, parent: int, token: int, origin: Origin) -> int:
        """The child of ``parent`` that bears ``token``: the node that exists, or a new one. Returns its index."""
        children = self._children[parent]
        node = children.get(token)
        if node is None:
            node = len(self.tokens)
            children[token] = node
            self.tokens.append(token)
            self.parents.append(parent)
            self.depths.append(self.depths[parent] + 1)
            self.origins.append(origin)
            self._children.append({})
            self._ancestors.append(self._ancestors[parent] | 1 << node)
        return node

    def truncate(self, length: int) -> None:
        """Removes the nodes from index ``length`` ≥ 1 on."""
        for node in range(length, len(self.tokens)):
            if self.parents[node] < length:
                del self._children[self.parents[node]][self.tokens[node]]
        for column in (self.tokens, self.parents, self.depths, self.origins, self._children, self._ancestors):
            del column[length:]

    def extend(self, parent: int, tokens: Iterable[int], origin: Origin) -> int:
        """Adds a chain below ``parent``. Returns its last node (``parent`` for an empty chain)."""
        for token in tokens:
            parent = self.add(parent, token, origin)
        return parent

    def child(self, node: int, token: int) -> int | None:
        return self._children[node].get(token)

    def children(self, node: int) -> Iterable[int]:
        return self._children[node].values()

    def path(self, node: int) -> list[int]:
        """Node indices from the root to ``node``, both included."""
        path = [node]
        while (node := self.parents[node]) >= 0:
            path.append(node)
        path.reverse()
        return path

    def path_tokens(self, node: int) -> list[int]:
        """Tokens from below the root down to ``node``."""
        return [self.tokens[i] for i in self.path(node)[1:]]

    def walk(self, tokens: Sequence[int]) -> list[int]:
        """The longest path from the root (included) whose tokens below the root begin ``tokens``."""
        path = [0]
        for token in tokens:
            child = self._children[path[-1]].get(token)
            if child is None:
                break
            path.append(child)
        return path

    def select(self, nodes: Iterable[int]) -> TokenTree:
        """A new tree of these nodes and the root, in their order. Each node's parent must be among them."""
        tree = TokenTree(self.tokens[0])
        new = {0: 0}
        for node in sorted(nodes):
            if node:
                new[node] = tree.add(new[self.parents[node]], self.tokens[node], self.origins[node])
        return tree

    def chain(self) -> TokenTree:
        """A new tree of one path: from the root down, at each node the child that was added first."""
        path = [0]
        while children := self._children[path[-1]]:
            path.append(next(iter(children.values())))
        return self.select(path)

    def ancestor_mask(self, start: int = 0) -> npt.NDArray[np.bool_]:
        """bool [nodes - start, nodes]: entry (i, j) is true where node j is node start+i or above it."""
        n = len(self.tokens)
        width = (n + 7) // 8
        raw = b"".join(bits.to_bytes(width, "little") for bits in self._ancestors[start:])
        bits = np.frombuffer(raw, dtype=np.uint8).reshape(n - start, width)
        return np.unpackbits(bits, axis=1, count=n, bitorder="little").astype(np.bool_)
