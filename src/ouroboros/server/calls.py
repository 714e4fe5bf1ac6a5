"""One call's JSON object, character by character: its name, and its arguments as they are written.

It follows strings and brackets and does not check what is inside the arguments: they are the model's own.
"""

from __future__ import annotations

import json

__all__ = ["ObjectReader"]

_SPACE = " \t\r\n"
_VALUES = ("arguments", "parameters")


class ObjectReader:
    """
    Args:
        name: where it comes before the object, which is the arguments then.

    Attributes:
        name: None until it is known. arguments: whether there have been any. done: the object has ended.
            failed: it is no JSON object that can be a call.
    """

    def __init__(self, name: str | None = None) -> None:
        self.name = name
        self.arguments = name is not None
        self.done = self.failed = False
        self._whole = name is not None
        self._depth = 0
        self._string = self._escape = False
        self._token = ""  # the string or the value that is read, at the top level
        self._key: str | None = None  # whose value comes
        self._expects = "key"  # key, colon, value, comma: at the top level
        self._value = False  # inside a value
        self._pieces: list[str] = []

    def push(self, text: str) -> int:
        """Reads on. Returns how many characters belong to the object."""
        for place, letter in enumerate(text):
            if self.done or self.failed:
                return place
            self._take(letter)
        return len(text)

    def take(self) -> str:
        """The arguments since the last call."""
        text = "".join(self._pieces)
        self._pieces.clear()
        return text

    def _take(self, letter: str) -> None:
        if self._depth == 0:
            self._depth, self.failed = 1, letter != "{"
            if self._whole:
                self._pieces.append(letter)
        elif self._whole:
            self._pieces.append(letter)
            self._nest(letter)
            self.done = self._depth == 0
        elif self._value:
            self._in_value(letter)
        elif self._string:
            self._token += letter
            self._nest(letter)
            if not self._string:
                self._ended_key()
        elif letter not in _SPACE:
            self._between(letter)

    def _between(self, letter: str) -> None:
        """At the top level, outside of strings and values."""
        if letter == '"' and self._expects == "key":
            self._string, self._token = True, '"'
        elif letter == ":" and self._expects == "colon":
            self._expects = "value"
        elif letter == "," and self._expects == "comma":
            self._expects = "key"
        elif letter == "}" and self._expects in ("key", "comma"):
            self._depth, self.done = 0, True
        elif self._expects == "value":
            self._value, self._token = True, ""
            self.arguments = self.arguments or (self._key in _VALUES and letter == "{")
            self._in_value(letter)
        else:
            self.failed = True

    def _ended_key(self) -> None:
        try:
            self._key = json.loads(self._token)
        except ValueError:
            self.failed = True
        self._expects = "colon"

    def _in_value(self, letter: str) -> None:
        """A value goes on, or ends before this character or with it."""
        plain = self._depth == 1 and not self._string
        if plain and letter in ",}" and self._token:
            self._ended_value()
            self._between(letter)
            return
        self._token += letter
        if self._streams:
            self._pieces.append(letter)
        self._nest(letter)
        if self._depth == 1 and not self._string and letter in '"}]':
            self._ended_value()

    @property
    def _streams(self) -> bool:
        """Whether the value is the arguments, as an object."""
        return self._key in _VALUES and self._token.startswith("{")

    def _ended_value(self) -> None:
        token, streamed = self._token.strip(), self._streams
        self._value, self._token, self._expects = False, "", "comma"
        if self._key == "name" and self.name is None:
            try:
                value = json.loads(token)
            except ValueError:
                value = None
            self.name, self.failed = (value, False) if isinstance(value, str) and value else (None, True)
        elif self._key in _VALUES and not streamed:
            self._other(token)

    def _other(self, token: str) -> None:
        """Arguments that are no object: a text that holds one, or nothing."""
        try:
            value = json.loads(token)
        except ValueError:
            self.failed = True
            return
        if isinstance(value, str):
            self.arguments = True
            self._pieces.append(value)
        elif value is None:
            self.arguments = True
            self._pieces.append("{}")
        else:
            self.failed = True

    def _nest(self, letter: str) -> None:
        """Strings and brackets."""
        if self._string:
            if self._escape:
                self._escape = False
            elif letter == "\\":
                self._escape = True
            elif letter == '"':
                self._string = False
        elif letter == '"':
            self._string = True
        elif letter in "{[":
            self._depth += 1
        elif letter in "}]":
            self._depth -= 1
