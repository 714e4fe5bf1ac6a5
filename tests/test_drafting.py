"""What each drafter does beyond being exact: the weaknesses of the published code are absent, each switch switches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import ouroboros
from ouroboros.config import LookaheadOptions, MethodOptions, OuroborosOptions, PromptLookupOptions, SamplingParams
from ouroboros.decoding.loop import Step, decode
from ouroboros.decoding.run import run
from ouroboros.drafting.base import Drafter, DraftSession
from ouroboros.drafting.factory import build_drafter
from ouroboros.drafting.ouroboros import OuroborosDrafter
from ouroboros.drafting.policy import FixedSizes
from ouroboros.drafting.prompt_lookup import PromptLookupDrafter
from ouroboros.flow import Flow
from ouroboros.models.context import Context
from ouroboros.phrases.memory import Memory
from ouroboros.phrases.pool import PhrasePool
from ouroboros.sampling import Sampler
from ouroboros.stats import Stats, StatsRecorder
from ouroboros.tree import Origin, TokenTree
from ouroboros.verify import Verdict
from tests.flows import drive
from tests.pairs import Pair
from tests.reference import generate

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
QUIET = OuroborosOptions(siblings=0, side_branches=0, window=0, candidates=0, branches=0, harvest=False)


class Recorded:
    """Runs one request and keeps every tree and verdict."""

    def __init__(
        self,
        pair: Pair,
        draft: str,
        options: MethodOptions,
        pool: PhrasePool | None = None,
        new: int = 24,
        seed: int = 0,
    ) -> None:
        params = SamplingParams(max_new_tokens=new, temperature=0.0 if seed == 0 else 1.0)
        sampler = Sampler(params, seed, 40)
        self.pool = PhrasePool() if pool is None else pool
        self.trees: list[TokenTree] = []
        self.verdicts: list[Verdict] = []
        recorder = StatsRecorder("test", "native", "", "", seed, len(PROMPT))
        memory = Memory(self.pool)
        inner = build_drafter(options, PROMPT, sampler, memory, frozenset(), pair.target, Context(pair.drafts[draft]))
        drafter = _Spy(inner, self.trees, self.verdicts)
        self.steps: list[Step] = []
        for step in run(decode(Context(pair.target), drafter, sampler, PROMPT, new)):
            if isinstance(step, Step):
                self.steps.append(step)
                recorder.step(step.tree, step.origins, step.seconds, step.draft_forwards, step.draft_seconds)
        self.stats: Stats = recorder.freeze()
        self.tokens = [token for step in self.steps for token in step.tokens]
        assert tuple(self.tokens) == generate(pair.oracle, PROMPT, params, seed)


class _Spy:
    def __init__(self, inner: Drafter, trees: list[TokenTree], verdicts: list[Verdict]) -> None:
        self.inner, self.trees, self.verdicts = inner, trees, verdicts

    def start(self, prompt: Sequence[int]) -> Flow[None]:
        yield from self.inner.start(prompt)

    def propose(self, sequence: Sequence[int], room: int) -> Flow[TokenTree]:
        tree = yield from self.inner.propose(sequence, room)
        self.trees.append(tree)
        return tree

    def observe(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)
        self.inner.observe(verdict)

    def stop(self, sequence: Sequence[int]) -> None:
        self.inner.stop(sequence)


def truth(pair: Pair, new: int = 24) -> tuple[int, ...]:
    return generate(pair.oracle, PROMPT, SamplingParams(max_new_tokens=new), 0)


def test_bonus_token_behind_a_fully_matched_phrase(tiny: Pair) -> None:
    """β phrase tokens that all match yield β+1 tokens: in the target's walk, and inside the draft."""
    text = truth(tiny)
    pool = PhrasePool()
    pool.insert(PROMPT, text[:5], Origin.VERIFIED)
    run = Recorded(tiny, "self", LookaheadOptions(window=1, ngram=6, branches=1, prompt_ngrams=False), pool)
    assert run.steps[0].tokens == text[:6]
    assert run.steps[0].origins[-1] is Origin.BONUS

    pool = PhrasePool()
    pool.insert(PROMPT, text[:5], Origin.VERIFIED)
    options = dataclasses.replace(QUIET, candidates=1, branch_tokens=5, draft_tokens=5, lengthening=False)
    run = Recorded(tiny, "self", options, pool)
    assert run.trees[0].path_tokens(6) == list(text[:6])  # one draft forward: the phrase and the draft's own next token
    assert run.steps[0].tokens == text[:7]


