"""A profile: T(n, context) as it was measured with care (bench/profiling.py), and its file.

It is of a model, dtype and device, and kept in the user's cache directory, for replays in measured times and as a
better start: decoding corrects what it begins with (cost.py). It knows nothing of drafting.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ouroboros.control.machine import machine
from ouroboros.directories import cache_directory, write_json
from ouroboros.files import parse_json
from ouroboros.models.base import ModelInfo

__all__ = [
    "CostProfile",
    "PairProfile",
    "describe",
    "load_profile",
    "profile_path",
    "save_profile",
]

FORMAT = 3


@dataclass(frozen=True, slots=True)
class CostProfile:
    """Medians of measured forwards.

    Attributes:
        model: what was measured, as ``describe`` says it. machine: on what. rows: n, ascending. contexts: cached
            positions, ascending. seconds: per context and n. spread: as ``seconds``, the middle half's width.
    """

    model: str
    machine: str
    rows: tuple[int, ...]
    contexts: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]
    spread: tuple[tuple[float, ...], ...]

    def cost(self, rows: int, context: int) -> float:
        """Seconds of a forward over ``rows`` ≥ 1 new rows: between measured sizes on a line, beyond them on the last
        one's slope; of contexts likewise."""
        each = [_interpolate(self.rows, times, rows) for times in self.seconds]
        return _interpolate(self.contexts, each, context)

    def points(self) -> list[tuple[int, int, float]]:
        """(rows, context, seconds) of all that was measured."""
        return [
            (n, context, seconds)
            for context, times in zip(self.contexts, self.seconds, strict=True)
            for n, seconds in zip(self.rows, times, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class PairProfile:
    """T(n) of a pair on this machine."""

    target: CostProfile
    draft: CostProfile


def _interpolate(places: Sequence[int], values: Sequence[float], place: float) -> float:
    if len(places) == 1 or place <= places[0]:
        return values[0]
    right = min(bisect.bisect_left(places, place), len(places) - 1)
    left = right - 1
    slope = (values[right] - values[left]) / (places[right] - places[left])
    if place > places[-1]:
        slope = max(slope, 0.0)  # noise must not make large forwards free
        left = right
    return values[left] + slope * (place - places[left])


def describe(info: ModelInfo) -> str:
    """What T(n) depends on, beside the machine."""
    size = f"{info.parameters} parameters, {info.vocab_size} tokens"
    computes = " ".join(part for part in (info.backend, info.engine.partition(" (")[0]) if part)
    return f"{computes} {size}, {info.dtype} on {info.device}, {'trees' if info.trees else 'chains'}"


def profile_path(info: ModelInfo, directory: Path | None = None) -> Path:
    """The file of this model's profile on this machine."""
    key = hashlib.sha256(f"{describe(info)}\n{machine(info.device)}".encode()).hexdigest()[:16]
    return (directory or cache_directory() / "profiles") / f"{key}.json"


def save_profile(profile: CostProfile, path: Path) -> None:
    """Writes a profile, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    write_json({"format": FORMAT, **dataclasses.asdict(profile)}, path)


def load_profile(path: Path) -> CostProfile | None:
    """The profile in a file; None where there is none, or none that this version understands: it is measured again."""
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
        if values.pop("format") != FORMAT:
            return None
        rows, contexts = tuple(values["rows"]), tuple(values["contexts"])
        seconds, spread = (tuple(tuple(map(float, times)) for times in values[name]) for name in ("seconds", "spread"))
        if (
            any([len(times) for times in table] != [len(rows)] * len(contexts) for table in (seconds, spread))
            or not rows
            or not all(0 < value < math.inf for times in seconds for value in times)
            or not all(type(value) is int and value >= 0 for value in (*rows, *contexts))
        ):
            return None
        return CostProfile(values["model"], values["machine"], rows, contexts, seconds, spread)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
