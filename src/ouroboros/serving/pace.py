"""How much of prompts is read beside requests that wait for their next token: as much as doubles a forward's time.

It learns what a forward takes in which nothing is read, and what a token of a prompt adds. It knows no requests.
"""

from __future__ import annotations

from ouroboros.models.base import CausalModel

__all__ = ["LEAST", "MOST", "Pace"]

MOST, LEAST = 512, 16  # tokens of prompts that are read in one forward, at most, and where others wait at least


class Pace:
    """Of all models of a scheduler."""

    def __init__(self) -> None:
        self._scoring: dict[int, float] = {}  # seconds of the last forward in which nothing was read
        self._token: dict[int, float] = {}  # seconds that a token of a prompt took lately

    def budget(self, model: CausalModel, seconds: float | None = None) -> int:
        """Tokens that may be read in ``seconds``; None: in as many as a forward takes without."""
        token = self._token.get(id(model), 0.0)
        seconds = self._scoring.get(id(model), 0.0) if seconds is None else seconds
        return min(MOST, max(LEAST, int(seconds / token) if token > 0 else LEAST))

    def scored(self, model: CausalModel, seconds: float, read: int) -> float:
        """A forward scored trees and read so many tokens. Returns the seconds that reading took."""
        if not read:
            self._scoring[id(model)] = seconds
            return 0.0
        reading = max(0.0, seconds - self._scoring.get(id(model), seconds))
        self.read(model, reading, read)
        return reading

    def read(self, model: CausalModel, seconds: float, tokens: int) -> None:
        """A forward took so long for so many tokens; few say little."""
        if tokens >= LEAST and seconds > 0:
            self._token[id(model)] = seconds / tokens
