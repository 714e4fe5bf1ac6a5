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

__all__ = ["Speculation", "SuffixIndex", "Text"]

SHIFT = 32  # bits of an index within a text
MASK = (1 << SHIFT) - 1
PLACES = 128  # occurrences of a token that are looked at, the latest ones
END = -1  # between texts in a file


@dataclass(frozen=True, slots=True)
class Speculation:
    """Continuations as a tree, and how many of its tokens are expected to be right. ``match``: tokens of context."""

    tree: TokenTree
    score: float
    match: int


class Text:
    """One text as it is written; made by ``SuffixIndex.start``. ``stop`` it when it is over."""

    def __init__(self, index: SuffixIndex, number: int) -> None:
        self._index, self._number = index, number

    def add(self, tokens: Sequence[int]) -> None:
        """The text goes on."""
        self._index.write(self._number, tokens)

    def stop(self) -> None:
        """Nothing comes any more: the text may be forgotten."""
        self._index.finish(self._number)


class SuffixIndex:
    """See the header. Any number of texts may be written at once. A place is a text's number and an index in it, as one
    whole number.

    Args:
        max_tokens: bound of the tokens that are kept of texts that are over. below: an index that is asked too, and
            never written to.
    """

    def __init__(self, max_tokens: int = 1_000_000, below: SuffixIndex | None = None) -> None:
        self.max_tokens = max_tokens
        self.below = below
        self._texts: dict[int, list[int]] = {}  # by number, oldest first
        self._open: set[int] = set()
        self._next = 0
        self._count = 0
        self._places: dict[int, list[int]] = {}  # token → its places, in the order in which they were written

    def __len__(self) -> int:
        return self._count

    @property
    def tokens(self) -> list[int]:
        """All texts, the oldest first, ``END`` after each. Given to ``restore``, they are back."""
        return [token for text in self._texts.values() if text for token in (*text, END)]

    def restore(self, tokens: Sequence[int]) -> None:
        """Adds texts with ``END`` between them."""
        text = self.start()
        for token in tokens:
            if token == END:
                text.stop()
                text = self.start()
            else:
                text.add([token])
        text.stop()

    def start(self) -> Text:
        """A new text begins."""
        number, self._next = self._next, self._next + 1
        self._texts[number] = []
        self._open.add(number)
        return Text(self, number)

    def write(self, number: int, tokens: Sequence[int]) -> None:
        """Of one text; see Text."""
        text = self._texts[number]
        for place, token in enumerate(tokens, (number << SHIFT) + len(text)):
            self._places.setdefault(token, []).append(place)
        text += tokens
        self._count += len(tokens)

    def finish(self, number: int) -> None:
        """Of one text; see Text."""
        self._open.discard(number)
        if not self._texts.get(number, True):
            del self._texts[number]
        if self._count > self.max_tokens:
            self._forget()

    def _forget(self) -> None:
        """Half of all at once, since all places are looked through: this is seldom. The newest text stays."""
        for number in [n for n in self._texts if n not in self._open][:-1]:
            if self._count <= self.max_tokens // 2:
                break
            self._count -= len(self._texts.pop(number))
        kept = {token: [p for p in places if p >> SHIFT in self._texts] for token, places in self._places.items()}
        self._places = {token: places for token, places in kept.items() if places}

    def speculate(
        self, context: Sequence[int], depth: int, factor: int, most: int, min_chance: float, room: int, origin: Origin
    ) -> Speculation | None:
        """The best tree behind ``context`` (not empty; its end may be the current text's own), or None.

        Args:
            depth: longest match that counts. factor: nodes for each matched token. most: nodes at most, room: levels.
            min_chance: nodes less likely than this are left out. origin: of the nodes.
        """
        lengths = {}
        for place in self._places.get(context[-1], ())[-PLACES:]:
            # Of a text that is being written the end may be the context's own.
            if self._after(place) is not None or place >> SHIFT not in self._open:
                lengths[place] = self._match(context, place, depth)
        best: Speculation | None = None
        for match in sorted(set(lengths.values()), reverse=True):
            nodes = min(most, factor * match)
            places = [place for place, length in lengths.items() if length >= match]
            tree, score = self._grow(context[-1], places, nodes, min_chance, room, origin)
            if len(tree) > 1 and (best is None or score > best.score):
                best = Speculation(tree, score, match)
        if self.below is not None:
            shared = self.below.speculate(context, depth, factor, most, min_chance, room, origin)
            best = max((one for one in (best, shared) if one), key=lambda one: one.score, default=None)
        return best

    def _match(self, context: Sequence[int], place: int, depth: int) -> int:
        """How many tokens up to ``place`` are the context's last ones."""
        length, text, index = 1, self._texts[place >> SHIFT], place & MASK
        limit = min(depth, len(context), index + 1)
        while length < limit and text[index - length] == context[-1 - length]:
            length += 1
        return length

    def _after(self, place: int) -> int | None:
        """The token behind a place, if there is one."""
        text, index = self._texts[place >> SHIFT], (place & MASK) + 1
        return text[index] if index < len(text) else None

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
                token = self._after(place)
                if token is not None:
                    groups.setdefault(token, []).append(place + 1)
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
