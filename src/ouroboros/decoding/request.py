"""A request, and the flow that decodes it: the one place where drafter and loop are put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

from ouroboros.config import MethodOptions
from ouroboros.control.experience import Control
from ouroboros.control.load import Load
from ouroboros.decoding.loop import decode
from ouroboros.drafting.factory import build_drafter
from ouroboros.drafting.forced import ForcedDrafter
from ouroboros.drafting.predicted import PredictedDrafter
from ouroboros.flow import Flow
from ouroboros.models.context import Context
from ouroboros.phrases.memory import Memory
from ouroboros.sampling import Sampler

__all__ = ["Request", "start"]


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be decoded, checked and in tokens.

    Attributes:
        prompt: token ids, at least one. sampler: draws, by the request's parameters and seed. stop_ids: tokens that end
            it. memory: what earlier requests left, and this one adds to. forced: tokens of the only continuation of a
            text, as far as there is but one. keep_logits: whether steps carry the target's logits. written: how many of
            the prompt's tokens, at its end, the request wrote itself before it was put back. room: see ``decode``.
            prediction: tokens that the output is expected to be. options: of a method of its own; None: as everybody's.
    """

    prompt: Sequence[int]
    sampler: Sampler
    stop_ids: Set[int]
    memory: Memory
    forced: Callable[[Sequence[int]], list[int]] | None = None
    keep_logits: bool = False
    written: int = 0
    room: int | None = None
    prediction: Sequence[int] = ()
    options: MethodOptions | None = None


def start(
    request: Request,
    options: MethodOptions,
    target: Context,
    draft: Context | None,
    control: Control | None,
    load: Load | None = None,
) -> Flow[None]:
    """The flow of a request.

    Args:
        target, draft: caches to begin in; what they hold of the prompt is not computed again. control: what was learned
            of costs and texts; None decodes by fixed sizes. load: what it shares forwards with; None: nothing.
    """
    prompt, sampler, stop_ids = request.prompt, request.sampler, request.stop_ids
    options = request.options or options
    drafter = build_drafter(options, prompt, sampler, request.memory, stop_ids, target.model, draft, control, load)
    if request.prediction:
        costs = None if control is None else control.costs(target.model)
        drafter = PredictedDrafter(drafter, request.prediction, len(prompt) - request.written, load, costs)
    if request.forced is not None:
        drafter = ForcedDrafter(drafter, request.forced)
    new = sampler.params.max_new_tokens - request.written
    return decode(target, drafter, sampler, prompt, new, stop_ids, request.keep_logits, request.room)
