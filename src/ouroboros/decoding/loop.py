"""The loop: propose, score, verify, commit, emit, observe. A flow: it yields what it needs of the target model too.

Invariant: before each step the target's cache holds the committed sequence without its last token, which is the root of
the tree. The loop never touches a cache, and yields the new tokens of each step.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from ouroboros.drafting.base import Drafter
from ouroboros.flow import Answer, Flow, Meter, Score, metered, read
from ouroboros.models.base import ScoreRequest
from ouroboros.models.context import Context
from ouroboros.sampling import Sampler
from ouroboros.stats import Decision, StatsRecorder
from ouroboros.tree import Origin, TokenTree
from ouroboros.verify import verify

__all__ = ["Begun", "Event", "Step", "decode"]


@dataclass(frozen=True, slots=True)
class Begun:
    """The prompt has been read.

    Attributes:
        cached_tokens: of the prompt, that the target's cache held already. draft_seconds: for the draft model to read
            it. seconds: all until now, as the driver measures it.
    """

    cached_tokens: int
    draft_seconds: float
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """The tokens that one target forward yielded, in order, and where each came from.

    Attributes:
        tree: what the target was asked. draft_forwards, draft_seconds: what was drafted before, and the time until the
            target was asked. decision: of the policy, where there is one. logits_TV: the target's raw logits that each
            token was drawn from, where they were asked for. seconds: of the step, as the driver measures it.
    """

    tokens: tuple[int, ...]
    origins: tuple[Origin, ...]
    tree: TokenTree
    draft_forwards: int
    draft_seconds: float
    decision: Decision | None = None
    logits_TV: Tensor | None = None
    seconds: float = 0.0

    def record(self, recorder: StatsRecorder, kept: int) -> None:
        """Tells a recorder; the first ``kept`` tokens became output."""
        recorder.step(
            self.tree, self.origins[:kept], self.seconds, self.draft_forwards, self.draft_seconds, self.decision
        )


Event = Begun | Step


def decode(
    context: Context,
    drafter: Drafter,
    sampler: Sampler,
    prompt: Sequence[int],
    max_new_tokens: int,
    stop_ids: Set[int] = frozenset(),
    keep_logits: bool = False,
    room: int | None = None,
) -> Flow[None]:
    """Yields needs, ``Begun`` and then steps until ``max_new_tokens``, a stop token or the end of the context.

    Args:
        context: of the target model; what it holds of the prompt already is not computed again.
        prompt: at least one token, shorter than the model's context. keep_logits: whether steps carry their logits.
            room: new tokens that the context has room for; None: as many as it has positions in all.

    Raises:
        ModelError: the target's logits are no numbers; what was yielded before is right.
    """
    target, slot = context.model, context.slot
    model = f"the target model ({target.info.backend}, {target.info.dtype} on {target.info.device})"
    sequence = list(prompt)
    try:
        context.follow(sequence)
        cached = slot.length
        yield from read(context, sequence)
        reading = Meter()
        yield from metered(drafter.start(sequence), reading)
        yield Begun(cached, reading.seconds)
        remaining = min(max_new_tokens, target.info.max_positions - len(prompt) if room is None else room)
        while remaining > 0:
            drafting = Meter()
            tree = yield from metered(drafter.propose(sequence, remaining - 1), drafting)
            if not target.info.trees:
                tree = tree.chain()
            answer: Answer = yield Score(target, ScoreRequest(slot, tree))
            logits_NV = answer.logits_RV
            verdict = verify(tree, logits_NV, sampler, sequence, stop_ids, model)
            context.commit(verdict.path, sequence)
            decision = drafter.observe(verdict)
            tokens = verdict.tokens[:remaining]
            sequence += tokens
            remaining -= len(tokens)
            kept = logits_NV[torch.tensor(verdict.path[: len(tokens)])] if keep_logits else None
            spent = drafting.seconds + answer.around
            yield Step(tokens, verdict.origins[: len(tokens)], tree, drafting.forwards, spent, decision, kept)
            if tokens[-1] in stop_ids:
                return
    finally:
        drafter.stop(sequence)
