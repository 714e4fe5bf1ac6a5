"""What a request shares its forwards with. Whoever drives the requests writes it, prices read it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Load"]


@dataclass(slots=True)
class Load:
    """Beside one request; a request alone has nothing beside it.

    Attributes:
        requests: others in the target's forwards. rows: that they have in the next one, as far as is known.
        rate: tokens per second that they yield. draft_rows: that they have asked for in the draft model's next forward.
        joining: how many others are expected in a draft forward that nobody has asked for yet.
    """

    requests: int = 0
    rows: int = 0
    rate: float = 0.0
    draft_rows: int = 0
    joining: float = 0.0
