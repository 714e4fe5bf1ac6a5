"""Plan: all tokens that one step might draft, as one tree, and how likely each is to be accepted.

Nodes are choices of the draft model and tokens of pool phrases, merged where prefixes coincide. Some of them the draft
model has scored; the others are what it could score next, and what the target may be sent. Each node has the evidence
that speaks for it, from which its chance given its parent follows; a product along the path is its chance to be
accepted. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Protocol

from ouroboros.control.estimates import Evidence
from ouroboros.phrases.pool import Phrase
from ouroboros.tree import Origin, TokenTree

__all__ = ["UNSCORED", "Chances", "Plan"]

UNSCORED = -1
NEARLY, LIKELY = 0.4, 0.03  # what a further choice of the draft model counts for, if it gave it this chance
RECYCLED = (Evidence.RECYCLED, Evidence.RECYCLED_OTHER)
RECYCLED_FAR = (Evidence.RECYCLED_FAR, Evidence.RECYCLED_FAR_OTHER)
PHRASES = [Evidence.PHRASE, Evidence.PHRASE, Evidence.PHRASE_2, Evidence.PHRASE_3]  # by matching tokens
PHRASES += [Evidence.PHRASE_4] * 2 + [Evidence.PHRASE_6] * 3 + [Evidence.PHRASE_9] * 7 + [Evidence.PHRASE_16]
AGAINST = 0.3  # of a guess's own number, where a better source speaks against it
SURE = {Evidence.PHRASE_6, Evidence.PHRASE_9, Evidence.PHRASE_16}  # they know more than a prediction after two tokens
# Evidence whose numbers are shares of one distribution; other numbers were counted as if nothing else was offered.
SHARES = {Evidence.FIRST, Evidence.OTHER, Evidence.BOTH_FIRST, Evidence.BOTH_OTHER}
SHARES |= {Evidence.RECYCLED_OTHER, Evidence.RECYCLED_FAR_OTHER}


class Chances(Protocol):
    """What evidence is worth."""

    def chance(self, evidence: Evidence, number: float) -> float:
        """The chance, 0 … 1, that a token with this evidence follows, if all tokens above it do."""

    def learn(self, evidence: Evidence, number: float, right: bool) -> None:
        """What became of it."""


class Plan:
    """The plan of one step. Nothing hangs below one of ``stop_ids``: the text ends there.

    Attributes (lists with one entry a node):
        tree: the tokens. chances: all tokens down to the node are accepted. scored: the node in the draft model's tree,
            or ``UNSCORED``. first: the child that is the draft model's first choice, -1 where it has not looked.
    """

    def __init__(self, root: int, chances: Chances, stop_ids: Set[int] = frozenset()) -> None:
        self.tree = TokenTree(root)
        self.chances = [1.0]
        self.scored = [UNSCORED]
        self.first = [-1]
        self._calibration = chances
        self._stop_ids = stop_ids
        self._evidence: list[tuple[Evidence, float]] = [(Evidence.FIRST, 1.0)]
        self._alone = [1.0]  # the chance given the parent, if no sibling is better
        self._local = [1.0]  # the chance given the parent

    def __len__(self) -> int:
        return len(self.chances)

    @property
    def end(self) -> int:
        """Where the draft model's first choices lead, as far as it has looked."""
        node = 0
        while (below := self.first[node]) >= 0:
            node = below
        return node

    def hang(self, node: int, phrases: Sequence[Phrase], length: int, least: float) -> None:
        """Adds up to ``length`` tokens of each phrase below a node that the draft model has not scored, as long as they
        are accepted with a chance of ``least``."""
        for phrase in phrases:
            below, rate, matching = node, phrase.rate, phrase.key_length
            for token in phrase.tokens[:length]:
                evidence = PHRASES[min(matching, len(PHRASES) - 1)]
                below = self._add(below, token, phrase.origin, evidence, rate, self._calibration.chance(evidence, rate))
                if self.chances[below] < least or token in self._stop_ids:
                    break
                matching += 1

    def recycle(self, node: int, tokens: Sequence[int], probs: Sequence[float], near: bool, least: float) -> None:
        """Adds what the target model predicted elsewhere after the same tokens (``near``: the same two), below a node
        that the draft model has not scored. A near prediction outweighs the phrases that hang there, but for those
        whose match is long (``SURE``): they outweigh it.

        Args:
            tokens, probs: best first. least: what is accepted with less than this chance is left out.
        """
        first, other = RECYCLED if near else RECYCLED_FAR
        tree = self.tree
        phrases = {tree.tokens[child]: child for child in tree.children(node)}
        sure = {token for token, child in phrases.items() if self._evidence[child][0] in SURE}
        for rank, (token, prob) in enumerate(zip(tokens, probs, strict=True)):
            evidence, number = other if rank else first, prob
            if sure and token not in sure:
                evidence, number = Evidence.AGAINST, AGAINST * prob
            if token in phrases:
                if near and not sure:
                    self._set(phrases[token], evidence, number)
                continue
            chance = self._calibration.chance(evidence, number)
            if self.chances[node] * chance >= least:
                self._add(node, token, Origin.RECYCLED, evidence, number, chance)
        if near and phrases and not sure:
            for token, child in phrases.items():
                if token not in tokens:
                    self._set(child, Evidence.AGAINST, AGAINST * self._evidence[child][1])
            self._share(node)
            self.settle(node + 1)

    def choose(
        self, node: int, tokens: Sequence[int], probs: Sequence[float], known: dict[int, float], least: float = 0.0
    ) -> None:
        """The draft model has scored ``node``.

        Args:
            tokens, probs: its choices, best first. known: its probability of each child that the node has already.
            least: further choices that are accepted with less than this chance are left out.
        """
        tree = self.tree
        for token, prob in known.items():
            child = tree.child(node, token)
            assert child is not None
            self._set(child, Evidence.BOTH_OTHER, prob)
        for rank, (token, prob) in enumerate(zip(tokens, probs, strict=True)):
            if token in known:
                child = tree.child(node, token)
                assert child is not None
                if rank == 0:
                    self._set(child, Evidence.BOTH_FIRST, prob)
            else:
                evidence = Evidence.OTHER if rank else Evidence.FIRST
                chance = self._calibration.chance(evidence, prob)
                if rank and self.chances[node] * chance < least:
                    continue
                child = self._add(node, token, Origin.DRAFT, evidence, prob, chance)
            if rank == 0:
                self.first[node] = child
        self._share(node)

    def _add(self, parent: int, token: int, origin: Origin, evidence: Evidence, number: float, chance: float) -> int:
        before = len(self.chances)
        node = self.tree.add(parent, token, origin)
        if node == before:
            self._evidence.append((evidence, number))
            self._alone.append(chance)
            self._local.append(chance)
            self.chances.append(self.chances[parent] * chance)
            self.scored.append(UNSCORED)
            self.first.append(-1)
        elif evidence >= Evidence.PHRASE and chance > self._alone[node]:  # of several sources the best one counts
            self._evidence[node] = evidence, number
            self._alone[node] = chance
        else:
            return node
        if self._share(parent):
            self.settle(parent + 1)
        return node

    def _share(self, parent: int) -> bool:
        """Only one child of a node can be right: each has what the better ones leave. Returns whether any changed."""
        children, left, changed = list(self.tree.children(parent)), 1.0, False
        if len(children) > 1:
            children.sort(key=self._alone.__getitem__, reverse=True)
        for child in children:
            alone = self._alone[child]
            local = min(alone, left) if self._evidence[child][0] in SHARES else alone * left
            changed |= local != self._local[child]
            self._local[child] = local
            left = max(left - local, 0.0)
        return changed

    def _set(self, node: int, evidence: Evidence, number: float) -> None:
        self._evidence[node] = evidence, number
        self._alone[node] = self._calibration.chance(evidence, number)

    def settle(self, first: int = 1) -> None:
        """Carries changed chances, of node ``first`` and later ones, down the tree."""
        chances, local, parents = self.chances, self._local, self.tree.parents
        for node in range(first, len(chances)):
            chances[node] = chances[parents[node]] * local[node]

    def learn(self, tokens: Sequence[int]) -> list[float]:
        """Tells the calibration what followed the root. Returns whether the draft model's first choice was right, for
        each node on the way that it has scored; ``NEARLY`` for a further choice: a model that guesses has none."""
        outcomes = []
        tree, node = self.tree, 0
        for token in tokens:
            known = False  # a better child was right: what others are worth without it cannot be seen
            for child in sorted(tree.children(node), key=self._alone.__getitem__, reverse=True):
                evidence, number = self._evidence[child]
                right = tree.tokens[child] == token
                if not known or evidence in SHARES:
                    self._calibration.learn(evidence, number, right)
                known |= right
            below = tree.child(node, token)
            first = self.first[node]
            if first >= 0:
                nearly = below is not None and self._evidence[below][1] > LIKELY
                outcomes.append(1.0 if below == first else NEARLY if nearly else 0.0)
            if below is None:
                break
            node = below
        return outcomes
