"""Lookahead decoding (Fu et al. 2024): the target model alone, with its own Jacobi window and a pool of n-grams.

One forward carries the pool's phrases behind the last token and the window; the walk may follow either.
"""

from __future__ import annotations

from collections.abc import Sequence

from ouroboros.config import LookaheadOptions
from ouroboros.drafting.base import Modelless
from ouroboros.flow import Flow
from ouroboros.phrases.harvest import TextHarvest
from ouroboros.phrases.lookahead import LookaheadWindow
from ouroboros.phrases.pool import MAX_KEY, Found, PhrasePool
from ouroboros.tree import TokenTree
from ouroboros.verify import Verdict

__all__ = ["LookaheadDrafter"]


class LookaheadDrafter(Modelless):
    """See base.Drafter."""

    def __init__(self, options: LookaheadOptions, pool: PhrasePool, prompt: Sequence[int], max_positions: int) -> None:
        window, ngram, branches = options.PUBLISHED
        self._ngram = options.ngram or ngram
        self._branches = branches if options.branches is None else options.branches
        self._max_positions = max_positions
        self._pool = pool
        self._window = LookaheadWindow(options.window or window, self._ngram, prompt)
        self._harvest = TextHarvest(pool, len(prompt)) if options.prompt_ngrams else None
        self._bottom: list[int] = []
        self._sequence: Sequence[int] = prompt
        self._found: Found | None = None

    def propose(self, sequence: Sequence[int], room: int) -> Flow[TokenTree]:
        yield from ()
        if self._harvest is not None:
            self._harvest.learn(sequence)
        self._sequence = sequence
        self._found = self._pool.lookup(sequence[-MAX_KEY:], self._branches, min(self._ngram - 1, room))
        tree = self._found.tree
        self._bottom = self._window.hang(tree, 0) if self._fits(sequence) else []
        return tree

    def _fits(self, sequence: Sequence[int]) -> bool:
        return len(sequence) + self._window.depth <= self._max_positions

    def observe(self, verdict: Verdict) -> None:
        assert self._found is not None
        self._pool.credit(self._sequence, self._found, verdict.tokens)
        if self._harvest is not None:
            self._harvest.learn([*self._sequence, *verdict.tokens])
        if self._bottom:
            guesses = [verdict.predictions[node] for node in self._bottom]
            self._window.update(guesses, self._pool, advance=len(verdict.tokens))
