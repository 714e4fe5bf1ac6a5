"""Builds the drafter of one request: the only place that knows which method needs what."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace

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
from ouroboros.drafting.autoregressive import AutoregressiveDrafter
from ouroboros.drafting.base import Drafter, DraftSession
from ouroboros.drafting.chain import ChainDrafter
from ouroboros.drafting.controlled import ControlledDrafter
from ouroboros.drafting.lookahead import LookaheadDrafter
from ouroboros.drafting.ouroboros import OuroborosDrafter
from ouroboros.drafting.prompt_lookup import PromptLookupDrafter
from ouroboros.drafting.speculative import SpeculativeDrafter
from ouroboros.drafting.suffix_decoding import SuffixDecodingDrafter
from ouroboros.drafting.token_recycling import TokenRecyclingDrafter
from ouroboros.models.context import Context
from ouroboros.phrases.pool import PhrasePool
from ouroboros.sampling import Sampler

__all__ = ["NEEDS_DRAFT", "USES_POOL", "build_drafter"]

NEEDS_DRAFT = frozenset({"speculative", "ouroboros"})
USES_POOL = frozenset({"lookahead", "suffix_decoding", "token_recycling", "ouroboros"})  # and saves it


def build_drafter(
    options: MethodOptions,
    draft: Context | None,
    sampler: Sampler,
    pool: PhrasePool,
    prompt: Sequence[int],
    stop_ids: Set[int],
    max_positions: int,
    trees: bool = True,
    controller: Controller | None = None,
) -> Drafter:
    """The drafter that ``options`` ask for; the draft model's context follows the prompt from here on.

    ``max_positions``, ``trees``: of the target. ``controller``: chooses sizes, for options that ask for one.
    """
    if controller is not None and isinstance(options, OuroborosOptions):
        assert draft is not None, "checked when the pair was loaded"
        session = DraftSession(draft, prompt, False, options.draft_context)
        if controller.drafts_at_once(session.missing(prompt)):
            session.prefill(prompt)
        own_pool = pool if options.reuse else PhrasePool()
        return ControlledDrafter(options, session, sampler, own_pool, prompt, controller, stop_ids, trees)
    if not trees:
        if isinstance(options, OuroborosOptions):  # phrases beside the draft's own choices would be the chain instead
            options = replace(options, candidates=0)
        no_window = 0  # lookahead's window is a tree: in no context does it fit
        return ChainDrafter(build_drafter(options, draft, sampler, pool, prompt, stop_ids, no_window))
    match options:
        case AutoregressiveOptions():
            return AutoregressiveDrafter()
        case PromptLookupOptions():
            return PromptLookupDrafter(options, len(prompt))
        case SuffixDecodingOptions():
            return SuffixDecodingDrafter(options, pool.outputs, prompt)
        case TokenRecyclingOptions():
            return TokenRecyclingDrafter(options, pool.successors)
        case LookaheadOptions():
            return LookaheadDrafter(options, pool, prompt, max_positions)
    assert draft is not None, "checked when the pair was loaded"
    if isinstance(options, SpeculativeOptions):
        return SpeculativeDrafter(options, DraftSession(draft, prompt), sampler, stop_ids)
    assert isinstance(options, OuroborosOptions)
    if not draft.model.info.trees:  # it drafts its own chain; branches hang below it: phrases and second choices
        options = replace(options, side_branches=0, phrase_drafting=False)
    session = DraftSession(draft, prompt, span=options.draft_context)
    own_pool = pool if options.reuse else PhrasePool()
    return OuroborosDrafter(options, session, sampler, own_pool, prompt, stop_ids)
