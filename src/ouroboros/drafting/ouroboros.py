"""Ouroboros (Zhao et al. 2024): drafting phrase by phrase, as one tree of what is likely to be accepted.

Every draft forward carries the draft's end, pool phrases behind it and a lookahead window (section 3.1); it also scores
a few promising side branches. The draft model's probabilities give each node its chance of being accepted. When the
draft is long enough, pool phrases lengthen it (section 3.2), and the likeliest nodes go to the target model. Beyond the
paper: second choices, side branches and phrases at any node, and an early end where the draft has become unlikely.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence, Set

from torch import Tensor

from ouroboros.config import OuroborosOptions
from ouroboros.drafting.base import DraftSession
from ouroboros.drafting.offers import Offers
from ouroboros.phrases.lookahead import LookaheadWindow
from ouroboros.phrases.pool import PhrasePool
from ouroboros.sampling import Histories, Sampler
from ouroboros.tree import Origin, TokenTree
from ouroboros.verify import Verdict

__all__ = ["OuroborosDrafter"]


class OuroborosDrafter:
    """See base.Drafter."""

    def __init__(
        self,
        options: OuroborosOptions,
        draft: DraftSession,
        sampler: Sampler,
        pool: PhrasePool,
        prompt: Sequence[int],
        stop_ids: Set[int] = frozenset(),
    ) -> None:
        self._options = options
        self._draft = draft
        self._sampler = sampler
        self._pool = pool
        self._stop_ids = stop_ids
        self._offers = Offers(pool, prompt, options.harvest)
        windowed = options.phrase_drafting and options.window > 0
        self._window = LookaheadWindow(options.window, options.ngram, prompt) if windowed else None
        self._chances: list[float] = []  # per node of the draft's tree: all tokens down to it are accepted
        self._leaves: dict[tuple[int, int], float] = {}  # (parent, token) → chance: choices that are no nodes yet
        self._sequence: Sequence[int] = prompt

    @property
    def draft_forwards(self) -> int:
        return self._draft.forwards

    def propose(self, sequence: Sequence[int], room: int) -> TokenTree:
        self._sequence = sequence
        self._offers.begin(sequence)
        options = self._options
        reach = options.draft_tokens + max(options.branch_tokens, self._window.depth if self._window else 1)
        if room < 1 or not self._draft.fits(len(sequence), reach):
            return TokenTree(sequence[-1])
        tree = self._draft.begin(sequence)
        self._chances, self._leaves = [1.0], {}
        end = 0
        while True:
            end = self._forward(tree, end)
            if tree.depths[end] >= min(options.draft_tokens, room) or tree.tokens[end] in self._stop_ids:
                break
            if self._chances[end] < options.min_chance:
                break
        self._promote(tree, options.tree_tokens)
        if options.lengthening:
            self._hang_phrases(tree, end, options.branches, options.branch_tokens)
        order = sorted(range(1, len(tree)), key=lambda node: (-self._chances[node], node))
        return tree.select(node for node in order[: options.tree_tokens] if tree.depths[node] <= room)

    def _forward(self, tree: TokenTree, end: int) -> int:
        """One draft forward: scores the draft's end with phrases, window and side branches. Returns the new end."""
        options, sampler = self._options, self._sampler
        first = self._draft.scored
        self._promote(tree, options.side_branches)
        if options.phrase_drafting:
            self._hang_phrases(tree, end, options.candidates, options.branch_tokens)
        nodes = range(first, len(tree))
        bottom = self._window.hang(tree, end) if self._window is not None else []
        logits_RV = self._draft.score([*nodes, *bottom])
        if self._window is not None:
            self._window.update(sampler.argmax(logits_RV[len(nodes) :]), self._pool)
            self._draft.drop(nodes.stop)
        best = self._choose(tree, nodes, logits_RV[: len(nodes)])
        while end in best:
            end = self._node(tree, end, best[end])
        return end

    def _choose(self, tree: TokenTree, nodes: range, logits_NV: Tensor) -> dict[int, int]:
        """Gives every node its chance and its choices. Returns the draft model's draw behind each node."""
        start = len(self._sequence)
        histories = Histories(self._sequence, [tree.path_tokens(node) for node in nodes])
        positions = [start + tree.depths[node] for node in nodes]
        inner = [node for node in nodes if tree.parents[node] >= nodes.start]  # their parents were scored right now
        pairs = [(tree.parents[node] - nodes.start, tree.tokens[node]) for node in inner]
        found = self._sampler.choices(logits_NV, positions, histories, 1 + self._options.siblings, pairs)
        for node, match in zip(inner, found.asked, strict=True):
            self._chances[node] = self._chances[tree.parents[node]] * match
        best = {}
        for node, row, row_probs in zip(nodes, found.tokens, found.probs, strict=True):
            best[node] = row[0]
            for token, prob in zip(row, row_probs, strict=True):
                if tree.child(node, token) is None:
                    self._leaves[node, token] = self._chances[node] * prob
        return best

    def _node(self, tree: TokenTree, parent: int, token: int) -> int:
        """The child of ``parent`` with ``token``, made of its leaf where it is not in the tree yet."""
        chance = self._leaves.pop((parent, token), None)
        node = tree.add(parent, token, Origin.DRAFT)
        if chance is not None:
            self._chances.append(chance)
        return node

    def _promote(self, tree: TokenTree, count: int) -> None:
        """Makes nodes of the likeliest leaves."""
        for parent, token in heapq.nlargest(count, self._leaves, key=self._leaves.__getitem__):
            self._node(tree, parent, token)

    def _hang_phrases(self, tree: TokenTree, node: int, branches: int, length: int) -> None:
        for phrase in self._offers.look_up(tree.path_tokens(node), branches, length).phrases:
            below, chance, rate = node, self._chances[node], phrase.rate
            for token in phrase.tokens[:length]:
                chance *= rate
                child = tree.child(below, token)
                if child is None:
                    self._leaves.pop((below, token), None)
                    child = tree.add(below, token, phrase.origin)
                    self._chances.append(chance)
                else:
                    self._chances[child] = max(self._chances[child], chance)
                below = child

    def observe(self, verdict: Verdict) -> None:
        self._offers.settle(verdict)
