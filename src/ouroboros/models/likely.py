"""The tokens whose logits a draft model computes: the output matrix of a small model over a large vocabulary is up to a
third of its forward, and most of the rows are of tokens that the text at hand never has.

FR-Spec (Zhao et al. 2025) does it with counted frequencies for trained drafts. Here nothing is counted ahead: byte-pair
vocabularies are in the order of their merges, so that the first tokens are the most frequent ones, and what the model
reads (the prompt, and what the target has written) comes to them. A token outside is never drafted, which costs speed
alone. Where too many of the tokens read were outside, as in a language that the first tokens lack, all are computed.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

__all__ = ["FIRST", "OUTSIDE", "TILE", "LikelyTokens"]

TILE = 32  # tokens that the kernels compute together (vectors.h)
# On chat prompts of a vocabulary of 151,936, 32,768 tokens and what was read hold 94 to 98 % of a text's tokens, and
# cost 1 % of the draft's right choices (16,384: 2.5 %).
FIRST = 32_768
MOST_READ = 512  # tiles of tokens that were read, the latest ones
RECENT = 1 / 64  # what a token that is read counts in the share of those outside
MANY = 0.1  # from this share on all tokens are computed
OUTSIDE = -1e4  # the logit of a token that is not computed: finite, so that guidance and masks leave numbers


class LikelyTokens:
    """Which tiles of the output matrix are computed.

    Args:
        vocab_size: the model's. always: token ids that are computed whatever is read (end tokens). first: as many of
            the vocabulary's first tokens are, too.
    """

    def __init__(self, vocab_size: int, always: Iterable[int], first: int = FIRST) -> None:
        self._last = (vocab_size - 1) // TILE
        kept = [*range(min(first // TILE, self._last + 1)), *(token // TILE for token in always)]
        self._always = frozenset(kept)
        self._read: dict[int, None] = {}  # tiles besides, the one read last at the end
        self._outside = 0.0  # the share of tokens outside among those read lately
        self._tiles: array[int] | None = None

    @property
    def share(self) -> float:
        """The part of the output matrix that is computed whatever is read."""
        return len(self._always) / (self._last + 1)

    def read(self, tokens: Iterable[int]) -> None:
        """Notes that the model reads these."""
        for token in tokens:
            tile = token // TILE
            if tile in self._always:
                self._outside -= self._outside * RECENT
                continue
            known = tile in self._read
            self._outside += (1 - known - self._outside) * RECENT
            if known:
                del self._read[tile]
            elif tile <= self._last:
                self._tiles = None
                if len(self._read) == MOST_READ:
                    del self._read[next(iter(self._read))]
            self._read[tile] = None

    def tiles(self) -> array[int] | None:
        """int32: those to compute, in ascending order; None for all."""
        if self._outside > MANY:
            return None
        if self._tiles is None:
            self._tiles = array("i", sorted(self._always.union(self._read)))
        return self._tiles
