"""T(n, context): what a forward over n new rows costs behind a filled cache, on this machine.

A profile is measured once for a model, dtype and device, and kept in the user's cache directory. Times differ from run
to run; so the sizes are measured in turns, and the median of each counts. Where memory had several speeds meanwhile
(memory.py), all is brought to one. It knows nothing of drafting.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import json
import math
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ouroboros.control.memory import leasts, memory_speed, ratio, shifted
from ouroboros.directories import cache_directory, write_json
from ouroboros.errors import InputError
from ouroboros.models.base import CausalModel, ModelInfo, ScoreRequest
from ouroboros.models.context import Context
from ouroboros.tree import Origin, TokenTree

__all__ = [
    "CONTEXTS",
    "ROWS",
    "CostProfile",
    "Costs",
    "describe",
    "load_profile",
    "machine",
    "measure",
    "profile_path",
    "save_profile",
]

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
CONTEXTS = (256, 1024)
FORMAT = 2


@dataclass(frozen=True, slots=True)
class CostProfile:
    """Medians of measured forwards.

    Attributes:
        model: what was measured, as ``describe`` says it. machine: on what. rows: n, ascending. contexts: cached
            positions, ascending. seconds: per context and n. spread: as ``seconds``, the middle half's width.
        memory: seconds of a read of memory, of which these are the forwards; None where it was not measured.
    """

    model: str
    machine: str
    rows: tuple[int, ...]
    contexts: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]
    spread: tuple[tuple[float, ...], ...]
    memory: float | None = None

    def cost(self, rows: int, context: int) -> float:
        """Seconds of a forward over ``rows`` ≥ 1 new rows: between measured sizes on a line, beyond them on the last
        one's slope; of contexts likewise."""
        each = [_interpolate(self.rows, times, rows) for times in self.seconds]
        return _interpolate(self.contexts, each, context)


@dataclass(frozen=True, slots=True)
class Costs:
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


def machine(device: str) -> str:
    """The processor that computes, and how much of it."""
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{_processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def measure(
    model: CausalModel,
    rows: Sequence[int] = ROWS,
    contexts: Sequence[int] = CONTEXTS,
    repeats: int = 7,
    progress: Callable[[str], None] = lambda text: None,
    patience: float = math.inf,
    typical: Callable[[Sequence[float]], float] = statistics.median,
) -> CostProfile:
    """Times forwards of all sizes in random order, ``repeats`` rounds each; logits of all rows are computed.

    ``patience``: seconds a context, about; larger sizes are left out where all together would take longer.
    ``typical``: which of a size's times counts.

    Raises:
        InputError: a size that is no whole number of at least 1, or that the model's context does not hold.
    """
    info = model.info
    for name, sizes in (("rows", rows), ("context", contexts)):
        if not sizes or any(size < 1 for size in sizes):
            raise InputError(f"{name} must be whole numbers of at least 1, not {list(sizes)}")
    if repeats < 1:
        raise InputError(f"repeats must be a whole number of at least 1, not {repeats}")
    rows, contexts = sorted(set(rows)), sorted(set(contexts))
    if max(rows) + max(contexts) > info.max_positions:
        wanted = f"{max(contexts)} cached positions and {max(rows)} rows"
        raise InputError(f"{wanted} are more than the {info.max_positions} that the model's context holds")
    order = random.Random(0)
    rounds: list[list[_Round]] = []  # of each context
    for place, context_size in enumerate(contexts):
        progress(f"a cache of {context_size} positions")
        tokens = [order.randrange(info.vocab_size) for _ in range(context_size + 1)]
        context = Context(model)
        context.prefill(tokens)
        spent = 0.0
        for number, n in enumerate(rows):  # one round to warm up
            spent += _time(context, _tree(tokens[-1], n, info), tokens)
            if place == 0 and spent * (1 + repeats) > patience and number + 1 < len(rows):
                rows = rows[: number + 1]
                break
        rounds.append([])
        for _ in range(repeats):
            times, reads = {}, []
            for n in order.sample(rows, len(rows)):
                if info.device == "cpu":  # others share their memory with nobody
                    reads.append(memory_speed().read())
                times[n] = _time(context, _tree(tokens[-1], n, info), tokens)
            rounds[-1].append(_Round([times[n] for n in rows], typical(leasts(reads)) if reads else None))
    known = [one.memory for each in rounds for one in each if one.memory is not None]
    memory = typical(known) if known else None
    medians, spreads = [], []
    for each in rounds:
        columns = list(zip(*(one.at(memory) if rows[0] == 1 else one.seconds for one in each), strict=True))
        medians.append(tuple(map(typical, columns)))
        spreads.append(tuple(map(_spread, columns)))
    return CostProfile(
        describe(info), machine(info.device), tuple(rows), tuple(contexts), tuple(medians), tuple(spreads), memory
    )


@dataclass(frozen=True, slots=True)
class _Round:
    """One forward of each size, and a read of memory meanwhile. Another round may have met memory in another state."""

    seconds: Sequence[float]
    memory: float | None

    def at(self, memory: float | None) -> Sequence[float]:
        """What it would have been with such a memory; the first forward has one row."""
        return shifted([0.0, *self.seconds], ratio(memory, self.memory))[1:]


def _tree(root: int, nodes: int, info: ModelInfo) -> TokenTree:
    """Of this many nodes: two chains that share the root, where the model takes trees; a mask costs what it costs."""
    tree = TokenTree(root)
    ends = [0, 0]
    for i in range(nodes - 1):
        branch = i % 2 if info.trees else 0
        ends[branch] = tree.add(ends[branch], (root + 1 + branch) % info.vocab_size, Origin.DRAFT)
    return tree


def _time(context: Context, tree: TokenTree, tokens: Sequence[int]) -> float:
    began = time.perf_counter()
    logits_NV = context.model.score([ScoreRequest(context.slot, tree)])[0]
    logits_NV[-1, -1].item()  # waits for the device
    taken = time.perf_counter() - began
    context.follow(tokens)
    return taken


def _spread(times: Sequence[float]) -> float:
    if len(times) < 2:
        return 0.0
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return high - low


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
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("format") != FORMAT:
            return None
        rows, contexts = tuple(values["rows"]), tuple(values["contexts"])
        seconds, spread = (tuple(tuple(map(float, times)) for times in values[name]) for name in ("seconds", "spread"))
        if (
            any([len(times) for times in table] != [len(rows)] * len(contexts) for table in (seconds, spread))
            or not rows
        ):
            return None
        memory = None if values.get("memory") is None else float(values["memory"])
        return CostProfile(values["model"], values["machine"], rows, contexts, seconds, spread, memory)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
