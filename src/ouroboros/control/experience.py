"""What a request leaves to the next ones: how often guesses were right, what forwards really take."""

from __future__ import annotations

from dataclasses import dataclass, field

from ouroboros.control.estimates import Calibration, Share

__all__ = ["Experience"]

FIRST, WINDOW = 0.7, 0.03  # the first choice is right; tokens by a forward's window: before anything is known


@dataclass(slots=True)
class Experience:
    """What requests of one kind (greedy, or of one temperature) leave to the next ones.

    Attributes:
        calibration: of chances. first: how often the draft model's first choice is right. window: tokens that a
            lookahead window yields.
        stretch: what forwards of target and draft take over what was measured. overhead: seconds around a draft
            forward. seconds, probing: of decoding, and of that for draft forwards that were not expected to pay.
    """

    calibration: Calibration = field(default_factory=Calibration)
    first: Share = field(default_factory=lambda: Share(FIRST, weight=1.5, memory=96))
    window: Share = field(default_factory=lambda: Share(WINDOW, weight=30, memory=400))
    stretch: list[float] = field(default_factory=lambda: [1.0, 1.0])
    overhead: float = 0.0
    seconds: float = 0.0
    probing: float = 0.0
