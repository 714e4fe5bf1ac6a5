"""A command line in its process: signals, pipes that close, errors as one line and an exit status.

Exit status: what the command says (0 done), 2 bad input or an output that cannot be written, 130 interrupted (Ctrl-C),
143 terminated, 129 hung up. What a command does in the end (save a pool, show the cursor again) it does in each of
these cases. Knows nothing of any command, and imports nothing slow.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import click

from ouroboros.errors import OuroborosError

__all__ = ["Interrupts", "keep_loaded", "run"]

_ENDS = ("SIGINT", "SIGTERM", "SIGHUP")  # the last is unknown to Windows


class Interrupts:
    """A signal to end raises KeyboardInterrupt and is remembered: libraries make errors of their own of it, or swallow
    it.

    Where the process is this command line's own, a signal may also end it on the spot (``at_once``, and after the
    command's own end).

    Attributes:
        seen: whether there was one. status: the exit status that it asks for.
    """

    def __init__(self, owns_process: bool) -> None:
        self.seen = False
        self.status = 128 + signal.SIGINT
        self._owns_process = owns_process
        self._ended = False
        self._tidy: Callable[[], None] | None = None
        self._previous: dict[int, Any] = {}
        self._hook = sys.unraisablehook

    def __enter__(self) -> Interrupts:
        # A process started with a signal ignored, as a shell does for a job in the background, goes on ignoring it.
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in _ENDS if hasattr(signal, name)):
                previous = signal.getsignal(number)
                if previous in (signal.default_int_handler, signal.SIG_DFL):
                    signal.signal(number, self._note)
                    self._previous[number] = previous
        self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, previous in self._previous.items():
            if not self._owns_process:  # else a late signal would find the interpreter half taken down
                signal.signal(number, previous)
        sys.unraisablehook = self._hook

    def _unraisable(self, what: Any) -> None:
        """An interrupt while objects are taken down cannot be raised, and Python would print it."""
        if not (self.seen and issubclass(what.exc_type, KeyboardInterrupt)):
            self._hook(what)

    @contextlib.contextmanager
    def at_once(self, tidy: Callable[[], None]) -> Iterator[None]:
        """While there is nothing to keep: torch's import aborts with a C++ trace when an exception comes into it."""
        self._tidy = tidy if self._owns_process else None
        try:
            yield
        finally:
            self._tidy = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.seen = True
        self.status = 128 + number
        if self._tidy is not None:
            self._tidy()
            os._exit(self.status)
        if not self._ended:
            raise KeyboardInterrupt
        if self._owns_process:
            os._exit(self.status)

    def check(self) -> None:
        if self.seen:
            raise KeyboardInterrupt

    def forgive(self) -> None:
        """The interrupt has been dealt with: it ended an answer, not the program.

        Raises:
            KeyboardInterrupt: it was no Ctrl-C, and the program is to end.
        """
        if self.status != 128 + signal.SIGINT:
            raise KeyboardInterrupt
        self.seen = False

    def end(self) -> None:
        """The command has ended, and what it had to do at its end is done: further signals raise nothing."""
        self._ended = True

    def end_process(self) -> None:
        """After an interrupt, end here: one inside ``exec``, which dataclasses use, makes Python kill itself at its end
        although it was handled, and a second one would find the interpreter half taken down."""
        if self.seen and self._owns_process:
            os._exit(self.status)


def keep_loaded() -> None:
    """Garbage collections leave out what is there by now: a full one over models and modules takes 0.1 s, in the middle
    of decoding."""
    gc.collect()
    gc.freeze()


def run(command: Callable[[Interrupts], int], owns_process: bool) -> int:
    """The command's exit status, or that of what ended it. Where it owns the process an interrupt ends that here."""
    interrupts = Interrupts(owns_process)
    with interrupts:
        try:
            status = _status(command, interrupts)
        except KeyboardInterrupt:  # the next one, while the first was dealt with
            interrupts.end()
            status = interrupts.status
    _drop_unwritable(sys.stdout)
    _drop_unwritable(sys.stderr)
    interrupts.end_process()
    return status


def _status(command: Callable[[Interrupts], int], interrupts: Interrupts) -> int:
    try:
        status = command(interrupts)
        if sys.stdout is not None:
            sys.stdout.flush()
        interrupts.end()
        return status
    except KeyboardInterrupt:
        interrupts.end()
        return interrupts.status
    except Exception as error:
        interrupts.end()
        # An interrupt in the middle of an import can come out as that library's own error.
        if interrupts.seen:
            return interrupts.status
        message = _message(error)
        if message is None:
            raise
        return _fail(message)


def _message(error: Exception) -> str | None:
    """What to tell the user, or None for an error that is nobody's input: a defect, which shows its traceback."""
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, OuroborosError):
        return str(error)
    if isinstance(error, BrokenPipeError):
        return "the output was closed before its end"
    if isinstance(error, OSError):
        where = "" if error.filename is None else f": {error.filename!r}"
        return f"{error.strerror or error}{where}"
    text = str(error)
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return f"not enough memory ({text})" if text else "not enough memory"
    if isinstance(error, AssertionError | RuntimeError) and ("CUDA" in text or "NVIDIA" in text):
        return f"the device cannot be used ({text})"
    return None


def _fail(message: str) -> int:
    from ouroboros._render import showable

    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"ouroboros: error: {' '.join(showable(message).split())}\n")
            sys.stderr.flush()
    return 2


def _drop_unwritable(stream: Any) -> None:
    """Send what a closed pipe does not take to nowhere, or the interpreter complains of it at its end."""
    try:
        if stream is not None:
            stream.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
