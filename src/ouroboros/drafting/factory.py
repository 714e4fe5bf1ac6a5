"""Builds the drafter of one request: the only place that knows which method needs what."""

from __future__ import annotations

from collections.abc import Sequence, Set

from ouroboros.config import (
    AutoregressiveOptions,
    LookaheadOptions,
    MethodOptions,
    OuroborosOptions,
    PromptLookupOptions,
    SpeculativeOptions,
    SuffixDecodingOptions,
    TokenRecyclingOptions,
)
from ouroboros.control.controller import Controller
from ouroboros.control.experience import Control
from ouroboros.control.load import Load
from ouroboros.control.prices import Prices
from ouroboros.drafting.autoregressive import AutoregressiveDrafter
from ouroboros.drafting.base import Drafter, DraftSession
from ouroboros.drafting.lookahead import LookaheadDrafter
from ouroboros.drafting.ouroboros import OuroborosDrafter
from ouroboros.drafting.policy import FixedSizes, Policy
from ouroboros.drafting.prompt_lookup import PromptLookupDrafter
from ouroboros.drafting.sizes import by_costs, chosen_sizes
from ouroboros.drafting.speculative import SpeculativeDrafter
from ouroboros.drafting.suffix_decoding import SuffixDecodingDrafter
from ouroboros.drafting.token_recycling import TokenRecyclingDrafter
from ouroboros.models.base import CausalModel
from ouroboros.models.context import Context
from ouroboros.phrases.memory import Memory
from ouroboros.sampling import Sampler

__all__ = ["NEEDS_DRAFT", "USES_POOL", "build_drafter"]

NEEDS_DRAFT = frozenset({"speculative", "ouroboros"})
USES_POOL = frozenset({"lookahead", "suffix_decoding", "token_recycling", "ouroboros"})  # and saves it


def build_drafter(
    options: MethodOptions,
    prompt: Sequence[int],
    sampler: Sampler,
    memory: Memory,
    stop_ids: Set[int],
    target: CausalModel,
    draft: Context | None,
    control: Control | None = None,
    load: Load | None = None,
) -> Drafter:
    """The drafter that ``options`` ask for; the draft model's context follows the prompt from here on.

    Args:
        control: of costs, for options that leave sizes to them. load: what the request shares its forwards with.
    """
    if control is not None and by_costs(options):
        options = chosen_sizes(options, control.costs(target), len(prompt))
    match options:
        case AutoregressiveOptions():
            return AutoregressiveDrafter()
        case PromptLookupOptions():
            return PromptLookupDrafter(options, len(prompt))
        case SuffixDecodingOptions():
            return SuffixDecodingDrafter(options, memory.outputs, prompt)
        case TokenRecyclingOptions():
            return TokenRecyclingDrafter(options, memory.successors)
        case LookaheadOptions():
            most = target.info.max_positions if target.info.trees else 0  # the window is a tree: it fits nowhere then
            return LookaheadDrafter(options, memory.phrases, prompt, most)
    assert draft is not None, "checked when the pair was loaded"
    if isinstance(options, SpeculativeOptions):
        return SpeculativeDrafter(options, DraftSession(draft, prompt), sampler, stop_ids)
    assert isinstance(options, OuroborosOptions)
    session = DraftSession(draft, prompt, options.draft_context)
    policy: Policy
    if control is not None and options.control:
        params = sampler.params
        experience = control.experience[params.temperature]
        costs = control.costs(target), control.costs(draft.model)
        prices = Prices(*costs, experience, len(prompt), params.max_new_tokens, load)
        policy = Controller(options, prices, stop_ids, sampler.plain_greedy, target.info.trees)
    else:
        policy = FixedSizes(options, stop_ids, target.info.trees, session.trees)
    own = memory if options.reuse else Memory()
    return OuroborosDrafter(options, session, sampler, own, prompt, policy, stop_ids)
