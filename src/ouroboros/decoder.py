"""The loop: propose, score, verify, commit, emit, observe.

Invariant: before each step the target's cache holds the committed sequence without its last token, which is the root of
the tree. The loop never touches a cache, and yields the new tokens of each step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from ouroboros.drafting.base import Drafter
from ouroboros.models.base import ScoreRequest
from ouroboros.models.context import Context
from ouroboros.sampling import Sampler
from ouroboros.stats import StatsRecorder
from ouroboros.tree import Origin
from ouroboros.verify import verify

__all__ = ["Step", "decode"]


@dataclass(frozen=True, slots=True)
class Step:
    """The tokens that one target forward yielded, in order, and where each came from.

    ``logits_TV``: the target's raw logits that each token was drawn from, where they were asked for.
    """

    tokens: tuple[int, ...]
    origins: tuple[Origin, ...]
    logits_TV: Tensor | None = None


def decode(
    context: Context,
    start_drafter: Callable[[], Drafter],
    sampler: Sampler,
    prompt: Sequence[int],
    max_new_tokens: int,
    stop_ids: Set[int],
    recorder: StatsRecorder,
    keep_logits: bool = False,
) -> Generator[Step]:
    """Yields steps until ``max_new_tokens``, a stop token or the end of the context.

    Args:
        context: of the target model; what it holds of the prompt already is not computed again.
        start_drafter: makes and prefills the drafter. prompt: at least one token, shorter than the model's context.
        recorder: gets counts and times; what is emitted is counted by whoever keeps it.
        keep_logits: whether steps carry their logits.
    """
    clock = time.perf_counter
    began = clock()
    target, slot = context.model, context.slot
    sequence = list(prompt)
    recorder.cached_tokens = context.prefill(sequence)
    prefilled = clock()
    drafter = start_drafter()
    recorder.prefill_seconds = prefilled - began
    recorder.draft_prefill_seconds = clock() - prefilled
    remaining = min(max_new_tokens, target.info.max_positions - len(prompt))
    while remaining > 0:
        began = clock()
        tree = drafter.propose(sequence, remaining - 1)
        drafted = clock()
        logits_NV = target.score([ScoreRequest(slot, tree)])[0]
        verdict = verify(tree, logits_NV, sampler, sequence, stop_ids)
        context.commit(verdict.path, sequence)
        drafter.observe(verdict)
        tokens = verdict.tokens[:remaining]
        sequence += tokens
        remaining -= len(tokens)
        for origin, depth in zip(tree.origins[1:], tree.depths[1:], strict=True):
            recorder.offer(origin.label, depth)
        recorder.target_forwards += 1
        recorder.draft_forwards = drafter.draft_forwards
        recorder.draft_seconds += drafted - began
        recorder.decode_seconds += clock() - began
        rows = logits_NV[torch.tensor(verdict.path[: len(tokens)])] if keep_logits else None
        yield Step(tokens, verdict.origins[: len(tokens)], rows)
        if tokens[-1] in stop_ids:
            return
