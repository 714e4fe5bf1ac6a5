"""Context: one sequence's cache in a model together with its tokens, so that what is computed is not computed again.

Invariant: the slot's committed rows hold a prefix of the sequence that the context last followed. A sequence that
begins as the last one did (the next turn of a chat, another sample of a prompt, tokens that were guessed wrongly)
costs the rows from where they differ.
"""

from __future__ import annotations

from collections.abc import Sequence

from ouroboros.models.base import CausalModel, Slot

__all__ = ["Context"]


class Context:
    """A slot of ``model`` that knows what it holds.

    Args:
        slot: of the model; None for a new one. tokens: what its rows hold.

    Attributes:
        start: where in its text the sequence begins that it follows; whoever drives it says so.
    """

    def __init__(
        self, model: CausalModel, slot: Slot | None = None, start: int = 0, tokens: Sequence[int] = ()
    ) -> None:
        self.model = model
        self.slot = model.open() if slot is None else slot
        self.start = start
        self._tokens = tokens

    def shared(self, sequence: Sequence[int]) -> int:
        """How many leading tokens ``sequence`` shares with the one that was last followed."""
        ours = self._tokens
        if ours is sequence:  # it has grown since, and what was there stayed
            return len(ours)
        size = min(len(ours), len(sequence))
        if ours[:size] == sequence[:size]:
            return size
        return next((i for i in range(size) if ours[i] != sequence[i]), size)

    def commit(self, path: Sequence[int], sequence: Sequence[int]) -> None:
        """Commits pending nodes; ``sequence`` begins with what the slot then holds, and is followed from here on."""
        self.slot.commit(path)
        self._tokens = sequence

    def follow(self, sequence: Sequence[int]) -> Sequence[int]:
        """Drops the rows that disagree with ``sequence`` without its last token, and all pending ones.

        Args:
            sequence: may grow later; it is kept, not copied.

        Returns:
            The tokens before the last one that the slot lacks.
        """
        self.slot.rewind(min(self.shared(sequence), len(sequence) - 1, self.slot.length))
        self._tokens = sequence
        return sequence[self.slot.length : -1]

    def fork(self, sequence: Sequence[int]) -> Context:
        """A new context with a copy of the rows that ``sequence`` shares with this one, which stays as it is."""
        rows = min(self.shared(sequence), self.slot.length)
        return Context(self.model, self.slot.fork(rows), self.start, list(self._tokens[:rows]))

    def prefill(self, sequence: Sequence[int]) -> int:
        """``follow``, and computes what is missing. Returns how many tokens were there already."""
        missing = self.follow(sequence)
        kept = self.slot.length
        self.model.prefill(self.slot, missing)
        return kept
