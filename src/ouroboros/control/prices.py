"""What more drafting is worth now: tokens that it should add against the tokens that its time would yield elsewhere.

Decoding is a fractional programme: most tokens for the time (Dinkelbach 1967). With R, the tokens per second that the
coming steps yield otherwise, more of anything is taken if and only if the tokens that it is expected to add are more
than R times its seconds. R looks ahead: it is what the text at hand allows, by the phrases that are known now or by a
chain of drafts, and no more than what was reached lately; so a streak of copied text does not price what comes after
it. What the draft model has not read is read when that pays against the steps that come without it, for as many tokens
as texts still have, and is paid from time that drafting has saved. It knows nothing of trees.
"""

from __future__ import annotations

from collections.abc import Sequence

from ouroboros.control.cost import Costs
from ouroboros.control.estimates import RunningMean
from ouroboros.control.experience import Experience
from ouroboros.control.load import Load

__all__ = ["Prices"]

PROBE_SHARE = 0.01  # of decoding time, for asking a draft model that does not pay
OPENING = 0.9  # what further draft forwards add after one, over what it adds, where the draft model is always right
FADE = 0.9  # of a step's weight in what was reached lately, with each further step
HANDLING = 1e-4  # seconds that a row of the target costs around its forward: look-ups, draws, what is learned
DRAFTED = 6.0  # expected draft tokens that trust in expectations counts for, before anything is known
MEMORY = 60.0  # expected draft tokens, after which older ones fade
TRUSTED = (0.5, 1.2)  # the least and most of what was expected that is believed
CHAIN = 8  # drafts at most, where the gain of drafting is estimated
SHORT = 2  # tokens to catch up with that are part of a forward's price; more of them are an investment
ADVANCE = 8.0  # tokens of plain decoding whose time may go into reading before drafting has saved any
ROWS = 256  # of a forward, at most


