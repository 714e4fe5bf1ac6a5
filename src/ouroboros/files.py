"""Files that others wrote, read without belief; files of our own, written whole or not at all.

What a path leads to is looked at before it is opened: a pipe would wait for ever for somebody to write into it. It
knows nothing of what is in a file.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
from pathlib import Path
from typing import Any

from ouroboros.errors import LoadError

__all__ = ["check_directory", "parse_json", "read_json", "regular", "stale_files", "write_whole"]

MOST_JSON = 64 << 20  # bytes; the index of a model with a hundred thousand tensors has a tenth of it
READ = (".json", ".safetensors", ".model", ".jinja", ".txt")  # ends of the names that are read from a checkpoint
_PART = ".part"  # the end of a temporary file's name


def regular(path: Path) -> bool:
    """Whether there is a file; a link counts as what it leads to.

    Raises:
        LoadError: there is something else, such as a pipe or a directory, or the name cannot be one.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or error
        raise LoadError(f"{path.name!r:.80} cannot be read ({reason})") from error
    if not stat.S_ISREG(mode):
        raise LoadError(f"{path.name!r:.80} is no regular file")
    return True


def check_directory(path: Path) -> None:
    """
    Raises:
        LoadError: a file that is read from a checkpoint is a pipe, a socket or a device.
    """
    for file in sorted(path.iterdir()):
        if file.suffix in READ and not file.is_dir():
            regular(file)


def parse_json(text: str | bytes) -> Any:
    """
    Raises:
        ValueError: it is no JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path) -> dict[str, object] | None:
    """The JSON object in a file; None where there is no file.

    Raises:
        LoadError: no regular file, too large, not to be read, or something else than a JSON object.
    """
    if not regular(path):
        return None
    try:
        if path.stat().st_size > MOST_JSON:
            raise LoadError(f"{path.name} has {path.stat().st_size} bytes; allowed are {MOST_JSON}")
        value = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(f"{path.name} is not readable JSON ({error})") from error
    if not isinstance(value, dict):
        raise LoadError(f"{path.name} must hold a JSON object")
    return value


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file of which others see the old contents or the new ones, never a part.

    An existing file keeps its mode, and its owner where that is allowed; a new one has what the umask leaves. A link
    stays, and what it leads to is written.

    Raises:
        OSError: it cannot be written; nothing is left behind then.
    """
    target = Path(os.path.realpath(path))
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}{_PART}")
    file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        try:
            with contextlib.suppress(FileNotFoundError):
                _like(file, target.stat())
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(file, rest) :]
        finally:
            os.close(file)
        os.replace(part, target)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def stale_files(path: Path) -> list[Path]:
    """The temporary files that ``write_whole`` left for this path where it was killed (or is at work just now)."""
    target = Path(os.path.realpath(path))
    begin = f".{target.name}."
    with contextlib.suppress(OSError):
        names = os.listdir(target.parent)
        size = len(begin) + 8 + len(_PART)
        return [
            target.parent / name
            for name in names
            if len(name) == size and name.startswith(begin) and name.endswith(_PART)
        ]
    return []


def _like(file: int, old: os.stat_result) -> None:
    new = os.fstat(file)
    if hasattr(os, "fchown") and (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        with contextlib.suppress(OSError):
            os.fchown(file, old.st_uid, old.st_gid)
    if hasattr(os, "fchmod"):
        os.fchmod(file, stat.S_IMODE(old.st_mode))
