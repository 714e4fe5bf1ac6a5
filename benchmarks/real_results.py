"""The raw file of real_pair.py: settings, machine, processes, then every run of every prompt.

A case is one prompt at one temperature with the runs of all methods on it. The file is JSON, one case a line, written
anew after each case, so that what is interrupted keeps what it has.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ouroboros.errors import InputError
from ouroboros.stream import GenerationResult

__all__ = ["PLAIN", "SUBJECT", "Case", "Raw", "Run", "read_raw", "write_raw"]

PLAIN, SUBJECT = "autoregressive", "ouroboros"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Run:
    """A complete request of one method. Seconds, but for ``step_ms``.

    Attributes:
        label: the method, with its number of draft tokens if that was said: ``speculative-4``.
        began: on the process's clock. wall_seconds: from the call to the last token, prefill and chat template too.
        tokens: new ones. accepted: draft tokens by source. origins: the same, by their finer origin.
        disturbed: a busy program ran beside a part of it.
        differs_at: the first new token that is not plain decoding's; None where all are.
        step_tokens, step_ms: of each target forward, with all that belongs to the step; the first without prefill.
        rows, draft_rows: what was chosen for each step: rows of the target's forward, and of each draft forward.
            Empty for methods that choose nothing.
    """

    label: str
    repeat: int
    began: float
    wall_seconds: float
    prefill_seconds: float
    draft_prefill_seconds: float
    decode_seconds: float
    draft_seconds: float
    tokens: int
    target_forwards: int
    draft_forwards: int
    draft_tokens: int
    finish_reason: str
    accepted: Mapping[str, int] = field(default_factory=dict)
    origins: Mapping[str, int] = field(default_factory=dict)
    disturbed: bool = False
    differs_at: int | None = None
    step_tokens: tuple[int, ...] = ()
    step_ms: tuple[float, ...] = ()
    rows: tuple[int, ...] = ()
    draft_rows: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(cls, label: str, repeat: int, result: GenerationResult, began: float, wall_seconds: float) -> Run:
        """What the result of a request says of it."""
        stats = result.stats
        return cls(
            label=label,
            repeat=repeat,
            began=began,
            wall_seconds=wall_seconds,
            prefill_seconds=stats.prefill_seconds,
            draft_prefill_seconds=stats.draft_prefill_seconds,
            decode_seconds=stats.decode_seconds,
            draft_seconds=stats.draft_seconds,
            tokens=stats.new_tokens,
            target_forwards=stats.target_forwards,
            draft_forwards=stats.draft_forwards,
            draft_tokens=stats.draft_tokens,
            finish_reason=result.finish_reason,
            accepted=stats.accepted_by_source,
            origins=stats.accepted_by_origin,
            rows=tuple(decision.rows for decision in result.decisions),
            draft_rows=tuple(tuple(decision.draft_rows) for decision in result.decisions),
        )


@dataclass(frozen=True, slots=True)
class Case:
    """One prompt at one temperature.

    Attributes:
        process: the place in ``Raw.processes`` of the one that ran it. load_average: of one minute, before it.
        token_ids: what plain decoding wrote.
    """

    prompt: str
    temperature: float
    seed: int
    process: int
    prompt_tokens: int
    load_average: float
    token_ids: tuple[int, ...]
    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Raw:
    """One scenario's results.

    Attributes:
        settings: what was asked for. environment: versions, machine, models, commit.
        processes: load_seconds of each process that measured a part, and the [begin, end] of busy programs while it
            measured, on its clock.
    """

    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    processes: list[dict[str, Any]] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)


def write_raw(raw: Raw, path: Path) -> None:
    """Writes the file, whole or not at all, and makes its directory."""
    values = {"format": FORMAT, "settings": raw.settings, "environment": raw.environment, "processes": raw.processes}
    head = "".join(f'"{name}":{_text(value)},\n' for name, value in values.items())
    cases = ",\n".join(_text(_compact(case)) for case in raw.cases)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(f'{{{head}"cases":[\n{cases}\n]}}\n', encoding="utf-8")
    part.replace(path)


def read_raw(path: Path) -> Raw:
    """
    Raises:
        InputError: the file cannot be read, or is none of ``write_raw``'s.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise ValueError(values["format"])
        return Raw(
            values["settings"], values["environment"], values["processes"], [_case(one) for one in values["cases"]]
        )
    except OSError as error:
        raise InputError(f"cannot read the results {str(path)!r}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{str(path)!r} holds no results of this benchmark ({type(error).__name__})") from None


def _case(values: Mapping[str, Any]) -> Case:
    return Case(**{**_tuples(values), "runs": tuple(Run(**_tuples(run)) for run in values["runs"])})


def _text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _compact(value: Any) -> Any:
    """A dataclass as a dictionary without what is empty or None; floats to four digits behind the point at most."""
    if isinstance(value, Case | Run):
        fields = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
        kept = {name: part for name, part in fields.items() if part is not None and part is not False}
        return {name: _compact(part) for name, part in kept.items() if part not in ((), {})}
    if isinstance(value, tuple):
        return [_compact(part) for part in value]
    return round(value, 4) if isinstance(value, float) else value


def _tuples(value: Any) -> Any:
    """The value with its lists, at any depth, as tuples."""
    if isinstance(value, list):
        return tuple(_tuples(part) for part in value)
    if isinstance(value, dict):
        return {name: _tuples(part) for name, part in value.items()}
    return value
