"""What requests leave to the next ones: how often guesses were right, how long texts are, what forwards take."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from ouroboros.control.cost import Costs
from ouroboros.control.estimates import SAID, Calibration, RunningMean
from ouroboros.control.machine import forget_speeds, prior_of, work_of
from ouroboros.control.profile import CostProfile, PairProfile, describe, load_profile, profile_path
from ouroboros.models.base import CausalModel, ModelInfo

__all__ = ["Control", "Experience"]

FIRST, WINDOW = 0.7, 0.03  # the first choice is right; tokens by a forward's window: before anything is known
LENGTH = 96.0  # tokens that a text still has, before any has ended
CHECKED = 64  # forwards after which what was kept of the machine is held against them
WRONG = 2.0  # times: then it is measured anew


@dataclass(slots=True)
class Experience:
    """What requests of one kind (greedy, or of one temperature) leave to the next ones.

    Attributes:
        calibration: of chances. first: how often the draft model's first choice is right. window: tokens that a
            lookahead window yields. overhead: seconds around a draft forward. tokens, ends: new tokens that were
            written, and texts that ended by themselves. seconds, probing: of decoding, and of that for draft forwards
            that were not expected to pay.
    """

    calibration: Calibration = field(default_factory=lambda: Calibration(said=SAID))
    first: RunningMean = field(default_factory=lambda: RunningMean(FIRST, weight=1.5, memory=96))
    window: RunningMean = field(default_factory=lambda: RunningMean(WINDOW, weight=30, memory=400))
    overhead: float = 0.0
    tokens: float = 0.0
    ends: float = 0.0
    seconds: float = 0.0
    probing: float = 0.0

    @property
    def remaining(self) -> float:
        """Tokens that a text is expected to have yet, wherever it is: as if each were the last with one chance."""
        return (LENGTH + self.tokens) / (1 + self.ends)


class Control:
    """What a decoder has learned of its models' costs and of its texts, request after request.

    Args:
        profiles: T(n) to begin with, of models that were measured; others begin with what was saved for them, or with
            what this machine can do.

    Attributes:
        experience: by temperature.
    """

    def __init__(self, profiles: PairProfile | None = None) -> None:
        self.experience: defaultdict[float, Experience] = defaultdict(Experience)
        self._profiles = {} if profiles is None else {p.model: p for p in (profiles.target, profiles.draft)}
        self._costs: dict[tuple[type, ModelInfo], Costs] = {}

    def costs(self, model: CausalModel) -> Costs:
        """T(n) of this model. What it begins with may be measured now, in about a second, if it never was."""
        key = type(model), model.info
        if key not in self._costs:
            self._costs[key] = begun(model.info, self._profiles)
        return self._costs[key]

    def observe(self, model: CausalModel, rows: int, context: int, seconds: float) -> None:
        """A forward was made; see decoding/run.py. Told once of each, however many requests were in it."""
        costs = self._costs.get((type(model), model.info))
        if costs is not None:
            costs.observe(rows, context, seconds)
            if costs.seen == CHECKED and costs.doubt > WRONG:
                forget_speeds(model.info)


def begun(info: ModelInfo, profiles: dict[str, CostProfile]) -> Costs:
    found = profiles.get(describe(info)) or load_profile(profile_path(info))
    if found is None:
        return Costs(work_of(info), prior_of(info))
    return Costs.fitted(work_of(info), found.points())