def test_no_accepted_draft_token_is_thrown_away(tiny: Pair) -> None:
    """The draft model accepted 5 + 1 tokens in one forward: all are offered though γ is 2."""
    text = truth(tiny)
    pool = PhrasePool()
    pool.insert(PROMPT, text[:5], Origin.VERIFIED)
    options = dataclasses.replace(QUIET, candidates=1, branch_tokens=5, draft_tokens=2, lengthening=False)
    run = Recorded(tiny, "self", options, pool)
    assert len(run.trees[0]) == 1 + 6
    assert run.stats.draft_forwards < run.stats.new_tokens / 2


def test_a_warm_pool_is_used_from_the_first_step(tiny: Pair) -> None:
    options = dataclasses.replace(QUIET, candidates=2, branches=2, window=5, ngram=5)
    cold = Recorded(tiny, "similar", options)
    warm = Recorded(tiny, "similar", options, cold.pool)
    assert warm.tokens == cold.tokens
    assert Origin.VERIFIED in warm.trees[0].origins
    assert Origin.VERIFIED in warm.steps[0].origins
    assert warm.stats.target_forwards < cold.stats.target_forwards


def test_ngrams_of_prompt_and_output_are_in_the_pool(tiny: Pair) -> None:
    run = Recorded(tiny, "similar", OuroborosOptions())
    text = [*PROMPT, *run.tokens]
    for start in range(3, len(text) - 4):
        phrases = [phrase.tokens[:3] for phrase in run.pool.lookup(text[:start], 50, 10).phrases]
        assert tuple(text[start : start + 3]) in phrases
    origins = {phrase.origin for _, phrase in run.pool.items()}
    assert origins == {Origin.PROMPT, Origin.VERIFIED, Origin.CORRECTED, Origin.WINDOW}


@pytest.mark.parametrize("draft", ["similar", "unrelated"])
def test_no_node_is_offered_twice(tiny: Pair, draft: str) -> None:
    run = Recorded(tiny, draft, OuroborosOptions(), seed=7)
    for tree in run.trees:
        prefixes = [tuple(tree.path_tokens(node)) for node in range(len(tree))]
        assert len(set(prefixes)) == len(prefixes)
        assert len(tree) <= 1 + OuroborosOptions().tree_tokens


def test_the_draft_cache_follows_the_text(tiny: Pair) -> None:
    """What the draft model scored of the accepted text is kept: it never computes a token twice."""
    computed: list[int] = []
    model = tiny.drafts["similar"]

    class Counting:
        info = model.info

        def open(self) -> Any:
            return model.open()

        def prefill(self, slot: Any, tokens: Sequence[int]) -> None:
            computed.append(len(tokens))
            model.prefill(slot, tokens)

        def score(self, requests: Any) -> Any:
            request = requests[0]
            computed.append(len(request.catch_up) + len(request.tree) - request.slot.pending)
            assert len(request.catch_up) <= 2
            return model.score(requests)

    pair = dataclasses.replace(tiny, drafts={"counting": Counting()})
    run = Recorded(pair, "counting", QUIET)
    assert sum(computed) <= len(PROMPT) - 1 + run.stats.draft_forwards + 2 * run.stats.target_forwards


def options_with(**switches: bool) -> OuroborosOptions:
    return dataclasses.replace(OuroborosOptions(draft_tokens=3), **switches)


def test_phrase_drafting_off_drafts_one_token_a_forward(tiny: Pair) -> None:
    off = Recorded(tiny, "self", options_with(phrase_drafting=False, lengthening=False))
    assert not any(phrase.origin is Origin.WINDOW for _, phrase in off.pool.items())
    assert all(origin in (Origin.DRAFT, Origin.BONUS) for step in off.steps for origin in step.origins)
    pool = PhrasePool()
    Recorded(tiny, "self", options_with(), pool)
    on, off = (
        Recorded(tiny, "self", options_with(), pool),
        Recorded(tiny, "self", options_with(phrase_drafting=False), pool),
    )
    assert on.stats.draft_forwards < off.stats.draft_forwards


def test_lengthening_off_sends_no_phrase_behind_the_draft(tiny: Pair) -> None:
    pool = PhrasePool()
    Recorded(tiny, "self", options_with(), pool)
    on = Recorded(tiny, "self", options_with(phrase_drafting=False), pool)
    off = Recorded(tiny, "self", options_with(phrase_drafting=False, lengthening=False), pool)
    assert any(step.origins.count(Origin.VERIFIED) for step in on.steps)
    assert not any(origin.label == "phrase" for tree in off.trees for origin in tree.origins)
    assert on.stats.target_forwards < off.stats.target_forwards


