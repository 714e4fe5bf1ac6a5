"""The directory of a training: the draft at its top, below it (``distillation/``) what an interrupted run goes on from.

It knows nothing of models and training.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from ouroboros.errors import InputError
from ouroboros.files import parse_json
from ouroboros.training.settings import WORK, DistillSettings

__all__ = ["REPORT", "Workspace"]

REPORT = "distillation.json"  # written last


class Workspace:
    """``out``: where the draft goes; the files below ``work`` are named by what they are.

    Raises:
        InputError: a new run in a directory that is not empty or cannot be written, or nothing to resume.
    """

    def __init__(self, settings: DistillSettings, resume: bool) -> None:
        self.out = Path(settings.out)
        self.work = self.out / WORK
        if resume and (self.out / REPORT).exists():
            raise InputError(f"the training in {str(self.out)!r} has ended: nothing is left to resume")
        try:
            if not resume:
                self.out.mkdir(parents=True, exist_ok=True)
                if any(self.out.iterdir()):
                    raise InputError(f"out {str(self.out)!r} is not empty: choose another directory, or resume")
                self.work.mkdir()
                self.write("settings", dataclasses.asdict(settings))
        except OSError as error:
            raise InputError(f"out {str(self.out)!r} cannot be written: {error.strerror}") from error

    def path(self, name: str) -> Path:
        return self.work / name

    def read(self, name: str) -> Any:
        """What ``write`` has kept under this name; None if nothing was.

        Raises:
            InputError: the file is damaged.
        """
        file = self.work / f"{name}.json"
        try:
            return parse_json(file.read_text(encoding="utf-8")) if file.is_file() else None
        except (OSError, ValueError) as error:
            raise InputError(f"{str(file)!r} is damaged ({error})") from None

    def write(self, name: str, value: object) -> None:
        file = self.work / f"{name}.json"
        part = file.with_suffix(".part")
        part.write_text(json.dumps(value, indent=1), encoding="utf-8")
        part.replace(file)

    def remove(self) -> None:
        """Deletes what only an interrupted run needs; generations and settings stay."""
        for file in self.work.glob("*.pt"):
            file.unlink()
        for directory in (path for path in self.work.iterdir() if path.is_dir()):
            shutil.rmtree(directory)
