"""Where things are kept on this machine, and how small files are written there."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from ouroboros.errors import InputError
from ouroboros.files import stale_files, write_whole

__all__ = ["cache_directory", "write_json"]

FORGOTTEN = 3600  # seconds after which nobody writes to a temporary file any more


def cache_directory() -> Path:
    """Where this user keeps what can be made again. Nothing is created here."""
    name, below = ("LOCALAPPDATA", "AppData/Local") if sys.platform == "win32" else ("XDG_CACHE_HOME", ".cache")
    if base := os.environ.get(name):
        return Path(base) / "ouroboros"
    try:
        return Path.home() / below / "ouroboros"
    except RuntimeError:  # a user without a home, as in some containers: where nothing can be kept
        return Path(os.devnull) / "ouroboros"


def write_json(values: dict[str, Any], path: Path) -> None:
    """Writes a file, whole or not at all, and makes its directory.

    Raises:
        InputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for part in stale_files(path):
            if time.time() - part.stat().st_mtime > FORGOTTEN:
                part.unlink()
        write_whole(path, json.dumps(values, indent=1).encode())
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror}") from None
