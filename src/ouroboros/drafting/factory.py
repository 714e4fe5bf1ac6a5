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
from ouroboros.drafting.autoregressive import AutoregressiveDrafter
from ouroboros.drafting.base import Drafter, DraftSession
from ouroboros.drafting.chain import ChainDrafter
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
USES_POOL = frozenset({"lookahead", "ouroboros"})  # and saves it; other methods' memory lives as long as the decoder


def build_drafter(
    options: MethodOptions,
    draft: Context | None,
    sampler: Sampler,
    pool: PhrasePool,
    prompt: Sequence[int],
    stop_ids: Set[int],
    max_positions: int,
    trees: bool = True,
) -> Drafter:
    """The drafter that ``options`` ask for; the draft model's context follows the prompt from here on.

    ``max_positions``, ``trees``: of the target.
    """
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
    session = DraftSession(draft, prompt)
    if isinstance(options, SpeculativeOptions):
        return SpeculativeDrafter(options, session, sampler, stop_ids)
    assert isinstance(options, OuroborosOptions)
    if not draft.model.info.trees:  # it drafts its own chain; branches hang below it: phrases and second choices
        options = replace(options, side_branches=0, phrase_drafting=False)
    own_pool = pool if options.reuse else PhrasePool()
    return OuroborosDrafter(options, session, sampler, own_pool, prompt, stop_ids)
