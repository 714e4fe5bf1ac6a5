"""One request while it is served: its flow, the need that it waits with, and who is told of its events."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

from ouroboros.control.load import Load
from ouroboros.decoding.loop import Event, Step
from ouroboros.decoding.request import Request
from ouroboros.flow import Flow, Need, Prefill, Score
from ouroboros.models.base import CausalModel
from ouroboros.serving.caches import Caches, bytes_of

__all__ = ["Job", "Sink"]

FADE = 0.9  # of a step's weight in the tokens per second of a request, with each further step


class Sink(Protocol):
    """Who a request writes for. It is called on the scheduler's thread."""

    def take(self, event: Event) -> bool:
        """An event. Returns whether the request goes on."""

    def end(self, error: Exception | None, cancelled: bool) -> None:
        """The request is over. Called once, and nothing after it."""


@dataclass(slots=True, eq=False)
class Job:
    """
    Attributes:
        request: as it came. target, draft: its models. place: in the queue; the least is next.
        caches, flow, need: while it runs. read: tokens of a prefill that are in the cache, reading: seconds that they
            took. around: seconds of its own before the need. since: when its last event was.
        written: its new tokens. begun: whether its prompt was read once. load: what it shares its forwards with.
        rows: that it has in the target's next forward, or had in the last one; 0 while it reads its prompt.
        draft_rows: that it has in the draft model's next one. tokens, seconds: of its last steps, fading.
    """

    request: Request
    target: CausalModel
    draft: CausalModel | None
    sink: Sink
    place: tuple[float, int]
    cancelled: bool = False
    caches: Caches | None = None
    flow: Flow[None] | None = None
    need: Need | None = None
    read: int = 0
    reading: float = 0.0
    around: float = 0.0
    since: float = 0.0
    written: list[int] = field(default_factory=list)
    begun: bool = False
    load: Load = field(default_factory=Load)
    rows: int = 0
    draft_rows: int = 0
    tokens: float = 0.0
    seconds: float = 0.0

    @property
    def text(self) -> list[int]:
        """All its tokens so far."""
        return [*self.request.prompt, *self.written]

    @property
    def rate(self) -> float:
        """Tokens per second, lately."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def asks_draft(self) -> bool:
        return isinstance(self.need, Score) and self.need.model is not self.target

    @property
    def asks_target(self) -> bool:
        return isinstance(self.need, Score) and self.need.model is self.target

    @property
    def reads(self) -> bool:
        return isinstance(self.need, Prefill)

    def unread(self, most: int) -> Prefill:
        """The next part of what it reads, at most so many tokens."""
        need = self.need
        assert isinstance(need, Prefill)
        return Prefill(need.model, need.slot, need.tokens[self.read : self.read + most])

    def growth(self, most: int) -> int:
        """Bytes that the rows it asks for may take in the next forward, which reads ``most`` tokens at most."""
        if self.need is None:
            return 0
        return bytes_of(self.need.model, min(self.need.rows - self.read, most if self.reads else self.need.rows))

    def measure(self) -> None:
        """A forward has left rows in its caches."""
        if self.caches is not None:
            self.caches.measure()

    def wait_with(self, need: Need, around: float) -> None:
        """It needs this now, and took so long to find out."""
        self.need, self.around = need, around
        if self.asks_target:
            self.rows = need.rows
        elif self.asks_draft:
            self.draft_rows = need.rows

    def tell(self, event: Event, now: float) -> bool:
        """Hands its sink an event, with the seconds since the last one. Returns whether the request goes on."""
        event = replace(event, seconds=now - self.since)
        if isinstance(event, Step):
            self.learn(event)
        elif self.begun:
            return True  # its prompt was read before it was put back
        self.begun, self.since = True, now
        return self.sink.take(event)

    def close(self) -> Exception | None:
        """Ends its flow, which tells its drafter. Returns what that raised."""
        try:
            if self.flow is not None:
                self.flow.close()
        except Exception as error:
            return error
        return None

    def learn(self, step: Step) -> None:
        """A step of so many seconds, the others' work in the meantime among them."""
        self.written += step.tokens
        self.tokens = FADE * self.tokens + len(step.tokens)
        self.seconds = FADE * self.seconds + step.seconds
