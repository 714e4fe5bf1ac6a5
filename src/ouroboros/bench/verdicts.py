"""What an audit finds: the verdict on each output, on each method, and on all of them. audit.py says what they mean."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ouroboros.bench.nearness import Choice
from ouroboros.bench.rounding import Noise
from ouroboros.config import SamplingParams

__all__ = ["DEFECT", "IDENTICAL", "NEAR_TIE", "AuditReport", "Divergence", "MethodAudit", "PromptAudit"]

IDENTICAL, NEAR_TIE, DEFECT = "identical", "near-tie", "defect"


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where a method's output first differs from plain decoding's.

    Attributes:
        index: of the new token, from 0. position: of the token in the whole text.
        plain, accelerated: the two tokens; None for an output that has ended.
        margin: between the two best scores of the reference: logits if greedy, else warped logits plus noise; infinite
            where one token is left. tolerance: up to which a difference of two such scores may be rounding.
    """

    index: int
    position: int
    plain: Choice | None
    accelerated: Choice | None
    margin: float
    tolerance: float
    verdict: str


@dataclass(frozen=True, slots=True)
class PromptAudit:
    """One method on one prompt (``number`` from 1). ``compared``: new tokens up to and with the first that differs."""

    number: int
    prompt_tokens: int
    new_tokens: int
    compared: int
    divergence: Divergence | None

    @property
    def verdict(self) -> str:
        return IDENTICAL if self.divergence is None else self.divergence.verdict


@dataclass(frozen=True, slots=True)
class MethodAudit:
    method: str
    prompts: tuple[PromptAudit, ...]

    @property
    def verdict(self) -> str:
        return _worst([prompt.verdict for prompt in self.prompts])

    @property
    def counts(self) -> Mapping[str, int]:
        """Prompts by verdict."""
        found = Counter(prompt.verdict for prompt in self.prompts)
        return {verdict: found[verdict] for verdict in (IDENTICAL, NEAR_TIE, DEFECT)}


@dataclass(frozen=True, slots=True)
class AuditReport:
    """All methods on all prompts. ``params`` has the seed that was used."""

    backend: str
    dtype: str
    device: str
    params: SamplingParams
    noise: Noise
    methods: tuple[MethodAudit, ...]

    @property
    def verdict(self) -> str:
        if self.noise.unexplained:
            return DEFECT
        return _worst([method.verdict for method in self.methods])

    def to_dict(self) -> dict[str, object]:
        """For JSON: the fields with the verdicts; what is not finite is None."""
        names = [name for name in SamplingParams.__dataclass_fields__ if name != "processors"]
        return {
            "verdict": self.verdict,
            "backend": self.backend,
            "dtype": self.dtype,
            "device": self.device,
            "params": {name: _plain(getattr(self.params, name)) for name in names},
            "noise": _plain(self.noise),
            "methods": [
                {
                    "method": method.method,
                    "verdict": method.verdict,
                    "prompts": [
                        {"verdict": prompt.verdict, "equal": prompt.divergence is None, **_fields(prompt)}
                        for prompt in method.prompts
                    ],
                }
                for method in self.methods
            ],
        }


def _worst(verdicts: Sequence[str]) -> str:
    return max(verdicts, key=(IDENTICAL, NEAR_TIE, DEFECT).index)


def _fields(value: object) -> dict[str, object]:
    names = type(value).__dataclass_fields__  # type: ignore[attr-defined]
    return {name: _plain(getattr(value, name)) for name in names}


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value):
        return _fields(value)
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
