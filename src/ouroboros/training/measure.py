"""What a draft is worth: real decoding of held-out prompts by the library itself. It knows nothing of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ouroboros.config import METHODS, SpeculativeOptions, options_for
from ouroboros.generate import Decoder
from ouroboros.pairing import load
from ouroboros.training.records import Job
from ouroboros.training.replay import interval

__all__ = ["MEASURED", "Measured", "measure"]

MEASURED = ("speculative", "ouroboros")


@dataclass(frozen=True, slots=True)
class Measured:
    """One method at one temperature. Each prompt's counts; seconds of decoding, prefill not counted."""

    method: str
    temperature: float
    new_tokens: tuple[int, ...]
    target_forwards: tuple[int, ...]
    draft_tokens: tuple[int, ...]
    accepted_tokens: tuple[int, ...]
    seconds: tuple[float, ...]

    @property
    def tokens_per_target_forward(self) -> float:
        return sum(self.new_tokens) / max(1, sum(self.target_forwards))

    @property
    def acceptance_rate(self) -> float:
        return sum(self.accepted_tokens) / max(1, sum(self.draft_tokens))

    @property
    def tokens_per_second(self) -> float:
        return sum(self.new_tokens) / max(1e-9, sum(self.seconds))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval of ``tokens_per_target_forward``, over prompts."""
        return interval(self.new_tokens, self.target_forwards)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Measured:
        """From ``dataclasses.asdict``, by way of JSON."""
        fields: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "tokens_per_target_forward": self.tokens_per_target_forward,
            "tokens_per_target_forward_95": self.interval,
            "acceptance_rate": self.acceptance_rate,
            "tokens_per_second": self.tokens_per_second,
        }


def measure(
    decoder: Decoder,
    draft: Path,
    jobs: Sequence[Job],
    new_tokens: int,
    gamma: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Measured]:
    """Decodes every job with the draft by speculative decoding with chains of ``gamma`` and by Ouroboros, each prompt
    with an empty pool.

    Args:
        decoder: whose target and tokenizer are used.
    """
    found = []
    total, done = len(MEASURED) * len(jobs), 0
    draft_model: Any = draft
    for method in MEASURED:
        options = SpeculativeOptions(draft_tokens=gamma) if method == "speculative" else options_for(method, None)
        assert type(options) is METHODS[method]
        pair = load(
            decoder.target,
            draft_model,
            tokenizer=decoder.tokenizer,
            method=method,
            options=options,
            dtype=decoder.target.info.dtype,
            device=decoder.target.info.device,
            pool=False,
        )
        draft_model = pair.draft
        for temperature in sorted({job.temperature for job in jobs}):
            rows = []
            for job in jobs:
                if job.temperature == temperature:
                    result = pair.generate(
                        list(job.prompt), max_new_tokens=new_tokens, temperature=temperature, seed=job.seed
                    )
                    stats = result.stats
                    rows.append((stats.new_tokens, stats.target_forwards, stats.draft_tokens, stats.accepted_tokens,
                                 stats.decode_seconds))  # fmt: skip
                    done += 1
                    progress(done, total)
            new, forwards, offered, accepted, seconds = zip(*rows, strict=True)
            found.append(Measured(method, temperature, new, forwards, offered, accepted, seconds))
    return found
