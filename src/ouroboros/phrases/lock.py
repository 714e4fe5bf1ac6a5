"""One process at a time saves to a pool's file: each would write what it has learned over what the other has.

The lock is the system's own, on a file beside the pool, so that it is gone with the process that held it, however that
ended. Where there are no such locks (Windows, some network file systems) everybody gets one.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from types import TracebackType

from ouroboros.errors import PoolFileError
from ouroboros.files import stale_files

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

__all__ = ["PoolLock"]

UNKNOWN = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # of file systems that have no locks


class PoolLock:
    """The right to save to this file, from now until ``release``. Taking it removes what a killed process left.

    Raises:
        PoolFileError: somebody else has it, or there is no place for its file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.realpath(path))
        self._file: int | None = None
        self.take()

    def take(self) -> None:
        """Takes it, if it was released.

        Raises:
            PoolFileError: as above.
        """
        if self._file is not None or fcntl is None:
            return
        name = self.path.with_name(f".{self.path.name}.lock")
        try:
            self._file = _locked(name)
        except BlockingIOError:
            holder = _holder(name)
            raise PoolFileError(
                f"the phrase pool {str(self.path)!r} is in use{holder}: only one at a time can save to it; "
                "wait for its end, give another file, or read it with pool_read_only"
            ) from None
        except OSError as error:
            if error.errno in UNKNOWN:
                return
            raise PoolFileError(
                f"cannot write the phrase pool {str(self.path)!r}: {error.strerror or error}"
            ) from error
        for part in stale_files(self.path):
            with contextlib.suppress(OSError):
                part.unlink()

    def release(self) -> None:
        """Gives it back; does nothing a second time."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # while it is still locked, so that nobody's own is removed
                self.path.with_name(f".{self.path.name}.lock").unlink()
            os.close(self._file)
            self._file = None

    def __enter__(self) -> PoolLock:
        """Takes it again, if it was released."""
        self.take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            self.release()


def _locked(name: Path) -> int:
    """The lock's file, open and locked. One that its holder has removed meanwhile is no lock any more."""
    while True:
        file = os.open(name, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), os.stat(name)):
                    os.ftruncate(file, 0)
                    os.pwrite(file, str(os.getpid()).encode(), 0)
                    return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _holder(name: Path) -> str:
    try:
        number = int(name.read_text()[:20])
    except (OSError, ValueError):
        return ""
    return " in this process" if number == os.getpid() else f" by process {number}"
