"""What servers side by side have learned of the same tenants: each writes files of its own and reads the others'.

    memory_dir/0/VOCABULARY/TENANT.pool      of the first server; 1/, 2/, … of the others

Nobody writes to another's directory, and nothing that was read is written again but what a request has used: so nothing
is counted twice. A directory whose server has died is still read, and is the next server's that starts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from ouroboros.errors import PoolFileError
from ouroboros.phrases.memory import Memory
from ouroboros.phrases.storage import load_pool

__all__ = ["MOST_SERVERS", "Neighbours"]

_LOGGER = logging.getLogger("ouroboros.server")
MOST_SERVERS = 256  # that may share a directory
Seen = frozenset[tuple[str, int]]  # files, and when each was written


class Neighbours:
    """
    Args:
        own: the directory of this server's files. empty: makes a memory for what the others' files hold.
    """

    def __init__(self, own: Path, fingerprint: str, vocab_size: int, empty: Callable[[], Memory]) -> None:
        self._own, self._fingerprint, self._vocab_size, self._empty = own, fingerprint, vocab_size, empty
        self._seen: dict[str, Seen] = {}  # by file, as of the last time it was merged

    def merged(self, file: str, anew: bool = False) -> Memory | None:
        """What the others' files of this name hold, together; None if that is what it was the last time, unless it is
        wanted ``anew``."""
        server, vocabulary = self._own.parent, self._own.name
        found = [path for path in server.parent.glob(f"*/{vocabulary}/{file}") if path.parent.parent != server]
        seen = frozenset((str(path), _written(path)) for path in found)
        if seen == self._seen.get(file, frozenset()) and not anew:
            return None
        self._seen[file] = seen
        memory = self._empty()
        for path in sorted(found):
            try:
                memory.take_in(load_pool(path, self._fingerprint, self._vocab_size))
            except PoolFileError as error:
                _LOGGER.warning("a neighbour's memory is left out: %s", error)
        return memory

    def forget(self, file: str) -> None:
        """Its memory is not in RAM any more."""
        self._seen.pop(file, None)


def _written(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
