"""``ouroboros`` in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

__all__ = ["answering", "started"]

CODE = "import sys; from ouroboros.cli import main; sys.exit(main())"
HEAD = 20  # bytes of an answer, after which it is under way


@contextlib.contextmanager
def started(*args: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command with pipes; Ctrl-C reaches it as from a terminal. What still runs at the end is killed."""
    with subprocess.Popen(
        [sys.executable, "-c", CODE, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


@contextlib.contextmanager
def answering(message: str, *args: str) -> Iterator[tuple[subprocess.Popen[bytes], bytes]]:
    """``ouroboros chat`` in the middle of its answer to a message, and the answer's first bytes."""
    with started("chat", *args) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{message}\n".encode())
        process.stdin.flush()
        head = process.stdout.read(HEAD)
        assert len(head) == HEAD
        yield process, head
