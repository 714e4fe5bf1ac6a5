"""What a peer is: an engine that takes and gives token ids, so that no tokenizer comes between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Absent", "Peer", "PeerResult"]


@dataclass(frozen=True, slots=True)
class PeerResult:
    """What a peer wrote, and how long it took.

    Attributes:
        token_ids: the new tokens; a closing end-of-text token is one of them.
        prefill_seconds: for the prompt, with the draft model's share where there is one.
        decode_seconds: for ``decoded_tokens`` of the new tokens, the last ones. An engine whose prompt is read apart
            has all of them in it; transformers reads the prompt and writes its first tokens in one forward, whose
            tokens are in neither. So decoding speed is ``decoded_tokens / decode_seconds`` for each, and end-to-end
            speed ``len(token_ids) / (prefill_seconds + decode_seconds)``.
    """

    token_ids: tuple[int, ...]
    prefill_seconds: float
    decode_seconds: float
    decoded_tokens: int


class Peer(Protocol):
    """``settings``: what was set to other than the engine's own defaults, and versions: for the records."""

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> dict[str, object]: ...

    def generate(
        self, prompt_ids: Sequence[int], new_tokens: int, *, temperature: float, seed: int, ignore_eos: bool
    ) -> PeerResult:
        """Temperature 0 is greedy. Samples are drawn by the engine's own generator: the seed repeats its own runs.

        Raises:
            InputError: what the engine refuses, as more tokens than its context. LoadError: the engine has ended.
        """
        ...

    def close(self) -> None:
        """Gives the weights' memory back; calling it twice is fine."""
        ...


@dataclass(frozen=True, slots=True)
class Absent:
    """A peer that cannot run here, and why: one line."""

    name: str
    reason: str