def test_harvest_off_learns_nothing_from_rejected_tokens(tiny: Pair) -> None:
    on = Recorded(tiny, "unrelated", options_with())
    off = Recorded(tiny, "unrelated", options_with(harvest=False))
    assert any(phrase.origin is Origin.CORRECTED for _, phrase in on.pool.items())
    assert not any(phrase.origin is Origin.CORRECTED for _, phrase in off.pool.items())


def test_reuse_off_neither_reads_nor_feeds_the_pool(tiny: Pair) -> None:
    pool = PhrasePool()
    first = Recorded(tiny, "similar", options_with(reuse=False), pool)
    assert len(pool) == 0
    Recorded(tiny, "similar", options_with(), pool)
    again = Recorded(tiny, "similar", options_with(reuse=False), pool)
    assert again.stats.target_forwards == first.stats.target_forwards


def test_corrections_are_accepted_later(tiny: Pair) -> None:
    runs = [Recorded(tiny, "similar", options_with(), new=60, seed=seed) for seed in range(6)]
    assert sum(run.stats.accepted_by_origin.get("corrected", 0) for run in runs) > 0


def test_harvested_phrases_are_what_the_target_said(tiny: Pair) -> None:
    run = Recorded(tiny, "unrelated", options_with())
    said = set()
    for verdict in run.verdicts:
        for node in range(len(verdict.tree)):
            said.add((verdict.tree.tokens[node], verdict.predictions[node]))
    for key, phrase in run.pool.items():
        if phrase.origin is Origin.CORRECTED:
            assert (key[-1], phrase.tokens[0]) in said


def test_drafting_stops_early_where_the_draft_is_unlikely(tiny: Pair) -> None:
    bold = Recorded(tiny, "similar", OuroborosOptions(draft_tokens=8, min_chance=0.0), seed=3)
    careful = Recorded(tiny, "similar", OuroborosOptions(draft_tokens=8, min_chance=0.9), seed=3)
    assert careful.stats.draft_forwards < bold.stats.draft_forwards


def test_a_draft_model_with_a_shorter_context_is_left_out_where_it_ends(tiny: Pair) -> None:
    model = tiny.drafts["similar"]
    short = dataclasses.replace(model.info, max_positions=len(PROMPT) + 30)

    class Short:
        info = short
        open, prefill, score = model.open, model.prefill, model.score

    run = Recorded(dataclasses.replace(tiny, drafts={"short": Short()}), "short", OuroborosOptions(), new=40)
    assert len(run.trees[0]) > 1
    assert len(run.trees[-2]) == 1


def score(session: DraftSession, rows: Sequence[int]) -> Tensor:
    return drive(session.score(rows)).logits_RV


def test_draft_session_keeps_what_agrees(tiny: Pair) -> None:
    session = DraftSession(Context(tiny.drafts["similar"]), PROMPT)
    tree = drive(session.begin(PROMPT))
    node = tree.extend(0, [7, 8], Origin.DRAFT)
    score(session, [0, node])
    drive(session.begin([*PROMPT, 7, 8, 9, 5]))  # 7 and 8 are cached, 9 is caught up in the next forward
    assert session._slot.length == len(PROMPT) + 2
    logits = score(session, [0])
    fresh = DraftSession(Context(tiny.drafts["similar"]), [*PROMPT, 7, 8, 9, 5])
    drive(fresh.begin([*PROMPT, 7, 8, 9, 5]))
    assert (logits - score(fresh, [0])).abs().max() < 1e-9


def test_a_draft_model_reads_the_end_of_a_long_text(tiny: Pair) -> None:
    def logits(session: DraftSession, text: Sequence[int]) -> Tensor:
        drive(session.begin(text))
        return score(session, [0])

    def fresh(text: Sequence[int]) -> Tensor:
        return logits(DraftSession(Context(model), text), text)

    text = [1 + i * i % 37 for i in range(20)]
    model, context = tiny.drafts["similar"], Context(tiny.drafts["similar"])
    session = DraftSession(context, text, span=8)
    drive(session.prefill(text))
    assert session.missing(text) == 0
    assert (logits(session, text) - fresh(text[-8:])).abs().max() < 1e-9
    text += [5, 6, 7, 8, 9, 10, 11, 12]  # twice as many: it goes on
    assert (logits(session, text) - fresh(text[-16:])).abs().max() < 1e-9
    text = [*text, 13]
    assert session.missing(text) == 7
    assert (logits(session, text) - fresh(text[-8:])).abs().max() < 1e-9
    assert session.fits(len(text), model.info.max_positions - 8)
    assert not session.fits(len(text), model.info.max_positions - 7)
    begun = context.start
    assert DraftSession(context, [*text, 14, 15], span=8).missing([*text, 14, 15]) < 7  # the next turn
    assert context.start == begun
    assert DraftSession(context, [3, 4, 5], span=8).missing([3, 4, 5]) == 2
    assert context.start == 0


