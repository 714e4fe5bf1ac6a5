"""A memory for each tenant: what one's requests leave is read by their later ones alone, over a shared layer that no
request writes to.

With a directory memories outlive the server. Each lies in a file of its own, a phrase pool's (phrases/storage.py),
under the vocabulary that it belongs to. A file is written whole or not at all, so that it can be read whenever the
process is killed; what was learned since the last snapshot is lost then. One server at a time has the directory;
servers side by side read each other's (neighbours.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from ouroboros.errors import InputError, PoolFileError
from ouroboros.phrases.lock import PoolLock
from ouroboros.phrases.memory import Memory
from ouroboros.phrases.storage import load_pool, pack_pool, write_pool
from ouroboros.server.neighbours import Neighbours

__all__ = ["Tenants", "file_of"]

_LOGGER = logging.getLogger("ouroboros.server")
BOUNDS = 30_000, 20_000, 200_000  # of one tenant: keys of phrases, of predictions, tokens of outputs
MOST_FILES = 1000  # of a directory; those that were not written for longest go first


@dataclass(slots=True)
class _Held:
    memory: Memory
    used: float
    saved: float = -1.0


def file_of(name: str) -> str:
    """The name of a tenant's file: nothing of the tenant can be read from it."""
    return f"{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:40]}.pool"


class Tenants:
    """Thread-safe.

    Args:
        shared: what all read. hold: held while memories are read for a snapshot: nobody writes to them then.
        directory: None: memories end with the server. fingerprint, vocab_size: of the target's vocabulary.
        most: memories in RAM; of more the one that was used longest ago is let go of, into its file if there is one.
        neighbours: whether the directories beside this one are of servers that have the same tenants.

    Raises:
        InputError: the directory cannot be made. PoolFileError: another server has it.
    """

    def __init__(
        self,
        shared: Memory | None,
        hold: AbstractContextManager[object],
        directory: str | None,
        fingerprint: str,
        vocab_size: int,
        most: int,
        clock: Callable[[], float] = time.monotonic,
        neighbours: bool = False,
    ) -> None:
        self._shared, self._hold, self._most, self._clock = shared, hold, most, clock
        self._fingerprint, self._vocab_size = fingerprint, vocab_size
        self._held: dict[str, _Held] = {}  # the one that was used last is the last
        self._lock = threading.RLock()
        self._directory: Path | None = None
        self._right: PoolLock | None = None
        self._neighbours: Neighbours | None = None
        if directory is not None:
            self._directory = Path(directory) / hashlib.sha256(fingerprint.encode()).hexdigest()[:16]
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"memory_dir {directory!r} cannot be made: {error.strerror}") from None
            self._right = PoolLock(self._directory / "memories")
            for part in self._directory.glob(".*.part"):  # of a server that was killed
                with contextlib.suppress(OSError):
                    part.unlink()
            if neighbours:
                self._neighbours = Neighbours(
                    self._directory, fingerprint, vocab_size, lambda: Memory.over(shared, *BOUNDS)
                )

    def __len__(self) -> int:
        """Memories in RAM."""
        return len(self._held)

    def memory(self, name: str | None) -> Memory:
        """A tenant's, read from its file where there is one; None: a new one that nobody else sees."""
        if name is None:
            return Memory.over(self._shared, *BOUNDS)
        with self._lock:
            held = self._held.pop(name, None)
            if held is None:
                held = _Held(self._load(name), 0.0)
            held.used = self._clock()
            self._held[name] = held
            while len(self._held) > self._most:
                oldest = next(iter(self._held))
                self._save(oldest, self._held[oldest])
                del self._held[oldest]
                if self._neighbours is not None:
                    self._neighbours.forget(file_of(oldest))
            return held.memory

    def touch(self, name: str | None) -> None:
        """A request of this tenant has ended: there is something to save."""
        with self._lock:
            if name is not None and name in self._held:
                self._held[name].used = self._clock()

    def phrases(self) -> dict[str, int]:
        """How many phrases each memory in RAM holds, by a part of its file's name."""
        with self._lock:
            return {file_of(name)[:12]: len(held.memory.phrases) for name, held in self._held.items()}

    def save(self) -> int:
        """Writes what has changed. Returns how many files that were."""
        with self._lock:
            names = [name for name, held in self._held.items() if held.used > held.saved]
        return sum(self._save(name, self._held.get(name)) for name in names)

    def exchange(self) -> int:
        """Puts each memory in RAM over what the neighbours have written since the last time. Returns how many memories
        got something."""
        if self._neighbours is None:
            return 0
        with self._lock:
            held = [(file_of(name), one.memory) for name, one in self._held.items()]
        count = 0
        for file, memory in held:
            found = self._neighbours.merged(file)
            if found is not None:
                with self._hold:
                    memory.put_over(found)
                count += 1
        return count

    def close(self) -> None:
        """Writes what has changed, and gives the directory back."""
        self.save()
        if self._right is not None:
            self._right.release()

    def _save(self, name: str, held: _Held | None) -> bool:
        if self._directory is None or held is None or held.used <= held.saved:
            return False
        now = self._clock()
        with self._hold:
            data = pack_pool(held.memory, self._fingerprint)
        try:
            write_pool(data, self._directory / file_of(name), self._right)
        except PoolFileError as error:
            _LOGGER.warning("%s", error)
            return False
        held.saved = now
        self._forget()
        return True

    def _load(self, name: str) -> Memory:
        below = None if self._neighbours is None else self._neighbours.merged(file_of(name), anew=True)
        memory = Memory.over(below or self._shared, *BOUNDS)
        path = None if self._directory is None else self._directory / file_of(name)
        if path is not None and path.exists():
            try:
                memory.take_in(load_pool(path, self._fingerprint, self._vocab_size))
            except PoolFileError as error:
                _LOGGER.warning("a memory begins anew: %s", error)
        return memory

    def _forget(self) -> None:
        """Bounds the number of files."""
        assert self._directory is not None
        files = list(self._directory.glob("*.pool"))
        if len(files) > MOST_FILES:
            kept = {file_of(name) for name in self._held}
            for file in sorted(files, key=_age)[: len(files) - MOST_FILES]:
                if file.name not in kept:
                    with contextlib.suppress(OSError):
                        file.unlink()


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
