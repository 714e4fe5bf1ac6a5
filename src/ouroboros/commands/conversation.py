"""A conversation in the terminal: lines in, answers out. Knows neither where a model runs nor how it is asked."""

from __future__ import annotations

import contextlib
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ouroboros.commands.process import Interrupts
from ouroboros.directories import cache_directory
from ouroboros.errors import InputError

if TYPE_CHECKING:
    from ouroboros._render import Screen

__all__ = ["Answer", "Conversation", "Message"]

Message = dict[str, Any]
_PASTED = 0.02  # seconds that the rest of a pasted text may take to arrive
_REMEMBERED = 1000  # lines of history
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
        for line in _lines(self._screen, self._interrupts):
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
        if any("\ud800" <= character <= "\udfff" for character in line):  # Python's mark for a byte that is no UTF-8
            self._screen.warn("the message must be UTF-8 text; it has other bytes, and was not sent")
            return
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


def _lines(screen: Screen, interrupts: Interrupts) -> Iterator[str]:
    """The user's messages, until the input ends. Lines that were pasted at once are one message; Ctrl-C forgets what
    has been typed, and ends the conversation the second time.

    Raises:
        InputError: standard input is closed, or no UTF-8 text.
    """
    if sys.stdin is None:
        raise InputError("cannot read standard input: it is closed")
    if not sys.stdin.isatty():
        yield from _read_lines()
        return
    forgotten = False
    with _history():
        while True:
            parts: list[str] = []
            try:
                while not parts or parts[-1].endswith("\\") or _more_is_there():
                    if parts and parts[-1].endswith("\\"):
                        parts[-1] = parts[-1][:-1]
                    parts.append(input("... " if parts else ">>> "))
            except EOFError:
                if not parts:
                    screen.text("\n")
                    return
            except KeyboardInterrupt:
                if forgotten:
                    raise
                forgotten = True
                interrupts.forgive()
                screen.text("\n")
                screen.note("/exit, Ctrl-D or another Ctrl-C ends the conversation")
                continue
            forgotten = False
            yield "\n".join(parts)


def _read_lines() -> Iterator[str]:
    """Of a file or a pipe: a message a line, or several where lines end in a backslash."""
    parts: list[str] = []
    while True:
        try:
            parts.append(input())
        except EOFError:
            if parts:
                yield "\n".join(parts)
            return
        except UnicodeDecodeError as error:
            raise InputError(
                f"standard input must be UTF-8 text, not with the byte {error.object[error.start]:#04x}"
            ) from None
        if parts[-1].endswith("\\"):
            parts[-1] = parts[-1][:-1]
            continue
        yield "\n".join(parts)
        parts = []


def _more_is_there() -> bool:
    """Whether the terminal holds more than the line that was read: nobody types that fast."""
    try:
        return bool(select.select([sys.stdin], [], [], _PASTED)[0])
    except (OSError, ValueError):  # Windows can wait for sockets alone
        return False


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Line editing, with the lines of earlier conversations; they are kept in the user's cache directory, readable
    for the user alone, where that can be written to."""
    try:
        import readline
    except ImportError:
        yield
        return
    file = cache_directory() / "chat-history"
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch(mode=0o600)
            readline.set_history_length(_REMEMBERED)
            readline.write_history_file(file)