def test_a_draft_model_may_be_told_where_to_read_from(tiny: Pair) -> None:
    text = [1 + i * i % 37 for i in range(40)]
    session = DraftSession(Context(tiny.drafts["similar"]), text)
    session.read_from(text, 30)
    assert session.skipped == 30
    assert session.missing(text) == 9
    longer = [*text, 3, 4]
    drive(session.begin(longer))
    fresh = DraftSession(Context(tiny.drafts["similar"]), longer[30:])
    drive(fresh.begin(longer[30:]))
    assert (score(session, [0]) - score(fresh, [0])).abs().max() < 1e-9


def test_a_text_beyond_the_draft_models_context() -> None:
    """It is drafted for all the same, from its end, and no token changes."""
    text = [int(token) for token in torch.randint(5, 900, (40,), generator=torch.manual_seed(1))] * 12
    draft = ouroboros.load().draft
    assert draft is not None
    assert draft.info.max_positions < len(text)
    plain = ouroboros.load(method="autoregressive").generate(text, max_new_tokens=40, ignore_eos=True)
    for method, options in (("speculative", {}), ("ouroboros", {"control": False})):
        decoder = ouroboros.load(method=method, options=options, pool=False)
        result = decoder.generate(text, max_new_tokens=40, ignore_eos=True)
        assert result.token_ids == plain.token_ids
        assert result.stats.accepted_by_source["draft"] > 2


def propose(text: Sequence[int], room: int = 50, **options: int) -> list[int]:
    tree = drive(PromptLookupDrafter(PromptLookupOptions(**options), len(text)).propose(text, room))
    return tree.path_tokens(len(tree) - 1)


def test_prompt_lookup() -> None:
    assert propose([1, 2, 3, 9, 9, 1, 2, 3], draft_tokens=2) == [9, 9]
    assert propose([1, 2, 3, 9, 1, 2, 3], draft_tokens=3) == [9, 1, 2]
    assert propose([5, 1, 2, 7, 1, 2, 8, 1, 2], draft_tokens=1) == [8]  # the latest occurrence
    assert propose([4, 1, 2, 7, 3, 2, 8, 1, 2], draft_tokens=1) == [7]  # the longer match
    assert propose([1, 2, 3]) == []
    assert propose([5, 6, 5, 6], draft_tokens=6) == [5, 6, 5, 6, 5, 6]  # a loop, read on into the draft
    assert propose([5, 5], room=3, draft_tokens=6) == [5, 5, 5]
    assert propose([1, 2, 9, 2], draft_tokens=1, min_ngram=2) == []


def test_lookahead_yields_ngrams_without_the_prompts_own(tiny: Pair) -> None:
    run = Recorded(tiny, "self", LookaheadOptions(window=8, ngram=4, prompt_ngrams=False))
    assert {phrase.origin for _, phrase in run.pool.items()} == {Origin.WINDOW}
    assert all(len(phrase.tokens) <= 3 for _, phrase in run.pool.items())


def test_draft_trees_are_ranked_by_chance(tiny: Pair) -> None:
    session = DraftSession(Context(tiny.drafts["similar"]), PROMPT)
    options = OuroborosOptions(tree_tokens=6)
    policy = FixedSizes(options, frozenset(), trees=True, draft_trees=True)
    drafter = OuroborosDrafter(options, session, Sampler(SamplingParams(), 0, 40), Memory(), PROMPT, policy)
    small = drive(drafter.propose(PROMPT, 20))
    plan = drafter._plan
    chances, tree = plan.chances, plan.tree
    assert len(small) == 7
    kept = {tuple(small.path_tokens(node)) for node in range(1, 7)}
    cut = sorted((chances[n] for n in range(1, len(tree))), reverse=True)[5]
    assert all(chances[n] <= cut for n in range(1, len(tree)) if tuple(tree.path_tokens(n)) not in kept)
    for node in range(1, len(tree)):
        assert chances[node] <= chances[tree.parents[node]] + 1e-12
