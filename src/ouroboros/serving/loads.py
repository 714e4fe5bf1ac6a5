"""What the requests of a scheduler are told of each other, so that each drafts what pays for all (control/load.py)."""

from __future__ import annotations

from collections.abc import Sequence

from ouroboros.serving.job import Job

__all__ = ["Loads"]

JOINING = 0.1  # of the way to how many joined the last draft forward of this place
PLACES = 8  # draft forwards of a round, the first, the second and so on, that are told apart


class Loads:
    """Fewer join each further draft forward of a round (from one of the target's to the next), and so what a request
    expects of the others is kept by its place in the round.

    Attributes:
        coming: requests that this round lets in behind the one at hand.
    """

    def __init__(self) -> None:
        self.coming = 0
        self._reading = 0  # rows of prompts in the target's last forward
        self._place = 0  # of the next draft forward
        self._joining: list[float | None] = [None] * PLACES  # others in a draft forward, lately; None: never seen

    def tell(self, job: Job, running: Sequence[Job]) -> None:
        """What ``job`` shares its next forwards with, among those that run."""
        others = [other for other in running if other is not job]
        load = job.load
        load.requests = len(others) + self.coming
        # Readers, and who comes, will soon have one.
        load.rows = self._reading + sum(max(1, other.rows) for other in others) + self.coming
        load.rate = sum(other.rate for other in others)
        load.draft_rows = sum(other.draft_rows for other in others)
        joining = self._joining[self._place]
        load.joining = min(len(others), len(others) if joining is None else joining)

    def drafted(self, requests: int) -> None:
        """So many requests are in a draft forward."""
        self._learn(requests - 1)
        self._place = min(self._place + 1, PLACES - 1)

    def scored(self, requests: int, reading: int) -> None:
        """The target scored so many requests, beside so many rows of prompts. Where nobody drafted, each may have
        waited for the others: more and more are expected again, until it is tried."""
        if self._place == 0:
            self._learn(requests - 1)
        self._place, self._reading = 0, reading

    def _learn(self, others: int) -> None:
        before = self._joining[self._place]
        before = others if before is None else before
        self._joining[self._place] = before + JOINING * (others - before)
