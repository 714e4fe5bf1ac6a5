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
        key = id(model)
        if not read:
            self._scoring[key] = seconds
            return 0.0
        token = self._token.get(key, 0.0)
        if key not in self._scoring:  # where prompts come one after the other there is no forward without any
            self._scoring[key] = max(seconds / 2, seconds - read * token)
        scoring = self._scoring[key]
        reading = max(0.0, seconds - scoring)
        if read >= LEAST:  # what seems free is read twice as much of the next time, until it costs something
            free = scoring / (2 * read)
            self._token[key] = max(reading / read, min(token, free) if token else free)
        return reading

    def read(self, model: CausalModel, seconds: float, tokens: int) -> None:
        """A forward took so long for so many tokens; few say little."""
        if tokens >= LEAST and seconds > 0:
            self._token[id(model)] = seconds / tokens
