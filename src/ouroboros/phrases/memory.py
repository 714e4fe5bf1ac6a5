"""Memory: all that requests leave to later ones about text. What each method keeps in it is its own affair."""

from __future__ import annotations

from dataclasses import dataclass, field

from ouroboros.phrases.pool import PhrasePool
from ouroboros.phrases.predictions import Predictions
from ouroboros.phrases.suffixes import SuffixIndex

__all__ = ["Memory", "Successors"]

Successors = dict[int, tuple[int, ...]]  # token → its likeliest successors, best first


@dataclass(slots=True)
class Memory:
    """Not thread-safe; requests that take turns may share it.

    Attributes:
        phrases: the phrase pool (Ouroboros, lookahead). predictions: the target model's, after tokens (Ouroboros).
        outputs: earlier requests' (SuffixDecoding). successors: of tokens (Token Recycling).
    """

    phrases: PhrasePool = field(default_factory=PhrasePool)
    predictions: Predictions = field(default_factory=Predictions)
    outputs: SuffixIndex = field(default_factory=SuffixIndex)
    successors: Successors = field(default_factory=dict)
