"""What a training has come to: the figures before and after, and the page that lies beside the draft."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ouroboros._version import __version__
from ouroboros.training.measure import Measured
from ouroboros.training.settings import DistillSettings
from ouroboros.training.workspace import REPORT

__all__ = ["DistillReport", "write_report"]


@dataclass(frozen=True, slots=True)
class DistillReport:
    """A finished training.

    Attributes:
        loss: the one that was used. trials: under ``auto`` tokens per target forward of each, on prompts to choose by.
        final_loss: mean of the last steps. before, after: real decoding of the held-out prompts with the draft that it
            began with, and with the one it has become. rounds: tokens per target forward on the same prompts behind
            each round, replayed. train_tokens: tokens that were learned from. parameters: of draft and target.
        seconds: of each stage, of this call alone. phrases: written to the pool; None without one.
    """

    settings: DistillSettings
    loss: str
    trials: Mapping[str, float]
    final_loss: float
    before: Sequence[Measured]
    after: Sequence[Measured]
    rounds: Sequence[float]
    train_prompts: int
    train_tokens: int
    draft_parameters: int
    target_parameters: int
    seconds: Mapping[str, float]
    phrases: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values: dict[str, Any] = {
            name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("before", "after")
        }
        values["settings"] = asdict(self.settings)
        values["before"] = [one.to_dict() for one in self.before]
        values["after"] = [one.to_dict() for one in self.after]
        values["version"] = __version__
        return values


def write_report(report: DistillReport, out: Path) -> None:
    """Writes README.md and distillation.json."""
    text = json.dumps(report.to_dict(), indent=2, ensure_ascii=False)
    (out / "README.md").write_text(_page(report), encoding="utf-8")
    (out / REPORT).write_text(text + "\n", encoding="utf-8")


def _page(report: DistillReport) -> str:
    settings = report.settings
    begun = {
        "draft": f"the draft `{settings.draft}`",
        "pruned": f"a copy of the target with {settings.layers} of its layers",
        "new": "random weights",
    }[settings.start]
    lines = [
        f"# A draft model for {Path(settings.target).name}",
        "",
        f"{report.draft_parameters / 1e6:.1f} M parameters, for a target of {report.target_parameters / 1e6:.1f} M.",
        f"Made by `ouroboros distill` {__version__}, beginning with {begun}: {settings.steps} steps of "
        f"{settings.batch} sequences, loss `{report.loss}`, {settings.rounds} on-policy rounds, seed {settings.seed}, "
        f"on the target's own answers to {report.train_prompts} prompts.",
        "",
        f"On {settings.held_out} prompts that were set aside, {settings.new_tokens} new tokens each:",
        "",
        "| method | temperature | tokens per target forward before | after (95 %) | tokens/s before | after |",
        "|---|---|---|---|---|---|",
    ]
    for old, new in zip(report.before, report.after, strict=True):
        low, high = new.interval
        name = f"speculative, γ = {settings.gamma}" if new.method == "speculative" else new.method
        lines.append(
            f"| {name} | {new.temperature:g} | {old.tokens_per_target_forward:.2f} | "
            f"{new.tokens_per_target_forward:.2f} ({low:.2f}–{high:.2f}) | {old.tokens_per_second:.1f} | "
            f"{new.tokens_per_second:.1f} |"
        )
    lines += [
        "",
        "A draft model makes its target faster and changes nothing of what that says. Alone it is of no use.",
    ]
    return "\n".join(lines) + "\n"
