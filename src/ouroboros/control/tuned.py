"""Options that ``ouroboros tune`` found for a pair on this machine, in a small file that ``load`` picks up."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ouroboros.config import OuroborosOptions, options_for
from ouroboros.control.machine import machine
from ouroboros.control.profile import describe
from ouroboros.directories import cache_directory, write_json
from ouroboros.errors import InputError
from ouroboros.files import parse_json
from ouroboros.models.base import ModelInfo

__all__ = ["Tuned", "load_tuned", "save_tuned", "tuned_path"]

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Tuned:
    """What was found.

    Attributes:
        target, draft, machine: for what, as cost.py describes it. options: those of the method that differ from its
            defaults. speed_up: over plain decoding, measured. prompts, new_tokens, temperatures: on what.
    """

    target: str
    draft: str
    machine: str
    options: Mapping[str, Any]
    speed_up: float
    prompts: int
    new_tokens: int
    temperatures: tuple[float, ...]

    def chosen(self) -> OuroborosOptions:
        found = options_for("ouroboros", self.options)
        assert isinstance(found, OuroborosOptions)
        return found


def tuned_path(target: ModelInfo, draft: ModelInfo, directory: Path | None = None) -> Path:
    """The file of this pair on this machine."""
    parts = [describe(target), describe(draft), machine(target.device)]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return (directory or cache_directory() / "tuned") / f"{key}.json"


def save_tuned(tuned: Tuned, path: Path) -> None:
    """Writes a file, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    write_json({"format": FORMAT, **dataclasses.asdict(tuned)}, path)


def load_tuned(path: Path) -> Tuned | None:
    """What the file holds; None where there is none, or none that this version understands."""
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
        if values.pop("format") != FORMAT:
            return None
        found = Tuned(**{**values, "temperatures": tuple(values["temperatures"])})
        found.chosen()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError):
        return None
    return found
