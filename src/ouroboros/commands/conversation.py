"""A conversation in the terminal: lines in, answers out. Knows neither where a model runs nor how it is asked."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ouroboros.commands.process import Interrupts
from ouroboros.errors import InputError

if TYPE_CHECKING:
    from ouroboros._render import Screen

__all__ = ["Answer", "Conversation", "Message"]

Message = dict[str, Any]
_HELP = "/clear begins anew, /undo takes back the last turn, /exit ends (as Ctrl-D does); Ctrl-C stops an answer"


@dataclass(frozen=True, slots=True)
class Answer:
    """What was written, whether Ctrl-C ended it, and what shows its figures: called with a note behind them."""

    text: str
    interrupted: bool
    show_figures: Callable[[str], None]


class Conversation:
    """Turns, and the commands between them.

    Args:
        ask: answers messages, showing the text as it comes; an InputError ends the turn alone.
        opening: messages that no command takes away. quiet: no figures.
    """

    def __init__(
        self,
        ask: Callable[[Sequence[Message]], Answer],
        screen: Screen,
        interrupts: Interrupts,
        opening: Sequence[Message],
        quiet: bool,
    ) -> None:
        self._ask, self._screen, self._interrupts, self._quiet = ask, screen, interrupts, quiet
        self._opening = list(opening)
        self._messages = list(opening)

    def run(self) -> None:
        """Until the input ends or the user says so."""
        self._screen.note(_HELP)
        if not self._quiet:
            self._screen.legend()
        for line in _lines(self._screen):
            match line.strip():
                case "":
                    continue
                case "/exit" | "/quit":
                    return
                case "/help":
                    self._screen.note(_HELP)
                case "/clear":
                    self._messages = list(self._opening)
                case "/undo":
                    del self._messages[max(len(self._opening), len(self._messages) - 2) :]
                case command if command.startswith("/"):
                    self._screen.warn(f"no such command: {command!r} ({_HELP})")
                case _:
                    self._turn(line)

    def _turn(self, line: str) -> None:
        asked = [*self._messages, {"role": "user", "content": line}]
        try:
            answer = self._ask(asked)
        except InputError as error:  # the conversation has become too long, say
            self._screen.warn(str(error))
            return
        if answer.interrupted:
            self._interrupts.forgive()
        self._messages = [*asked, {"role": "assistant", "content": answer.text}]
        self._screen.text("\n")
        if not self._quiet:
            answer.show_figures(" (stopped)" if answer.interrupted else "")


def _lines(screen: Screen) -> Iterator[str]:
    """The user's messages, until the input ends."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # gives ``input`` its line editing and its history
    while True:
        parts: list[str] = []
        while True:
            try:
                parts.append(input("" if not sys.stdin.isatty() else "... " if parts else ">>> "))
            except EOFError:
                if parts:
                    yield "\n".join(parts)
                elif sys.stdin.isatty():
                    screen.text("\n")
                return
            except UnicodeDecodeError as error:
                raise InputError(
                    f"standard input must be UTF-8 text, not with the byte {error.object[error.start]:#04x}"
                ) from None
            if not parts[-1].endswith("\\"):
                break
            parts[-1] = parts[-1][:-1]
        yield "\n".join(parts)
