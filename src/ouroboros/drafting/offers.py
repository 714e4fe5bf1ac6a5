"""What a request takes from the phrase pool and gives back: look-ups, what became of them, and new phrases.

Phrases that a look-up offered behind some text are told how they did, once the target has written what follows that
text; the text's n-grams and the target's predictions on rejected tokens go into the pool (phrases/harvest.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ouroboros.phrases.harvest import TextHarvest, corrections
from ouroboros.phrases.pool import MAX_KEY, Found, PhrasePool
from ouroboros.tree import Origin
from ouroboros.verify import Verdict

__all__ = ["Offers"]


@dataclass(frozen=True, slots=True)
class _Offer:
    """Phrases that hang below a node: its context (committed text and path), its path, what was found."""

    context: list[int]
    path: list[int]
    found: Found


class Offers:
    """Of one request. ``harvest``: also learn from the target's predictions on rejected tokens. ``most``: tokens of the
    text that are learned at once; see harvest.py."""

    def __init__(self, pool: PhrasePool, prompt: Sequence[int], harvest: bool, most: int | None = None) -> None:
        self._pool = pool
        self._text = TextHarvest(pool, len(prompt), most)
        self._corrections = harvest
        self._sequence: Sequence[int] = prompt
        self._offers: list[_Offer] = []

    def begin(self, sequence: Sequence[int]) -> None:
        """A step begins behind ``sequence``, all committed tokens."""
        self._sequence, self._offers = sequence, []
        self._text.learn(sequence)

    def look_up(self, path: list[int], branches: int, length: int) -> Found:
        """Up to ``branches`` phrases of up to ``length`` tokens behind the committed text and ``path``."""
        context = [*self._sequence[-MAX_KEY:], *path][-MAX_KEY:]
        found = self._pool.lookup(context, branches, length)
        if found.phrases:
            self._offers.append(_Offer(context, path, found))
        return found

    def settle(self, verdict: Verdict) -> None:
        """The step is over."""
        self.credit(verdict.tokens)
        self._text.learn([*self._sequence, *verdict.tokens])
        if self._corrections:
            for context, phrase in corrections(verdict.tree, verdict.path, verdict.predictions):
                self._pool.insert([*self._sequence[1 - MAX_KEY :], *context][-MAX_KEY:], phrase, Origin.CORRECTED)

    def credit(self, tokens: Sequence[int]) -> None:
        """``tokens`` followed the sequence: what was offered is told how it did."""
        for offer in self._offers:
            depth = len(offer.path)
            if len(tokens) > depth and list(tokens[:depth]) == offer.path:
                self._pool.credit(offer.context, offer.found, tokens[depth:])
