"""How many cores this process may use: the machine's, those that it is let onto, and a container's share of time.

It knows nothing of PyTorch. Linux says all of it; elsewhere the number of processors is all that is known.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Cores"]


@dataclass(frozen=True, slots=True)
class Cores:
    """``processors``: of the machine, as its kernel counts them. ``allowed``: that this process may run on.
    ``physical``: cores behind the allowed ones, fewer where a core is two processors. ``quota``: processors' worth of
    time that the control groups above this process allow, None without a limit."""

    processors: int
    allowed: int
    physical: int
    quota: float | None

    @property
    def threads(self) -> int:
        """The best number of threads for work that keeps each busy: two on one core gain nothing, and more than the
        quota are stopped together until their next share of time."""
        most = self.physical if self.quota is None else min(self.physical, int(self.quota))
        return max(1, most)

    @classmethod
    def here(cls, root: Path = Path("/")) -> Cores:
        """Of this process. ``root``: where Linux tells of itself."""
        processors = os.cpu_count() or 1
        allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(processors))
        quota = min(_quotas(root), default=None)
        return cls(processors, len(allowed), _physical(allowed, root / "sys/devices/system/cpu"), quota)


def _physical(allowed: set[int], folder: Path) -> int:
    siblings = (_text(folder / f"cpu{number}/topology/thread_siblings_list") or str(number) for number in allowed)
    return len(set(siblings))


def _quotas(root: Path) -> Iterator[float]:
    """The limit of each control group above this process that has one (version 2, then version 1)."""
    mounted = root / "sys/fs/cgroup"
    own = [line.split(":", 2) for line in _text(root / "proc/self/cgroup").splitlines()]
    for number, controllers, group in (entry for entry in own if len(entry) == 3):
        if number == "0":
            tops, names = [mounted, mounted / "unified"], ("cpu.max",)
        elif "cpu" in controllers.split(","):
            tops, names = [mounted / "cpu", mounted / controllers], ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        else:
            continue
        for top in tops:
            place = top / group.lstrip("/")
            # In a container the path may be the host's, and only the top is there to be read.
            for folder in (place, *(parent for parent in place.parents if parent == top or top in parent.parents)):
                words = " ".join(_text(folder / name) for name in names).split()
                if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
                    yield int(words[0]) / int(words[1])


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""
