"""A command line in its process: Ctrl-C, pipes that close, errors as one line and an exit status.

Exit status: what the command says (0 done), 2 bad input or an output that cannot be written, 130 interrupted. Knows
nothing of any command, and imports nothing slow.
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

_INTERRUPTED = 130


class Interrupts:
    """Ctrl-C raises KeyboardInterrupt and is remembered: libraries make errors of their own of it, or swallow it.

    Where the process is this command line's own, an interrupt may also end it on the spot (``at_once``).
    """

    def __init__(self, owns_process: bool) -> None:
        self.seen = False
        self._owns_process = owns_process
        self._tidy: Callable[[], None] | None = None
        self._previous: Any = None

    def __enter__(self) -> Interrupts:
        # A process started with SIGINT ignored, as a shell does for a job in the background, goes on ignoring it.
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.getsignal(signal.SIGINT)
            if self._previous is signal.default_int_handler:
                signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._previous is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._previous)

    @contextlib.contextmanager
    def at_once(self, tidy: Callable[[], None]) -> Iterator[None]:
        """While there is nothing to keep: torch's import aborts with a C++ trace when an exception comes into it."""
        self._tidy = tidy if self._owns_process else None
        try:
            yield
        finally:
            self._tidy = None

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.seen = True
        if self._tidy is not None:
            self._tidy()
            os._exit(_INTERRUPTED)
        raise KeyboardInterrupt

    def check(self) -> None:
        if self.seen:
            raise KeyboardInterrupt

    def forgive(self) -> None:
        """The interrupt has been dealt with: it ended an answer, not the program."""
        self.seen = False

    def end_process(self) -> None:
        """After an interrupt, end here: one inside ``exec``, which dataclasses use, makes Python kill itself at its end
        although it was handled, and a second one would find the interpreter half taken down."""
        if self.seen and self._owns_process:
            os._exit(_INTERRUPTED)


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
            status = command(interrupts)
            if sys.stdout is not None:
                sys.stdout.flush()
        except KeyboardInterrupt:
            status = _INTERRUPTED
        except Exception as error:
            # An interrupt in the middle of an import can come out as that library's own error.
            message = _message(error)
            if interrupts.seen:
                status = _INTERRUPTED
            elif message is None:
                raise
            else:
                status = _fail(message)
    _drop_unwritable(sys.stdout)
    _drop_unwritable(sys.stderr)
    interrupts.end_process()
    return status


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
