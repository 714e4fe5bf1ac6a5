"""What a benchmark found, as JSON lines: settings, what was measured before, then runs, case by case.

    settings   settings, versions, machine, models, commit: the first line
    profiles   T(n) of both models            tuning   the search for the baselines' options
    options    of each contestant             peers    what was set of other programs
    absent     one that could not run, and why
    run        one contestant on one case     case     what all runs of a case share; it closes the case

A case is one prompt at one temperature: (task, item, turn, temperature). What stands behind the last closed case was
interrupted, and is left out.
"""

from __future__ import annotations

import dataclasses
import json
import lzma
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ouroboros._version import __version__
from ouroboros.control.profile import CostProfile
from ouroboros.errors import InputError
from ouroboros.files import parse_json

__all__ = ["Case", "Results", "Run", "environment", "read_results"]

_MOST = 1 << 28  # bytes of an unpacked file: a hundred times the longest benchmark of this project

Key = tuple[str, str, int, float]


@dataclass(frozen=True, slots=True)
class Run:
    """One contestant, or a peer, on one case. Seconds; counts as in ``Stats``.

    Attributes:
        label: the contestant's. decoded_tokens: those of the new tokens that decode_seconds are for.
        steps: (new tokens, seconds) of each target forward; empty for a peer.
        same: whether the tokens are plain decoding's; None where they need not be (a peer that samples).
        divergence: where they are not, what the audit says of it. token_ids: where they are not plain decoding's.
        right: whether the answer is, where it was judged.
    """

    label: str
    method: str
    prefill_seconds: float
    draft_prefill_seconds: float
    decode_seconds: float
    decoded_tokens: int
    new_tokens: int
    draft_seconds: float = 0.0
    target_forwards: int = 0
    draft_forwards: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    accepted_by_origin: Mapping[str, int] = field(default_factory=dict)
    steps: tuple[tuple[int, float], ...] = ()
    same: bool | None = None
    divergence: Mapping[str, Any] | None = None
    token_ids: tuple[int, ...] | None = None
    right: bool | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One prompt at one temperature.

    Attributes:
        cut_tokens: of the prompt's beginning that were left out. token_ids: what plain decoding wrote.
        agreed: positions of it at which the draft model draws the same token; None without a draft model.
    """

    task: str
    item: str
    turn: int
    temperature: float
    seed: int
    prompt_tokens: int
    cut_tokens: int
    repeated_4grams: float
    agreed: int | None
    token_ids: tuple[int, ...]
    runs: tuple[Run, ...] = ()

    @property
    def key(self) -> Key:
        return self.task, self.item, self.turn, self.temperature


@dataclass(slots=True)
class Results:
    """The file's contents so far; ``add`` writes what is added to it, case by case at once."""

    path: Path
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    profiles: dict[str, CostProfile] = field(default_factory=dict)
    tuning: dict[str, Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)  # of each contestant at each temperature, all of them
    absent: dict[str, str] = field(default_factory=dict)
    peers: dict[str, Any] = field(default_factory=dict)
    cases: dict[Key, Case] = field(default_factory=dict)
    closed: int = 0  # bytes of the file up to the last line that is no run of an open case

    def start(self) -> None:
        """A new file, of one line.

        Raises:
            InputError: it cannot be written, or has the name of a compact one.
        """
        self._check_name()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("", encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write the results {str(self.path)!r}: {error.strerror}") from None
        self._write([{"kind": "settings", "settings": self.settings, **self.environment}])

    def go_on(self) -> None:
        """Cuts off what was interrupted.

        Raises:
            InputError: a compact file, which is for reading.
        """
        self._check_name()
        with self.path.open("r+b") as file:
            file.truncate(self.closed)

    def _check_name(self) -> None:
        if self.path.suffix == ".xz":
            raise InputError(f"the compact results {str(self.path)!r} are for reading: give another file to write to")

    def add_profiles(self, profiles: Mapping[str, CostProfile]) -> None:
        self.profiles.update(profiles)
        self._write([{"kind": "profiles", **{name: dataclasses.asdict(one) for name, one in profiles.items()}}])

    def add_tuning(self, tuning: dict[str, Any]) -> None:
        self.tuning = tuning
        self._write([{"kind": "tuning", **tuning}])

    def add_options(self, options: dict[str, Any]) -> None:
        self.options = options
        self._write([{"kind": "options", **options}])

    def add_absent(self, name: str, reason: str) -> None:
        if self.absent.get(name) != reason:
            self.absent[name] = reason
            self._write([{"kind": "absent", "name": name, "reason": reason}])

    def add_peers(self, settings: Mapping[str, Any]) -> None:
        self.peers.update(settings)
        self._write([{"kind": "peers", **settings}])

    def add(self, case: Case) -> None:
        self.cases[case.key] = case
        key = {name: getattr(case, name) for name in ("task", "item", "turn", "temperature")}
        lines = [{"kind": "run", **key, **_run_line(run)} for run in case.runs]
        fields = {f.name: getattr(case, f.name) for f in dataclasses.fields(case) if f.name != "runs"}
        self._write([*lines, {"kind": "case", **fields}])

    def _write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n" for line in lines)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)


def _run_line(run: Run) -> dict[str, Any]:
    """Without what is empty; steps in microseconds."""
    values = {f.name: getattr(run, f.name) for f in dataclasses.fields(run)}
    values["steps"] = [[tokens, round(1e6 * seconds)] for tokens, seconds in run.steps]
    return {
        name: round(value, 6) if isinstance(value, float) else value
        for name, value in values.items()
        if value is not None and value not in ((), [], {})
    }


def _run(line: Mapping[str, Any]) -> Run:
    values = {f.name: line[f.name] for f in dataclasses.fields(Run) if f.name in line}
    values["steps"] = tuple((tokens, micros / 1e6) for tokens, micros in line.get("steps", ()))
    if values.get("token_ids") is not None:
        values["token_ids"] = tuple(values["token_ids"])
    return Run(**values)


def read_results(path: Path) -> Results:
    """The results in a file. What was interrupted is left out.

    Raises:
        InputError: unreadable, or no results.
    """
    try:
        lines = _read(path).decode().splitlines(keepends=True)
    except (OSError, UnicodeDecodeError, lzma.LZMAError, EOFError) as error:
        raise InputError(f"cannot read the results {str(path)!r}: {getattr(error, 'strerror', error)}") from None
    results: Results | None = None
    runs: list[Run] = []
    size = 0
    for number, text in enumerate(lines, 1):
        try:
            line = parse_json(text)
            kind = line.pop("kind")
            if results is None:
                assert kind == "settings"
                results = Results(path, line.pop("settings"), line)
            elif kind == "run":
                runs.append(_run(line))
            elif kind == "case":
                case = Case(**{**line, "token_ids": tuple(line["token_ids"]), "runs": tuple(runs)})
                results.cases[case.key], runs = case, []
            elif kind == "profiles":
                results.profiles.update({name: _profile(values) for name, values in line.items()})
            elif kind == "tuning":
                results.tuning = line
            elif kind == "options":
                results.options = line
            elif kind == "peers":
                results.peers.update(line)
            elif kind == "absent":
                results.absent[line["name"]] = line["reason"]
        except (ValueError, KeyError, TypeError, AttributeError, AssertionError):
            if results is not None and number == len(lines) and not text.endswith("\n"):
                break  # written in part
            raise InputError(f"line {number} of {str(path)!r} is none of a benchmark's results") from None
        size += len(text.encode())
        if kind != "run":
            results.closed = size
    if results is None:
        raise InputError(f"{str(path)!r} is empty; a benchmark's results begin with a line of settings")
    return results


def _read(path: Path) -> bytes:
    """The file's bytes, unpacked where bench/compact.py has made it."""
    if path.suffix != ".xz":
        return path.read_bytes()
    with lzma.open(path) as file:
        data = file.read(_MOST + 1)
    if len(data) > _MOST:
        raise lzma.LZMAError(f"more than {_MOST} bytes when unpacked")
    return data


def _profile(values: Mapping[str, Any]) -> CostProfile:
    def tuples(value: Any) -> Any:
        return tuple(tuples(part) for part in value) if isinstance(value, list) else value

    known = {one.name for one in dataclasses.fields(CostProfile)}  # earlier versions wrote more
    return CostProfile(**{name: tuples(value) for name, value in values.items() if name in known})


def environment(machine: str, models: Mapping[str, str]) -> dict[str, Any]:
    """What the figures depend on and no setting says."""
    return {
        "versions": {"ouroboros": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "machine": machine,
        "models": dict(models),
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The last one that changed this package, with ``-dirty`` where it was changed since; None outside git."""
    package = Path(__file__).parents[1]

    def git(*words: str) -> str:
        command = ["git", *words, "--", str(package)]
        return subprocess.run(command, cwd=package, capture_output=True, text=True, timeout=10, check=True).stdout

    try:
        return git("log", "-1", "--format=%h").strip() + ("-dirty" if git("status", "--porcelain").strip() else "")
    except (OSError, subprocess.SubprocessError):
        return None
