"""What a user may choose when a draft is trained for a target: one frozen dataclass.

Invariant: an instance that exists is valid as far as it can be told without looking at files. The command line takes
its defaults from here. This file knows nothing of torch, models or data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ouroboros.config import MAX_SEED
from ouroboros.errors import InputError
from ouroboros.files import parse_json

__all__ = [
    "AUTO_LOSSES",
    "DIVERGENCES",
    "DTYPES",
    "LOSSES",
    "OPTIMIZERS",
    "DistillSettings",
    "Progress",
    "parse_loss",
    "stored_settings",
]

Progress = Callable[[str, int, int, str], None]  # (stage, done, of how many, a figure in words)

DIVERGENCES = ("forward_kl", "reverse_kl", "tv", "noise")  # between the target's distribution and the draft's
LOSSES = (*DIVERGENCES, "text")  # and cross-entropy with the text alone, for which no target is asked
AUTO_LOSSES = ("forward_kl", "reverse_kl", "tv", "forward_kl=0.5,tv=2")  # what ``auto`` tries
OPTIMIZERS = ("adamw", "muon")
WORK = "distillation"  # below the new directory: what an interrupted run goes on from
DTYPES = ("auto", "float32", "bfloat16")


def parse_loss(text: str) -> dict[str, float]:
    """Weights of the losses in ``forward_kl``, or in a mix such as ``forward_kl=0.7,tv=0.3``.

    Raises:
        InputError: an unknown loss, or a weight that is no number above 0.
    """
    allowed = f"auto, one of {', '.join(LOSSES)}, or a mix such as 'forward_kl=0.5,tv=0.5'"
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = part.strip().partition("=")
        try:
            weight = float(number) if equals else 1.0
        except ValueError:
            weight = math.nan
        if name not in LOSSES or name in weights or not (math.isfinite(weight) and weight > 0):
            raise InputError(f"loss must be {allowed}, not {text!r}")
        weights[name] = weight
    return weights


@dataclass(frozen=True, slots=True)
class DistillSettings:
    """One training of a draft for a target.

    Attributes:
        target: directory or hub id. out: the draft's new directory. prompts: files of prompts for the target's own
            generations. texts: files of plain text to train on as well.
        draft: the draft to begin with. layers: alone: begin with a copy of the target that keeps so many of its layers,
            evenly spread; with the fields below: of the new model. hidden, heads, inner, parameters: sizes of a new
            model with random weights; ``parameters`` chooses what is not given.
        loss: see ``parse_loss``, or ``auto``: the one whose short trial of ``trial_steps`` is accepted most.
        steps: of the optimiser, all rounds together. batch: sequences a step; micro_batch: of them in one forward.
        length: the most tokens of a sequence. learning_rate: the peak; None: by start and optimiser.
        optimizer: ``adamw``, or ``muon`` for the matrices inside the layers and AdamW for the rest.
        rounds: on-policy rounds, in which the draft writes and the target scores, behind a first one on the target's
            text. samples: generations for each prompt. temperatures: of the generations, in turn. new_tokens: of each.
        held_out: prompts that are set aside to measure with. measure_temperatures: at which. gamma: draft tokens of the
            chain that is measured.
        pool: file to write the phrases of the generations to.
        dtype: of the computation: ``auto`` is bfloat16 autocast on CUDA and float32 on a CPU; weights are float32
            while they are trained. save_dtype: of the file; ``auto``: the target's.
        checkpoint_every: steps. seed: of everything that is drawn.

    Raises:
        InputError: a value outside its range, or sizes that contradict each other.
    """

    target: str
    out: str
    prompts: tuple[str, ...]
    texts: tuple[str, ...] = ()
    draft: str | None = None
    layers: int | None = None
    hidden: int | None = None
    heads: int | None = None
    inner: int | None = None
    parameters: int | None = None
    loss: str = "auto"
    steps: int = 1000
    trial_steps: int | None = None
    batch: int = 16
    micro_batch: int | None = None
    length: int = 512
    learning_rate: float | None = None
    optimizer: str = "adamw"
    rounds: int = 1
    samples: int = 1
    temperatures: tuple[float, ...] = (1.0, 0.7)
    new_tokens: int = 128
    held_out: int = 16
    measure_temperatures: tuple[float, ...] = (0.0, 1.0)
    gamma: int = 5
    pool: str | None = None
    dtype: str = "auto"
    save_dtype: str = "auto"
    device: str = "auto"
    checkpoint_every: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.prompts:
            raise InputError("prompts must be at least one file: the target's own text is what a draft learns from")
        for name, least in (
            ("steps", 1),
            ("batch", 1),
            ("length", 8),
            ("rounds", 0),
            ("samples", 1),
            ("new_tokens", 1),
            ("held_out", 1),
            ("gamma", 1),
            ("checkpoint_every", 1),
            ("seed", 0),
        ):
            _whole(name, getattr(self, name), least)
        for name in ("layers", "hidden", "heads", "inner", "parameters", "micro_batch", "trial_steps"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 1)
        if self.seed > MAX_SEED:
            raise InputError(f"seed must be a whole number from 0 to {MAX_SEED}, not {self.seed}")
        if self.rounds >= self.steps:
            raise InputError(f"rounds must be fewer than the {self.steps} steps, not {self.rounds}")
        rate = self.learning_rate
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise InputError(f"learning_rate must be a number above 0, not {rate!r}")
        for name in ("temperatures", "measure_temperatures"):
            values = getattr(self, name)
            if not values or any(not (math.isfinite(value) and value >= 0) for value in values):
                raise InputError(f"{name} must be numbers of at least 0, not {values!r}")
        if self.loss != "auto" and "text" in parse_loss(self.loss) and self.rounds:
            raise InputError(f"rounds must be 0 with the loss {self.loss!r}: nobody learns from a text of his own")
        for name, options in (("optimizer", OPTIMIZERS), ("dtype", DTYPES), ("save_dtype", DTYPES)):
            if getattr(self, name) not in options:
                raise InputError(f"{name} must be one of {', '.join(options)}, not {getattr(self, name)!r}")
        self._check_start()

    def _check_start(self) -> None:
        new = [name for name in ("hidden", "heads", "inner", "parameters") if getattr(self, name) is not None]
        if self.draft is not None and (new or self.layers is not None):
            raise InputError(
                f"draft {self.draft!r} has its sizes already; {(new or ['layers'])[0]} cannot be given too"
            )
        if self.draft is None and not new and self.layers is None:
            raise InputError("no draft to begin with: give draft, layers (a pruned copy), hidden or parameters")
        if new and self.hidden is None and self.parameters is None:
            raise InputError(f"{new[0]} is for a new model, which needs hidden or parameters too")

    @property
    def start(self) -> str:
        """``draft``, ``pruned`` or ``new``: what the training begins with."""
        if self.draft is not None:
            return "draft"
        return "pruned" if self.hidden is None and self.parameters is None else "new"

    @property
    def peak_rate(self) -> float:
        """The learning rate that is used: smaller where there is something to keep."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 1e-3 if self.start == "new" else 2e-4


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, not {value!r}")


def stored_settings(out: str, given: Mapping[str, Any]) -> DistillSettings:
    """The settings of the run in ``out``.

    Args:
        given: what the user asks for now; it must agree.

    Raises:
        InputError: there is no such run, or it was begun with another value.
    """
    try:
        values: dict[str, Any] = parse_json((Path(out) / WORK / "settings.json").read_text(encoding="utf-8"))
        values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        found = DistillSettings(**values)
    except (OSError, ValueError, TypeError):
        raise InputError(f"out {out!r} holds no training to resume") from None
    for name, value in given.items():
        if getattr(found, name) != value:
            raise InputError(
                f"{name} is {getattr(found, name)!r} in the training of {out!r}, and cannot be {value!r} now"
            )
    return found
