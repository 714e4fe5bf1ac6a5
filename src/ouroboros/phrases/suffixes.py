"""SuffixIndex: texts, and for the end of a new text how known texts went on, as a tree of counted continuations.

It answers what a suffix tree over the texts would (SuffixDecoding, Oliaro et al. 2024, section 3), from lists of
positions: a node of that tree is the set of places where its text occurs, and a child's share of them its chance. Texts
are bounded in tokens, oldest forgotten first; of a frequent token only the latest places are looked at.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from ouroboros.tree import Origin, TokenTree

__all__ = ["Speculation", "SuffixIndex"]

PLACES = 128  # occurrences of a token that are looked at, the latest ones
END = -1  # behind every text: nothing matches it


@dataclass(frozen=True, slots=True)
class Speculation:
    """Continuations as a tree, and how many of its tokens are expected to be right. ``match``: tokens of context."""

    tree: TokenTree
    score: float
    match: int


class SuffixIndex:
    """See the header.

    Args:
        max_tokens: bound of the tokens that are kept.
    """

    def __init__(self, max_tokens: int = 1_000_000) -> None:
        self.max_tokens = max_tokens
        self._tokens: list[int] = []
        self._places: dict[int, list[int]] = {}  # token → its indices, ascending

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def tokens(self) -> Sequence[int]:
        """All texts, the oldest first, ``END`` behind each but perhaps the last. Given to ``extend``, they are back."""
        return self._tokens

    def extend(self, tokens: Sequence[int]) -> None:
        """Goes on with the current text."""
        for place, token in enumerate(tokens, len(self._tokens)):
            self._places.setdefault(token, []).append(place)
        self._tokens += tokens
        if len(self._tokens) > self.max_tokens:
            self._forget()

    def close(self) -> None:
        """Ends the current text; the next one is another."""
        if self._tokens and self._tokens[-1] != END:
            self._tokens.append(END)

    def _forget(self) -> None:
        kept = self._tokens[len(self._tokens) - self.max_tokens // 2 :]  # half at once: this is seldom
        self._tokens, self._places = [], {}
        self.extend(kept)

    def speculate(
        self, context: Sequence[int], depth: int, factor: int, most: int, min_chance: float, room: int, origin: Origin
    ) -> Speculation | None:
        """The best tree behind ``context`` (not empty; its end may be the current text's own), or None.

        Args:
            depth: longest match that counts. factor: nodes for each matched token. most: nodes at most, room: levels.
            min_chance: nodes less likely than this are left out. origin: of the nodes.
        """
        own = len(self._tokens)
        lengths = {}
        for place in self._places.get(context[-1], ())[-PLACES:]:
            if place + 1 < own:  # else it is the context's own end, and nothing is behind it
                lengths[place] = self._match(context, place, depth)
        best: Speculation | None = None
        for match in sorted(set(lengths.values()), reverse=True):
            nodes = min(most, factor * match)
            places = [place for place, length in lengths.items() if length >= match]
            tree, score = self._grow(context[-1], places, nodes, min_chance, room, origin)
            if len(tree) > 1 and (best is None or score > best.score):
                best = Speculation(tree, score, match)
        return best

    def _match(self, context: Sequence[int], place: int, depth: int) -> int:
        """How many tokens up to ``place`` are the context's last ones."""
        length = 1
        limit = min(depth, len(context), place + 1)
        while length < limit and self._tokens[place - length] == context[-1 - length]:
            length += 1
        return length

    def _grow(
        self, root: int, places: list[int], nodes: int, min_chance: float, room: int, origin: Origin
    ) -> tuple[TokenTree, float]:
        """The likeliest ``nodes`` below the root, a child's chance being its share of its parent's occurrences."""
        tree = TokenTree(root)
        score = 0.0
        heap: list[tuple[float, int, int, int, list[int]]] = []  # (-chance, order, parent, token, places)
        order = 0

        def offer(node: int, chance: float, behind: list[int]) -> None:
            nonlocal order
            groups: dict[int, list[int]] = {}
            for place in behind:
                if place + 1 < len(self._tokens) and self._tokens[place + 1] != END:
                    groups.setdefault(self._tokens[place + 1], []).append(place + 1)
            for token, found in groups.items():
                share = chance * len(found) / len(behind)
                if share >= min_chance:
                    heapq.heappush(heap, (-share, order, node, token, found))
                    order += 1

        if room > 0:
            offer(0, 1.0, places)
        while heap and len(tree) <= nodes:
            minus, _, parent, token, found = heapq.heappop(heap)
            node = tree.add(parent, token, origin)
            score -= minus
            if tree.depths[node] < room:
                offer(node, -minus, found)
        return tree, score
