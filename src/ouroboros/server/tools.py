"""Calls of functions, read from a model's text as it comes.

Invariant: what is found depends on the text alone, never on the pieces that it comes in: a decision is made when the
text so far settles it, and what may still become a call is held back until then.

Without a marker only an object that begins the text and names one of the request's functions is a call.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass

from ouroboros.server.calls import ObjectReader
from ouroboros.server.tool_formats import FORMATS

__all__ = ["Arguments", "Begin", "CallParser", "Content"]


@dataclass(frozen=True, slots=True)
class Content:
    """Text that is no call."""

    text: str


@dataclass(frozen=True, slots=True)
class Begin:
    """The ``index``-th call begins."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """The arguments of a call go on: joined they are a JSON text."""

    index: int
    text: str


Event = Content | Begin | Arguments
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SPACE = " \t\r\n"


def _call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


class CallParser:
    """
    Args:
        form: one of tool_formats.py. names: of the functions that may be called. new_id: makes the calls' ids.
    """

    def __init__(self, form: str, names: Collection[str], new_id: Callable[[], str] = _call_id) -> None:
        self._form = FORMATS[form]
        self._names = frozenset(names)
        self._new_id = new_id
        self._rest = ""  # text that nothing was decided of
        self._space = ""  # at the end of the content: it is dropped if a call follows
        self._state = self._at_start if self._form.bare else self._in_text
        self._opened = ""  # the marker, and what has come since: content again if no call follows
        self._listed = False  # in a list of calls
        self._reader: ObjectReader | None = None
        self._calls = 0
        self._begun = False  # the call that is read has been told of
        self._over = False
        self._events: list[Event] = []

    def push(self, text: str) -> list[Event]:
        """What is certain now that ``text`` has come."""
        self._rest += text
        return self._go_on()

    def finish(self) -> list[Event]:
        """What was held back, as it stands; to be called once, at the end."""
        self._over = True
        found = self._go_on()
        if self._space and not self._calls:
            found.append(Content(self._space))
        return found

    def _go_on(self) -> list[Event]:
        self._events = []
        while self._state():
            pass
        return _joined(self._events)

    # --- states: each takes what it can from the rest, and says whether there may be more to do ---

    def _at_start(self) -> bool:
        """A call without a marker, or text."""
        begins = len(self._rest) - len(self._rest.lstrip(_SPACE))
        if begins == len(self._rest) and not self._over:
            return False
        head = self._rest[begins : begins + 1]
        marks = [mark for mark in self._form.opening if mark.startswith(self._rest[begins:][: len(mark)])]
        if marks and not self._over and len(self._rest) - begins < max(map(len, marks)):
            return False
        self._state = self._in_text
        if head in ("{", "[") and not marks:
            self._opened, self._rest = self._rest[:begins], self._rest[begins:]
            self._listed = False
            self._state = self._opening
        return True

    def _in_text(self) -> bool:
        found = [(place, mark) for mark in self._form.opening if (place := self._rest.find(mark)) >= 0]
        if found:
            place, mark = min(found)
            self._say(self._rest[:place])
            self._opened, self._rest = mark, self._rest[place + len(mark) :]
            self._listed = False
            self._state = self._opening
            return True
        keep = 0 if self._over else max(_overlap(self._rest, mark) for mark in self._form.opening)
        cut = len(self._rest) - keep
        self._say(self._rest[:cut])
        self._rest = self._rest[cut:]
        return False

    def _opening(self) -> bool:
        """After a marker, or between calls of a list: a list, an object, or a name with an object."""
        self._skip()
        if not self._rest:
            return self._no_call() if self._over else False
        head = self._rest[0]
        if head == "[" and not self._listed:
            self._listed = True
            self._opened += "["
            self._rest = self._rest[1:]
            return True
        if head == "{":
            self._reader, self._begun = ObjectReader(), False
            self._state = self._in_object
            return True
        named = _NAME.match(self._rest)
        if named and "[TOOL_CALLS]" in self._opened and not self._listed:
            after = self._rest[named.end() :].removeprefix("[ARGS]").lstrip(_SPACE)
            if after.startswith("{"):
                self._rest = after
                self._reader, self._begun = ObjectReader(name=named[0]), False
                self._state = self._in_object
                return True
            partial = not after or "[ARGS]".startswith(self._rest[named.end() :])
            if partial and not self._over:
                return False
        return self._no_call()

    def _in_object(self) -> bool:
        reader = self._reader
        assert reader is not None
        used = reader.push(self._rest)
        self._opened += self._rest[:used]
        self._rest = self._rest[used:]
        marked = self._opened.startswith(self._form.opening)
        if not self._begun:
            if reader.name is not None and not (marked or self._calls or reader.name in self._names):
                return self._no_call()
            if reader.name is not None and (reader.arguments or reader.done):
                self._begun = True
                self._space = ""
                self._events.append(Begin(self._calls, self._new_id(), reader.name))
                self._calls += 1
        if self._begun and (piece := reader.take()):
            self._events.append(Arguments(self._calls - 1, piece))
        if reader.failed or (reader.done and not self._begun) or (self._over and not reader.done and not self._begun):
            return self._no_call()
        if reader.done:
            if not reader.arguments:
                self._events.append(Arguments(self._calls - 1, "{}"))
            self._opened = self._opened if self._listed else ""
            self._state = self._after_call
            return True
        return False

    def _after_call(self) -> bool:
        """What closes a call, and what begins the next."""
        text = self._rest.lstrip(_SPACE)
        if not text:
            if self._over:
                self._rest = ""
            return False
        if self._listed and text[0] in ",]":
            self._rest = text[1:]
            self._listed = text[0] == ","
            self._state = self._opening if self._listed else self._after_call
            return True
        for mark in self._form.closing:
            if text.startswith(mark):
                self._rest = text[len(mark) :]
                return True
            if mark.startswith(text) and not self._over:
                return False
        if text[0] == ";" and self._form.bare:
            self._rest, self._opened = text[1:], ""
            self._state = self._opening
            return True
        self._state = self._in_text
        return True

    # --- what they share ---

    def _skip(self) -> None:
        stripped = self._rest.lstrip(_SPACE)
        self._opened += self._rest[: len(self._rest) - len(stripped)]
        self._rest = stripped

    def _no_call(self) -> bool:
        """What looked like a call is text."""
        text, self._opened = self._opened, ""
        self._listed = False
        if self._begun and self._reader is not None and not self._reader.done:
            text = ""  # a call that broke off was told of as far as it came
        self._reader, self._begun = None, False
        self._say(text)
        self._state = self._in_text
        return True

    def _say(self, text: str) -> None:
        if not text:
            return
        text = self._space + text
        kept = text.rstrip(_SPACE)
        self._space = text[len(kept) :]
        if kept:
            self._events.append(Content(kept))


def _overlap(text: str, mark: str) -> int:
    """How many characters at the end of ``text`` are the beginning of ``mark``."""
    for size in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:size]):
            return size
    return 0


def _joined(events: list[Event]) -> list[Event]:
    """Neighbours of one kind as one."""
    found: list[Event] = []
    for event in events:
        last = found[-1] if found else None
        if isinstance(event, Content) and isinstance(last, Content):
            found[-1] = Content(last.text + event.text)
        elif isinstance(event, Arguments) and isinstance(last, Arguments) and last.index == event.index:
            found[-1] = Arguments(event.index, last.text + event.text)
        else:
            found.append(event)
    return found
