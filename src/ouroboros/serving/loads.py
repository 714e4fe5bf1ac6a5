"""What the requests of a scheduler are told of each other, so that each drafts what pays for all (control/load.py)."""

from __future__ import annotations

from collections.abc import Sequence

from ouroboros.serving.job import Job

__all__ = ["Loads"]

JOINING = 0.1  # of the way to how many joined the last draft forward


class Loads:
    """
    Attributes:
        reading: rows of prompts in the target's last forward. coming: requests that this round lets in behind the one
            at hand.
    """

    def __init__(self) -> None:
        self.reading = self.coming = 0
        self._joining: float | None = None  # others in a draft forward, lately

    def tell(self, job: Job, running: Sequence[Job]) -> None:
        """What ``job`` shares its next forwards with, among those that run."""
        others = [other for other in running if other is not job]
        load = job.load
        load.requests = len(others) + self.coming
        # Readers, and who comes, will soon have one.
        load.rows = self.reading + sum(max(1, other.rows) for other in others) + self.coming
        load.rate = sum(other.rate for other in others)
        load.draft_rows = sum(other.draft_rows for other in others)
        load.joining = min(len(others), len(others) if self._joining is None else self._joining)

    def drafted(self, requests: int) -> None:
        """So many requests were in a draft forward."""
        before = requests - 1 if self._joining is None else self._joining
        self._joining = before + JOINING * (requests - 1 - before)