class Prices:
    """Of one request.

    Args:
        target, draft: T(n) of both models. experience: of earlier requests; this one adds to it. context: tokens of the
            prompt. room: new tokens at most. load: what the request shares its forwards with; None: nothing.

    Attributes:
        rate: R, tokens per second of all requests in the target's forwards. own_rate: of this request's part in it.
        written: new tokens of the request.
    """

    def __init__(
        self,
        target: Costs,
        draft: Costs,
        experience: Experience,
        context: int,
        room: int,
        load: Load | None = None,
    ) -> None:
        self._target, self._draft = target, draft
        self.experience = experience
        self._first = RunningMean(experience.first.value, weight=1.5, memory=48)
        self._room = room
        self._load = Load() if load is None else load
        self._tokens = self._seconds = 0.0  # of the last steps, fading
        self.written = 0
        self._taken = 0.0  # seconds of the whole request
        self._without = 0.0  # seconds of a token of anyone's lately, where nothing was drafted by the model
        self._came = self._promised = DRAFTED  # draft tokens that were accepted, and that were expected to be
        self.own_rate = self.rate = 0.0
        self.begin(context)

    def begin(self, context: int) -> None:
        """A step begins; ``context``: tokens in the cache. What takes time takes it from all requests that share the
        forwards, and rows cost what they cost behind those that the others have there."""
        load = self._load
        self._context, self._others = context, load.rows
        self._table: list[float] = []  # of the target's forwards, by rows
        self._plain = self._checking(1)
        # Tokens of the others in a step: what they yield, and one each at the least, as without any drafts.
        together = self._target.seconds(1 + load.requests, context)
        self._others_rate = max(load.rate, load.requests / together)
        self._others_tokens = self._others_rate * self._plain
        self._hand = 1.0, self._plain  # tokens and seconds of a step by the plan at hand, without the draft model
        self._chain = self._drafting()
        self._price_at_hand()

    def consider(self, chances: Sequence[float]) -> None:
        """``chances``, best first, are those of what is known without asking the draft model."""
        tokens, best = 1.0, (1.0, self._plain)
        for rows, chance in enumerate(chances[:ROWS], start=2):
            tokens += chance * self.trust
            best = max(best, (tokens, self._checking(rows)), key=self._worth)
        self._hand = best
        self._price_at_hand()

    def _worth(self, step: tuple[float, float]) -> float:
        """Tokens per second of all requests, with steps of so many tokens of this one and so many seconds."""
        tokens, seconds = step
        return (tokens + self._others_tokens) / seconds

    def _price_at_hand(self) -> None:
        self.rate = max(self._worth(self._hand), self._worth(self._chain))
        if self._seconds:
            lately = self._tokens / self._seconds + self._others_rate
            self.rate = min(self.rate, max(lately, self._worth((1.0, self._plain))))
        self.own_rate = self.rate / (1 + self._others_tokens)

    @property
    def first_rate(self) -> float:
        """How often the draft model's first choice is right."""
        return self._first.value

    @property
    def trust(self) -> float:
        """What the chances of this text are to be multiplied by: what came of those that were promised."""
        least, most = TRUSTED
        return min(most, max(least, self._came / self._promised))

    def _checking(self, rows: int) -> float:
        """Seconds of a target forward over ``rows`` rows of this request, and of what is done for them around it."""
        table, others = self._table, self._others
        while len(table) <= rows:
            n = len(table)
            table.append(self._target.seconds(n + others, self._context) + n * HANDLING)
        return table[rows]

    def _asking(self, rows: int) -> float:
        """Seconds of a draft forward with so many rows of this request, and around it."""
        return self._draft.seconds(rows + self._load.draft_rows, self._context) + self.experience.overhead

    def _share(self, rows: int) -> float:
        """Of them, what these rows are answerable for: what they add to a forward that others have asked for, or a
        part like that of each who is expected to join."""
        load = self._load
        if load.draft_rows:
            return self._asking(rows) - self._draft.seconds(load.draft_rows, self._context)
        return self._asking(rows) / (1 + load.joining)

    def row_price(self, rows: int) -> float:
        """Tokens that one more row of the target's forward must promise where it has ``rows`` rows."""
        return self.rate * (self._checking(rows + 1) - self._checking(rows))

    def best_size(self, chances: Sequence[float]) -> int:
        """How many of these nodes, likeliest first, the target should check beside the root."""
        best, size, total, trust, root = 0.0, 0, 0.0, self.trust, self._checking(1)
        for count, chance in enumerate(chances[: max(ROWS - 1 - self._others, 0)], start=1):
            total += chance * trust
            value = total - self.rate * (self._checking(1 + count) - root)
            if value > best:
                best, size = value, count
        return size

    def _drafting(self) -> tuple[float, float]:
        """Tokens and seconds of a step with a chain of drafts of the best length, if first choices go on as they
        did."""
        best, tokens, chance, drafting = (1.0, self._plain), 1.0, 1.0, 0.0
        for length in range(1, CHAIN):
            chance *= self._first.value
            tokens += chance
            drafting += self._share(1)
            best = max(best, (tokens, self._checking(1 + length) + drafting), key=self._worth)
        return best

    @property
    def _opening(self) -> float:
        """What a draft forward adds, and those after it that it makes possible, over what it adds now: the less, the
        more others would wait for them."""
        return 1 + OPENING * self._first.value**2 * self.own_rate / self.rate

    def draft_size(self, gains: Sequence[float], catch_up: int) -> tuple[int, float, float]:
        """How many of these nodes, best first, the next draft forward should score; 0 to draft no further. Then what
        was best: the tokens that it should add, and those that its time is worth.

        Args:
            gains: tokens that scoring each node should add. catch_up: tokens that come with it, ``SHORT`` at most.
        """
        best, size, found, opening = 0.0, 0, (0.0, 0.0), self._opening
        total = 0.0
        for count, gain in enumerate(gains[:ROWS], start=1):
            if gain <= 0:
                break
            total += gain * opening
            price = self.rate * self._share(count + catch_up)
            if total - price > best or (not size and count == 1):
                found = total, price
            if total - price > best:
                best, size = total - price, count
        return size, *found

    def may_probe(self, catch_up: int) -> bool:
        """Whether the draft model may be asked although that is not expected to pay."""
        known = self.experience
        return known.probing + self._asking(catch_up + 1) <= PROBE_SHARE * known.seconds

    def window_pays(self, rows: int, window: int) -> bool:
        """Whether a draft forward over ``rows`` rows should carry ``window`` more for a lookahead window."""
        return self.experience.window.value > self.rate * (self._asking(rows + window) - self._asking(rows))

    def reading(self, tokens: int) -> float:
        """Seconds that the draft model takes to read so many tokens, beyond a forward of its own."""
        return self._draft.seconds(tokens + 1, self._context) - self._draft.seconds(1, self._context)

    @property
    def budget(self) -> float:
        """Seconds that may go into reading: what was saved over plain decoding, and an advance."""
        return ADVANCE * self._plain + self.written * self._plain - self._taken

    def reading_pays(self, tokens: int) -> bool:
        """Whether the draft model should read ``tokens`` tokens: drafts then make what is still to come cheaper."""
        if tokens <= SHORT:
            return True
        price = self.reading(tokens)
        now, (drafted, seconds) = 1 / self._worth(self._hand), self._chain
        without = (now + (self._without or now)) / 2  # seconds of a token, of this request or of others
        steps = min(self._room - self.written, self.experience.remaining) / drafted
        gain = steps * ((drafted + self._others_tokens) * without - seconds)
        return gain > price and price <= self.budget

    def promised(self, tokens: float) -> float:
        """By its chances the step should add ``tokens`` draft tokens. Returns how many are expected."""
        self._promised += tokens
        return tokens * self.trust

    def learn_first(self, right: float) -> None:
        """Whether the draft model's first choice was what the target wrote; less than 1 for a further choice."""
        self._first.learn(right)
        self.experience.first.learn(right)

    def learn_overhead(self, seconds: float) -> None:
        """A draft forward had so many seconds around it; a disturbance counts for little."""
        known = self.experience
        most = 4 * self._draft.seconds(1, self._context)
        known.overhead += 0.3 * (min(seconds, most) - known.overhead)

    def observe(self, rows: int, tokens: int, drafting: float, probing: bool, ended: bool) -> None:
        """The step is over: ``rows`` rows of the target, ``tokens`` new tokens, and ``drafting`` seconds before."""
        known, seconds = self.experience, self._checking(rows) + drafting
        self._came += tokens - 1
        if self._promised > MEMORY:
            self._came, self._promised = self._came / 2, self._promised / 2
        self._tokens, self._seconds = FADE * self._tokens + tokens, FADE * self._seconds + seconds
        self.written, self._taken = self.written + tokens, self._taken + seconds
        if not drafting:
            each = seconds / (tokens + self._others_tokens)
            self._without = (self._without + each) / 2 if self._without else each
        known.seconds += seconds / (1 + self._load.requests)  # the others have added their part
        known.tokens, known.ends = known.tokens + tokens, known.ends + ended
        if probing:
            known.probing += drafting
