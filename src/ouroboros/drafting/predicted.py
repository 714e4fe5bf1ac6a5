"""A text that the request's user expects (an edited file, say) is drafted first, wherever the output has come in it.

The place is where the output's last tokens occur in the expected text, the longest match first, then the nearest after
the last place; the longer the match, the longer the draft, as in SuffixDecoding, as far as the rows of the target's
forward are worth their time. Where there is none, or where what was tried was refused, the inner drafter goes on as if
there were no expected text. It never decides a token.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from ouroboros.control.cost import Costs
from ouroboros.control.load import Load
from ouroboros.drafting.base import Drafter
from ouroboros.flow import Flow
from ouroboros.stats import Decision
from ouroboros.tree import Origin, TokenTree
from ouroboros.verify import Verdict

__all__ = ["PredictedDrafter"]

LEAST, MOST = 2, 32  # tokens of a match: that are looked for, and that count
FACTOR = 4  # tokens that are drafted for each matched one
LONGEST = 64  # tokens of a draft
NEAR = 64  # places on either side of the last one that are looked at
FIRST = 16  # that are drafted before anything is written
BEGINNING = 16  # tokens that the expectation itself counts for, before anything is written
MEMORY = 64.0  # tried tokens, after which older ones fade


class PredictedDrafter:
    """See base.Drafter.

    Args:
        prediction: tokens. prompt_length: tokens before the output. load: what others have in the forwards.
            costs: T(n) of the target; None: rows cost nothing.
    """

    def __init__(
        self,
        inner: Drafter,
        prediction: Sequence[int],
        prompt_length: int,
        load: Load | None = None,
        costs: Costs | None = None,
    ) -> None:
        self._inner = inner
        self._text = list(prediction)
        self._prompt_length = prompt_length
        self._load = load or Load()
        self._costs = costs
        self._places: dict[tuple[int, ...], list[int]] = {}  # last tokens → places after them
        for end in range(LEAST, len(self._text)):
            self._places.setdefault(tuple(self._text[end - LEAST : end]), []).append(end)
        self._last = 0  # where the text was found last
        self._wanted = LEAST  # tokens of a match that are asked for now
        self._tried = 0  # tokens of this step's draft
        self._came = self._seen = 0.0  # of drafted tokens that were checked: those that were right, and all

    def start(self, prompt: Sequence[int]) -> Flow[None]:
        yield from self._inner.start(prompt)

    def propose(self, sequence: Sequence[int], room: int) -> Flow[TokenTree]:
        place, match = self._find(sequence[max(self._prompt_length, len(sequence) - MOST) :], len(sequence))
        size = min(FIRST if match == 0 else FACTOR * match, LONGEST - self._load.rows, room)
        self._tried = 0 if place is None else self._worth(size, match or BEGINNING, len(sequence))
        if place is None or not self._tried:
            tree: TokenTree = yield from self._inner.propose(sequence, room)
            return tree
        self._last = place
        tree = TokenTree(sequence[-1])
        tree.extend(0, self._text[place : place + self._tried], Origin.PREDICTED)
        return tree

    def _worth(self, most: int, match: int, context: int) -> int:
        """How many tokens make the most of a forward's time, for all requests in it. Tokens that match are as good as
        drafted ones that came, and whether the next does is as open as if half of one more had (Jeffreys 1946)."""
        most = max(0, most)
        if self._costs is None:
            return most
        others, right = self._load.rows, (self._came + match + 0.5) / (self._seen + match + 1)
        plain = self._costs.seconds(1 + others, context)
        theirs = self._load.rate * plain
        best, size, tokens, chance = (1 + theirs) / plain, 0, 1.0, 1.0
        for count in range(1, most + 1):
            chance *= right
            tokens += chance
            value = (tokens + theirs) / self._costs.seconds(1 + count + others, context)
            if value > best:
                best, size = value, count
        return size

    def _find(self, written: Sequence[int], length: int) -> tuple[int | None, int]:
        """The place after the output's last tokens, and how many of them match there."""
        if length == self._prompt_length:
            return (0, 0) if self._text else (None, 0)
        if length - self._prompt_length < LEAST:
            begins = len(written) < len(self._text) and list(written) == self._text[: len(written)]
            return (len(written), LEAST) if begins else (None, 0)
        places = self._places.get(tuple(written[-LEAST:]), [])
        near = bisect.bisect_left(places, self._last)
        found = [(self._match(written, end), end) for end in places[max(0, near - NEAR) : near + NEAR]]
        found = [(match, end) for match, end in found if match >= self._wanted]
        if not found:
            return None, 0
        match, place = max(found, key=lambda one: (one[0], one[1] >= self._last, -abs(one[1] - self._last)))
        return place, match

    def _match(self, written: Sequence[int], end: int) -> int:
        size = 0
        while size < min(len(written), end) and written[-1 - size] == self._text[end - 1 - size]:
            size += 1
        return size

    def stop(self, sequence: Sequence[int]) -> None:
        self._inner.stop(sequence)

    def observe(self, verdict: Verdict) -> Decision | None:
        if not self._tried:
            return self._inner.observe(verdict)
        taken = len(verdict.path) - 1
        self._came += taken
        self._seen += min(self._tried, taken + 1)
        if self._seen > MEMORY:
            self._came, self._seen = self._came / 2, self._seen / 2
        self._wanted = LEAST if taken else min(2 * self._wanted, MOST)
        return None
