"""The controller: what a step spends on drafting, and which tokens the target checks.

Decoding is a fractional programme: most tokens for the time. With R, the tokens per second that are reached now, more
of anything is taken if and only if the tokens that it is expected to add are more than R times what it costs: one more
row of the target's forward, one more draft forward, more rows in it, the lookahead window. Costs are measured T(n) of
both models (cost.py), corrected by what forwards really take. Where nothing pays decoding is plain, and the draft model
is asked again now and then, for at most ``PROBE_SHARE`` of the time. It changes speed and never tokens; with the same
times it decides the same. It knows nothing of trees.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ouroboros.control.cost import Costs
from ouroboros.control.estimates import Calibration, Share
from ouroboros.control.experience import Experience
from ouroboros.control.memory import MemorySpeed, memory_speed
from ouroboros.control.tables import ROWS, Tables, at
from ouroboros.stats import Decision

__all__ = ["Control", "Controller"]

PROBE_SHARE = 0.01  # of decoding time, for asking a draft model that does not pay
OPENING = 0.9  # what further draft forwards add behind one, over what it adds, where the draft model is always right
START = 2.0  # the running rate over plain decoding's, before anything is known
FADE = 0.9  # of a step's weight in the running rate, with each further step: it is the rate of this part of the text
DRAFTED = 6.0  # expected draft tokens that trust in expectations counts for, before anything is known
MEMORY = 60.0  # expected draft tokens, after which older ones fade
TRUSTED = (0.5, 1.2)  # the least and most of what was expected that is believed
CHAIN = 8  # drafts at most, where the gain of drafting is estimated
SHORT = 8  # tokens to catch up with that are part of a forward's price; more of them are an investment


@dataclass(slots=True)
class Control:
    """What controllers of one pair of models are made of, request after request.

    Attributes:
        costs: of both models. experience: what was learned, by temperature. clock: what they watch, in seconds.
            By the real clock T(n) follows the memory's speed, if that was measured along with it (memory.py).
    """

    costs: Costs
    experience: defaultdict[float, Experience] = field(default_factory=lambda: defaultdict(Experience))
    clock: Callable[[], float] = time.perf_counter

    def controller(
        self, temperature: float, context: int, room: int, report: Callable[[Decision], object]
    ) -> Controller:
        """For one request; see Controller."""
        memory = memory_speed() if self.clock is time.perf_counter and self.costs.target.memory else None
        return Controller(self.costs, self.experience[temperature], context, room, self.clock, report, memory)


class Controller:
    """Decides for one request; ``begin``, ``draft_size`` …, ``proposed``, ``settle`` once a step. Not thread-safe.

    Args:
        costs: of both models. experience: of earlier requests; this one adds to it. context: tokens of the prompt.
        room: new tokens at most. clock: in seconds. report: is told each decision. memory: how fast it is now.
    """

    def __init__(
        self,
        costs: Costs,
        experience: Experience,
        context: int,
        room: int,
        clock: Callable[[], float] = time.perf_counter,
        report: Callable[[Decision], object] = lambda decision: None,
        memory: MemorySpeed | None = None,
    ) -> None:
        self._costs = Tables(costs, memory)
        self._costs.follow(context)
        self._experience = experience
        self._clock = clock
        self._report = report
        self.calibration = Calibration(experience.calibration)
        self._first = Share(experience.first.value, weight=1.5, memory=48)
        self._stretch = experience.stretch
        self._seconds = 4 * self._costs.target[1]
        self._tokens = 4 * START
        self._draft_rows: list[int] = []
        self._draft_seconds = 0.0
        self._began = self._drafted = 0.0
        self._probe = False
        self._expected = self._gain = self._price = 0.0
        self._room = room
        self._others, self._beside = 0, 0.0  # of other requests: rows in the target's forwards, tokens per second
        self._came = self._promised = DRAFTED  # draft tokens that were accepted, and that were expected to be
        self._written = self._taken = 0.0  # tokens of this request, and their seconds, fading

    def drafts_at_once(self, missing: int) -> bool:
        """Whether drafting should pay for reading ``missing`` tokens of the prompt, as far as earlier requests tell."""
        return self._pays(1, self._first.value, 0.0) and self._is_investment(missing, self._room)

    def now(self) -> float:
        """What the controller's clock says."""
        return self._clock()

    def beside(self, rows: int, rate: float) -> None:
        """The target's forwards have ``rows`` rows of other requests too, which yield ``rate`` tokens per second: what
        takes time takes it from all of them, and rows cost what they cost behind those."""
        self._others, self._beside = rows, rate

    @property
    def own_rate(self) -> float:
        """Tokens per second of this request: the running rate, and never less than plain decoding's."""
        return max(self._tokens / self._seconds, 1 / self._plain)

    @property
    def rate(self) -> float:
        """R, tokens per second of all requests in the target's forwards."""
        return self.own_rate + self._beside

    @property
    def first_rate(self) -> float:
        """How often the draft model's first choice is right."""
        return self._first.value

    @property
    def _trust(self) -> float:
        """What the chances of this text are to be multiplied by: what came of those that were promised."""
        least, most = TRUSTED
        return min(most, max(least, self._came / self._promised))

    def row_price(self, rows: int) -> float:
        """Tokens that one more row of the target's forward must promise where it has ``rows`` rows."""
        span, rows, table = 4, rows + self._others, self._costs.target  # T(n) has steps
        return self.rate * self._stretch[0] * (at(table, rows + span) - at(table, rows)) / span

    def _draft_price(self, rows: int) -> float:
        return self.rate * (self._stretch[1] * at(self._costs.draft, rows) + self._experience.overhead)

    @property
    def _opening(self) -> float:
        """What a draft forward adds, and those behind it that it makes possible, over what it adds now."""
        return 1 + OPENING * self._first.value**2

    def _pays(self, rows: int, gain: float, price: float) -> bool:
        return gain * self._opening > self._draft_price(rows) + price

    def _is_investment(self, catch_up: int, room: int) -> bool:
        """Whether reading ``catch_up`` tokens can pay within ``room`` new ones, as drafting makes them cheaper than
        they are without."""
        if catch_up <= SHORT:
            return True
        each = (4 * self._plain + self._taken) / (4 + self._written)
        price = self._stretch[1] * (at(self._costs.draft, catch_up) - self._costs.draft[1])
        return room * (each - self._drafting()) > price * self.rate / self.own_rate

    @property
    def _plain(self) -> float:
        """Seconds of a token without any drafts."""
        return self._stretch[0] * at(self._costs.target, 1 + self._others)

    def _drafting(self) -> float:
        """Seconds of a token with a chain of drafts of the best length, if first choices go on as they did."""
        draft = self._stretch[1] * self._costs.draft[1] + self._experience.overhead
        best, tokens, chance = self._plain, 1.0, 1.0
        for length in range(1, CHAIN):
            chance *= self._first.value
            tokens += chance
            checking = self._stretch[0] * at(self._costs.target, 1 + length + self._others)
            best = min(best, (checking + length * draft) / tokens)
        return best

    def begin(self, context: int) -> None:
        """A step begins; ``context``: tokens in the cache."""
        self._costs.follow(context)
        self._began = self._clock()
        self._draft_rows = []
        self._draft_seconds = 0.0
        self._probe = False
        self._gain = self._price = 0.0

    def draft_size(self, gains: Sequence[float], catch_up: int, room: int) -> int:
        """How many of these nodes, best first, the next draft forward should score; 0 to draft no further.

        Args:
            gains: tokens that scoring each node should add. catch_up: committed tokens that the draft model has not
                read. room: new tokens that may still come; a long catch-up has to pay within them.
        """
        if not gains:
            return 0
        late = min(catch_up, SHORT)
        rate, table = self.rate, self._costs.draft
        each, fixed = rate * self._stretch[1], rate * self._experience.overhead
        opening = self._opening
        best, size, total = -1e9, 0, 0.0
        for count, gain in enumerate(gains[: ROWS - SHORT], start=1):
            if gain > 0:
                total += gain * opening
                price = each * table[count + late] + fixed
                if total - price > best:
                    best, size = total - price, count
                    self._gain, self._price = total, price
        if best > 0 and self._is_investment(catch_up, room):
            return size
        if not self._draft_rows and self._may_probe(catch_up):
            self._probe = True
            return 1
        return 0

    def _may_probe(self, catch_up: int) -> bool:
        known = self._experience
        cost = self._stretch[1] * at(self._costs.draft, catch_up + 1) + known.overhead
        return known.probing + cost <= PROBE_SHARE * known.seconds

    def window_pays(self, rows: int, window: int) -> bool:
        """Whether a draft forward over ``rows`` rows should carry ``window`` more for a lookahead window."""
        return self._experience.window.value > self._draft_price(rows + window) - self._draft_price(rows)

    def drafted(self, rows: int, seconds: float) -> None:
        """A draft forward over ``rows`` rows was made, and took ``seconds``."""
        self._draft_rows.append(rows)
        self._draft_seconds += seconds

    def best_size(self, chances: Sequence[float]) -> int:
        """How many of these nodes, likeliest first, the target should check beside the root."""
        price, table, trust = self.rate * self._stretch[0], self._costs.target, self._trust
        root = 1 + self._others
        best, size, total = 0.0, 0, 0.0
        for count, chance in enumerate(chances[: max(ROWS - root, 0)], start=1):
            total += chance * trust
            value = total - price * (table[root + count] - table[root])
            if value > best:
                best, size = value, count
        return size

    def proposed(self, expected: float) -> None:
        """Drafting is over; by its chances the step should yield ``expected`` tokens."""
        self._drafted = self._clock()
        self._expected = 1 + (expected - 1) * self._trust
        self._promised += expected - 1

    def learn_first(self, right: float) -> None:
        """Whether the draft model's first choice was what the target wrote; less than 1 for a further choice."""
        self._first.learn(right)
        self._experience.first.learn(right)

    def learn_window(self, tokens: int, forwards: int) -> None:
        """Tokens of this step that lookahead windows have found, and the draft forwards that carried one."""
        self._experience.window.learn(tokens, forwards)

    def settle(self, rows: int, tokens: int) -> None:
        """The step is over: the target's forward had ``rows`` rows and yielded ``tokens`` tokens."""
        now, known = self._clock(), self._experience
        rate, forwards = self.rate, len(self._draft_rows)
        self._came += tokens - 1
        if self._promised > MEMORY:
            self._came, self._promised = self._came / 2, self._promised / 2
        checking = at(self._costs.target, rows + self._others)
        drafting = sum(at(self._costs.draft, n) for n in self._draft_rows)
        taken = (now - self._drafted) / checking
        self._stretch[0] = _towards(self._stretch[0], taken, 2 * self._stretch[0])
        if forwards:
            around = (self._drafted - self._began - self._draft_seconds) / forwards
            taken = self._draft_seconds / drafting
            self._stretch[1] = _towards(self._stretch[1], taken, 2 * self._stretch[1])
            known.overhead = _towards(known.overhead, around, 4 * drafting / forwards)
        self._tokens = FADE * self._tokens + tokens
        seconds = self._stretch[0] * checking + self._stretch[1] * drafting + forwards * known.overhead
        self._seconds = FADE * self._seconds + seconds
        self._written, self._taken = FADE * self._written + tokens, FADE * self._taken + seconds
        known.seconds += now - self._began
        if self._probe:
            known.probing += self._drafted - self._began
        drafts = tuple(self._draft_rows)
        self._report(Decision(rate, drafts, rows, self._expected, tokens, self._gain, self._price, self._probe))


def _towards(value: float, observed: float, most: float) -> float:
    """Some of the way to what was observed, of which ``most`` counts at most: less upwards, since a disturbance makes a
    forward slower, never faster."""
    return value + (0.3 if observed < value else 0.1) * (min(observed, most) - value)
