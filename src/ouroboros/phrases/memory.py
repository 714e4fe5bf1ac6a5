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

    @classmethod
    def over(cls, shared: Memory | None, max_keys: int, max_predictions: int, max_outputs: int) -> Memory:
        """An empty one above another, which is read and never written to: what requests leave stays in the upper one.

        Args:
            shared: None for nothing below. max_keys, max_predictions, max_outputs: bounds of what is its own (keys of
                phrases, keys of predictions, tokens of outputs).
        """
        if shared is None:
            return cls(PhrasePool(max_keys), Predictions(max_predictions), SuffixIndex(max_outputs))
        pool = shared.phrases
        return cls(
            PhrasePool(max_keys, pool.phrases_per_key, pool.max_tokens, below=pool),
            Predictions(max_predictions, below=shared.predictions),
            SuffixIndex(max_outputs, below=shared.outputs),
            dict(shared.successors),
        )

    def put_over(self, shared: Memory) -> None:
        """Lies above this one from now on; what lay below is the new one's business. Its own is as it was."""
        self.phrases.below, self.predictions.below = shared.phrases, shared.predictions
        self.outputs.below = shared.outputs
        for token, row in shared.successors.items():
            self.successors.setdefault(token, row)

    def take_in(self, other: Memory) -> None:
        """Learns all that another one knows."""
        self.phrases.absorb(other.phrases)
        for before, last, row in other.predictions.items():
            self.predictions.restore(before, last, row.ids, row.logs)
        self.outputs.restore(other.outputs.tokens)
        self.successors.update(other.successors)
