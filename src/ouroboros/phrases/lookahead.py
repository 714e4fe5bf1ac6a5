"""The lookahead window: Jacobi guesses that yield one n-gram a column and forward (Fu et al. 2024, section 3).

W columns × N-1 levels. Level 0 behind the last token is a chain; the token in level l ≥ 1, column i hangs below level
l-1, column i. As a tree: a comb. Each forward predicts one token below each column's last level: (level 0, …, level
N-2, prediction) is an n-gram, and the levels move up by one. The window holds guesses alone: what it does changes
speed and never tokens.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from ouroboros.phrases.pool import MAX_KEY, PhrasePool
from ouroboros.tree import Origin, TokenTree

__all__ = ["LookaheadWindow"]


class LookaheadWindow:
    """The window of one request.

    Args:
        columns: W ≥ 1. ngram: N ≥ 2. text: the prompt, from which the first guesses are taken at random.
    """

    def __init__(self, columns: int, ngram: int, text: Sequence[int]) -> None:
        self._columns = columns
        self._ngram = ngram
        self._guess = random.Random(0)
        self._text = text
        # Level 0 is longer at first: it loses its first token with each level that is filled below it.
        self._levels = [self._guess.choices(text, k=columns + ngram - 2)]
        self._bottom: list[int] = []

    @property
    def depth(self) -> int:
        """How many positions the window reaches beyond the last token."""
        return len(self._levels[0]) + len(self._levels) - 1

    @property
    def size(self) -> int:
        """How many nodes ``hang`` adds, at most."""
        return sum(map(len, self._levels))

    def hang(self, tree: TokenTree, node: int) -> list[int]:
        """Adds the comb below ``node`` (the last token). Returns the nodes whose predictions ``update`` needs."""
        self._bottom = []
        chain = node
        for column, token in enumerate(self._levels[0]):
            chain = tree.add(chain, token, Origin.WINDOW)
            below = chain
            for level in self._levels[1:]:
                if column < len(level):
                    below = tree.add(below, level[column], Origin.WINDOW)
            self._bottom.append(below)
        return self._bottom

    def update(self, predictions: Sequence[int], pool: PhrasePool, advance: int = 1) -> None:
        """Takes the predictions behind the nodes that ``hang`` returned, in their order; n-grams go to the pool.

        ``advance``: tokens by which the text has grown since ``hang``; the window moves with it.
        """
        full = len(self._levels) == self._ngram - 1
        if full:
            chain = self._levels[0]
            for i, token in enumerate(predictions):
                context = chain[max(0, i + 1 - MAX_KEY) : i + 1]
                pool.insert(context, [level[i] for level in self._levels[1:]] + [token], Origin.WINDOW)
            self._levels = [*self._levels[1:], list(predictions)]
        else:
            first = self._levels[0][1:]
            self._levels = [first, *self._levels[1:], list(predictions[: self._columns])]
        for _ in range(advance - 1):
            self._levels = [[*level[1:], self._guess.choice(self._text)] for level in self._levels]
