"""Acceptance without the target: what a draft would have been accepted, told from recorded generations.

The target's draw at a position is a fixed function of (logits, seed, position), and a draft draws with the same noise.
So where the record holds the target's tokens, one forward of the draft over the whole record tells at which positions
its draw is the target's, and the steps of speculative decoding follow: a chain is accepted up to the first position
where it is not. What the draft draws behind that position does not matter. Exact up to rounding; a test holds it
against real decoding.

Tensor names: B sequences, L tokens, T tokens of one record, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ouroboros.config import SamplingParams
from ouroboros.sampling import Sampler
from ouroboros.training.records import Record

__all__ = ["Replay", "agreements", "chain", "interval", "replay"]


@dataclass(frozen=True, slots=True)
class Replay:
    """Acceptance of a draft over records.

    Attributes:
        tokens, forwards: of each record, with chains of γ draft tokens. agreed: positions where the draft's draw is the
            target's. positions: of all.
    """

    tokens: tuple[int, ...]
    forwards: tuple[int, ...]
    agreed: int
    positions: int

    @property
    def tokens_per_target_forward(self) -> float:
        return sum(self.tokens) / max(1, sum(self.forwards))

    @property
    def agreement(self) -> float:
        return self.agreed / max(1, self.positions)


@torch.inference_mode()
def agreements(draft: Any, records: Sequence[Record], vocab_size: int, batch: int = 8) -> list[list[bool]]:
    """For each record and each of its tokens: whether ``draft`` draws it too, given all tokens before it.

    Args:
        draft: a transformers module. vocab_size: of the target. batch: records a forward.
    """
    device = next(draft.parameters()).device
    found: list[list[bool]] = []
    for start in range(0, len(records), batch):
        some = records[start : start + batch]
        longest = max(len(one.prompt) + len(one.tokens) for one in some)
        ids_BL = torch.zeros(len(some), longest, dtype=torch.long)
        for row, one in enumerate(some):
            ids_BL[row, : len(one.prompt) + len(one.tokens)] = torch.tensor([*one.prompt, *one.tokens])
        logits_BLV = draft(input_ids=ids_BL.to(device), use_cache=False).logits
        for row, one in enumerate(some):
            first, count = len(one.prompt), len(one.tokens)
            logits_TV = logits_BLV[row, first - 1 : first + count - 1].float()
            sampler = Sampler(SamplingParams(temperature=one.temperature, seed=one.seed), one.seed, vocab_size, first)
            drawn = sampler.draw(logits_TV, range(first, first + count), [()] * count)
            found.append([mine == real for mine, real in zip(drawn, one.tokens, strict=True)])
    return found


def chain(agreed: Sequence[bool], gamma: int, budget: int) -> int:
    """Target forwards that speculative decoding needs for a record's tokens.

    Args:
        agreed: see ``agreements``. gamma: draft tokens a step. budget: new tokens asked for.
    """
    place = forwards = 0
    while place < len(agreed):
        room = min(gamma, budget - place - 1)
        accepted = 0
        while accepted < room and place + accepted < len(agreed) and agreed[place + accepted]:
            accepted += 1
        place += accepted + 1  # the target's own token; past an accepted end-of-sequence there is none to come
        forwards += 1
    return forwards


def replay(draft: Any, records: Sequence[Record], vocab_size: int, gamma: int = 5) -> Replay:
    """Acceptance of ``draft`` over records of the target (see ``agreements`` and ``chain``)."""
    found = agreements(draft, records, vocab_size)
    forwards = tuple(chain(agreed, gamma, one.budget) for agreed, one in zip(found, records, strict=True))
    counts = tuple(len(one.tokens) for one in records)
    return Replay(counts, forwards, sum(map(sum, found)), sum(counts))


def interval(
    tokens: Sequence[float], forwards: Sequence[float], seed: int = 0, rounds: int = 1000
) -> tuple[float, float]:
    """95 % bootstrap interval of the ratio of sums, over records (or prompts)."""
    rng = random.Random(seed)
    pairs = list(zip(tokens, forwards, strict=True))
    values = []
    for _ in range(rounds):
        some = rng.choices(pairs, k=len(pairs))
        values.append(sum(t for t, _ in some) / max(1e-9, sum(f for _, f in some)))
    values.sort()
    return values[round(0.025 * rounds)], values[round(0.975 * rounds) - 1]
