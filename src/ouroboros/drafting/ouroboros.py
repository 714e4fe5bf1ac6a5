"""Ouroboros (Zhao et al. 2024): drafting phrase by phrase, as one tree of what is likely to be accepted.

Every step grows a plan. Draft forwards score nodes of it, carry pool phrases after the draft's end and a lookahead
window (section 3.1); phrases lengthen it where the draft model has not looked (section 3.2); the target's predictions
on rejected tokens become phrases (section 3.3), and the pool outlives the request (section 3.4). Beyond the paper: the
draft model's further choices, phrases below any node, and what the target predicted elsewhere after the same tokens.
Which nodes are scored, where phrases hang and what goes to the target is the policy's choice (policy.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set

from ouroboros.config import OuroborosOptions
from ouroboros.drafting.base import DraftSession
from ouroboros.drafting.offers import Offers
from ouroboros.drafting.plan import Plan
from ouroboros.drafting.policy import Policy
from ouroboros.flow import Flow, Meter, metered
from ouroboros.phrases.lookahead import LookaheadWindow
from ouroboros.phrases.memory import Memory
from ouroboros.phrases.predictions import KEPT
from ouroboros.sampling import Histories, Sampler
from ouroboros.stats import Decision
from ouroboros.tree import TokenTree
from ouroboros.verify import Verdict

__all__ = ["OuroborosDrafter"]

GUESSES = 3  # from one row of recycled predictions


class OuroborosDrafter:
    """See base.Drafter."""

    def __init__(
        self,
        options: OuroborosOptions,
        draft: DraftSession,
        sampler: Sampler,
        memory: Memory,
        prompt: Sequence[int],
        policy: Policy,
        stop_ids: Set[int] = frozenset(),
    ) -> None:
        self._options = options
        self._draft = draft
        self._sampler = sampler
        self._memory = memory
        self._policy = policy
        self._offers = Offers(memory.phrases, prompt, options.harvest)
        windowed = options.phrase_drafting and options.window > 0 and draft.trees
        self._window = LookaheadWindow(options.window, options.ngram, prompt) if windowed else None
        self._stop_ids = stop_ids
        self._plan = Plan(prompt[-1], policy.chances)
        self._sequence: Sequence[int] = prompt

    def start(self, prompt: Sequence[int]) -> Flow[None]:
        if self._policy.reads(self._draft, prompt):
            yield from self._reading(self._draft.prefill(prompt))

    def propose(self, sequence: Sequence[int], room: int) -> Flow[TokenTree]:
        options, draft, policy = self._options, self._draft, self._policy
        self._sequence = sequence
        self._offers.begin(sequence)
        policy.begin(sequence, room)
        plan = self._plan = Plan(sequence[-1], policy.chances, self._stop_ids)
        if room < 1:
            return plan.tree
        reach = options.draft_tokens + max(options.branch_tokens, self._window.depth if self._window else 1)
        fitting = draft if draft.fits(len(sequence), reach) else None
        begun = False
        while rows := policy.rows(plan, fitting, self._hang):
            if not begun:
                yield from self._reading(draft.begin(sequence))
                begun = True
            yield from self._score(rows)
        return plan.tree.select(policy.choose(plan, self._hang))

    def _reading(self, flow: Flow[object]) -> Flow[None]:
        """What the draft model reads is told to the policy."""
        meter = Meter()
        yield from metered(flow, meter)
        self._policy.read(meter.seconds)

    def _score(self, rows: Sequence[int]) -> Flow[None]:
        """One draft forward over these nodes of the plan, and what it makes of them."""
        plan, draft, sampler = self._plan, self._draft, self._sampler
        tree = plan.tree
        for node in rows:
            parent = tree.parents[node]
            added = 0 if parent < 0 else draft.tree.add(plan.scored[parent], tree.tokens[node], tree.origins[node])
            plan.scored[node] = added
        size, bottom = len(draft.tree), list[int]()
        if self._window is not None:
            below = self._policy.window(plan, rows, self._window.size)
            bottom = [] if below is None else self._window.hang(draft.tree, plan.scored[below])
        answer = yield from draft.score([*(plan.scored[node] for node in rows), *bottom])
        self._policy.drafted(answer)
        logits_RV = answer.logits_RV
        if self._window is not None and bottom:
            self._window.update(sampler.argmax(logits_RV[len(rows) :]), self._memory.phrases)
            draft.drop(size)
            logits_RV = logits_RV[: len(rows)]
        positions = [len(self._sequence) + tree.depths[node] for node in rows]
        tails = [tree.path_tokens(node) for node in rows] if sampler.needs_history else []
        pairs = [(row, tree.tokens[child]) for row, node in enumerate(rows) for child in tree.children(node)]
        histories = Histories(self._sequence, tails)
        best = sampler.choices(logits_RV, positions, histories, 1 + self._options.siblings, pairs)
        known: list[dict[int, float]] = [{} for _ in rows]
        for (row, token), prob in zip(pairs, best.asked, strict=True):
            known[row][token] = prob
        for row, node in enumerate(rows):
            plan.choose(node, best.tokens[row], best.probs[row], known[row], self._policy.least)
        plan.settle()

    def _hang(self, node: int, branches: int, length: int, least: float) -> None:
        """Pool phrases below a node, and what the target predicted elsewhere after the same tokens."""
        tree = self._plan.tree
        if node and tree.tokens[node] in self._stop_ids:
            return
        found = self._offers.look_up(tree.path_tokens(node), branches, length)
        self._plan.hang(node, found.phrases, length, least)
        if not self._policy.recycles:
            return
        row = self._memory.predictions.look_up(self._before(tree, node), tree.tokens[node])
        if row is not None:
            position = len(self._sequence) + tree.depths[node]
            tokens, probs = self._sampler.guess(row.ids, row.logs, position, GUESSES)
            self._plan.recycle(node, tokens, probs, row.near, least)

    def stop(self, sequence: Sequence[int]) -> None:
        pass

    def observe(self, verdict: Verdict) -> Decision | None:
        decision = self._policy.observe(self._plan, verdict)
        self._offers.settle(verdict)
        if self._policy.recycles:
            self._keep(verdict)
        return decision

    def _keep(self, verdict: Verdict) -> None:
        """The target's predictions after every node, those of accepted ones last: of a token's two rows they count."""
        tree, predictions = verdict.tree, self._memory.predictions
        ids, logs = self._sampler.likeliest(verdict.logits_NV, KEPT)
        accepted = set(verdict.path)
        for node in [*(n for n in range(len(tree)) if n not in accepted), *verdict.path]:
            if not math.isfinite(logs[node][0]):
                continue  # off the accepted path the target may answer what is no number
            predictions.learn(self._before(tree, node), tree.tokens[node], ids[node], logs[node])

    def _before(self, tree: TokenTree, node: int) -> int | None:
        """The token before a node's, None where the text begins with it."""
        parent = tree.parents[node]
        if parent >= 0:
            return tree.tokens[parent]
        return self._sequence[-2] if len(self._sequence) > 1 else None
