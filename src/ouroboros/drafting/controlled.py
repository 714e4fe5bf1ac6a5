"""Ouroboros with its controller: one tree of phrases and draft choices, grown where it pays (control/controller.py).

In place of a draft that is lengthened at its end: pool phrases, and what the target predicted elsewhere behind the same
tokens, hang from every likely node; a draft forward scores the likeliest nodes that the draft model has not seen,
wherever they are; the target is sent the nodes whose chance of being accepted is worth their rows. The options of the
method bound what the controller may choose.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

from ouroboros.config import OuroborosOptions
from ouroboros.control.controller import Controller
from ouroboros.drafting.base import DraftSession
from ouroboros.drafting.offers import Offers
from ouroboros.drafting.plan import UNSCORED, Plan
from ouroboros.phrases.lookahead import LookaheadWindow
from ouroboros.phrases.pool import PhrasePool
from ouroboros.phrases.predictions import KEPT
from ouroboros.sampling import Histories, Sampler
from ouroboros.tree import Origin, TokenTree
from ouroboros.verify import Verdict

__all__ = ["ControlledDrafter"]

NODES = 160  # of a plan: phrases behind phrases end here
WORTH = 2.0  # rows' prices that a node must be worth for a look at what may follow it
GUESSES = 3  # from one row of recycled predictions
RIGHT = 0.8  # how often the draft model's first choice is right where they are of no use in greedy decoding


class ControlledDrafter:
    """See base.Drafter.

    Args:
        trees: whether the target takes trees; else it is sent the likeliest path.
    """

    def __init__(
        self,
        options: OuroborosOptions,
        draft: DraftSession,
        sampler: Sampler,
        pool: PhrasePool,
        prompt: Sequence[int],
        controller: Controller,
        stop_ids: Set[int] = frozenset(),
        trees: bool = True,
    ) -> None:
        self._options = options
        self._draft = draft
        self._sampler = sampler
        self._pool = pool
        self._controller = controller
        self._stop_ids = stop_ids
        self._trees = trees
        self._offers = Offers(pool, prompt, options.harvest)
        windowed = options.phrase_drafting and options.window > 0 and draft.trees
        self._window = LookaheadWindow(options.window, options.ngram, prompt) if windowed else None
        self._recycling = options.recycling
        self._windows = 0  # draft forwards of this step that carried the window
        self._plan = Plan(prompt[-1], controller.calibration)
        self._least = 0.0  # chance below which further choices of the draft model are not kept
        self._looked = 0  # nodes of the plan below this index were looked at for phrases
        self._sequence: Sequence[int] = prompt

    @property
    def draft_forwards(self) -> int:
        return self._draft.forwards

    def propose(self, sequence: Sequence[int], room: int) -> TokenTree:
        controller, options = self._controller, self._options
        controller.begin(len(sequence))
        self._sequence = sequence
        # Greedily the phrases and a good draft model say the same, for less time (docs/LOG.md).
        known = self._sampler.plain_greedy and controller.first_rate > RIGHT
        self._recycling = options.recycling and not known
        self._offers.begin(sequence)
        self._looked = self._windows = 0
        plan = self._plan = Plan(sequence[-1], controller.calibration)
        if room > 0:
            if options.phrase_drafting:
                self._hang_phrases(room)
            depth = min(room, options.draft_tokens)
            window = self._window.depth if self._window else 0
            if self._draft.fits(len(sequence), depth + max(window, 1)):
                self._draft_on(depth, room)
            if options.lengthening and not options.phrase_drafting:
                self._hang_phrases(room)
        chosen = self._choose(room)
        controller.proposed(1 + sum(plan.chances[node] for node in chosen))
        return plan.tree.select(chosen)

    def _choose(self, room: int) -> list[int]:
        """The nodes that are worth their rows."""
        plan, options = self._plan, self._options
        tree, chances = plan.tree, plan.chances
        nodes = [n for n in range(1, len(plan)) if tree.depths[n] <= room]
        if not options.lengthening:
            nodes = [n for n in nodes if plan.scored[n] != UNSCORED or tree.origins[n] is Origin.DRAFT]
        nodes.sort(key=lambda n: (-chances[n], n))
        if not self._trees:
            end, path = 0, []
            for node in nodes:
                if tree.parents[node] == end:
                    path.append(node)
                    end = node
            nodes = path
        nodes = nodes[: options.tree_tokens]
        return nodes[: self._controller.best_size([chances[n] for n in nodes])]

    def _draft_on(self, depth: int, room: int) -> None:
        """Draft forwards as long as they pay."""
        draft, controller = self._draft, self._controller
        missing = draft.missing(self._sequence)
        begun = False
        while True:
            rows, gains = self._candidates(depth)
            size = controller.draft_size(gains, 0 if begun else missing, room)
            if not size:
                return
            if not begun:
                draft.begin(self._sequence)
                begun = True
            self._score(rows[:size])
            if self._options.phrase_drafting:
                self._hang_phrases(room)

    def _candidates(self, depth: int) -> tuple[list[int], list[float]]:
        """Nodes that the draft model could score next, likeliest first, and how many tokens each should add."""
        plan, controller = self._plan, self._controller
        tree, chances = plan.tree, plan.chances
        first = controller.first_rate
        price = controller.row_price(1 + sum(chance > 0.1 for chance in chances))
        self._least = price / 2  # nodes below it will not be worth a row, though the price may still fall a little
        scored, depths, tokens = plan.scored, tree.depths, tree.tokens
        least = price / first if first > 0 else 1.0  # less likely nodes gain nothing, nor does anything below them
        nodes = [
            node
            for node, chance in enumerate(chances)
            if chance > least
            and scored[node] == UNSCORED
            and depths[node] < depth
            and (node == 0 or tokens[node] not in self._stop_ids)
        ]
        nodes.sort(key=lambda node: (-chances[node], node))  # a parent is likelier than its children
        if not self._draft.trees:  # it takes chains: what goes on where it has ended
            end = self._draft.scored - 1
            nodes = [n for n in nodes if n == 0 or scored[tree.parents[n]] == end][:1]
        gains = []
        for node in nodes:
            known = max([chances[child] for child in tree.children(node)], default=0.0)
            gains.append(chances[node] * first - price - max(known - price, 0.0))
        return nodes, gains

    def _score(self, rows: Sequence[int]) -> None:
        """One draft forward over these nodes of the plan, and what it makes of them."""
        plan, draft, sampler = self._plan, self._draft, self._sampler
        tree = plan.tree
        for node in rows:
            parent = tree.parents[node]
            added = 0 if parent < 0 else draft.tree.add(plan.scored[parent], tree.tokens[node], tree.origins[node])
            plan.scored[node] = added
        scored = [plan.scored[node] for node in rows]
        size, bottom = len(draft.tree), self._hang_window(scored)
        began, count = self._controller.now(), len(rows) + len(draft.tree) - size
        logits_RV = draft.score([*scored, *bottom])
        self._controller.drafted(count, self._controller.now() - began)
        if self._window is not None and bottom:
            self._window.update(sampler.argmax(logits_RV[len(rows) :]), self._pool)
            draft.drop(size)
        length = len(self._sequence)
        positions = [length + tree.depths[node] for node in rows]
        tails = [tree.path_tokens(node) for node in rows] if sampler.needs_history else []
        pairs = [(row, tree.tokens[child]) for row, node in enumerate(rows) for child in tree.children(node)]
        histories = Histories(self._sequence, tails)
        best = sampler.choices(
            logits_RV[: len(rows)] if bottom else logits_RV, positions, histories, 1 + self._options.siblings, pairs
        )
        known: list[dict[int, float]] = [{} for _ in rows]
        for (row, token), prob in zip(pairs, best.asked, strict=True):
            known[row][token] = prob
        for row, node in enumerate(rows):
            plan.choose(node, best.tokens[row], best.probs[row], known[row], self._least)
        plan.settle()

    def _hang_window(self, scored: Sequence[int]) -> list[int]:
        """Hangs the window below the deepest of these nodes of the draft's tree, if it pays. Returns its last level."""
        window, tree = self._window, self._draft.tree
        if window is None or not self._controller.window_pays(len(scored), window.size):
            return []
        end = max(scored, key=lambda node: tree.depths[node])
        self._windows += 1
        return window.hang(tree, end)

    def _hang_phrases(self, room: int) -> None:
        """Pool phrases below each new node that is likely enough and not scored, and below what they add."""
        plan, options = self._plan, self._options
        tree = plan.tree
        ranked = sorted(plan.chances[1:], reverse=True)
        least = self._controller.row_price(1 + self._controller.best_size(ranked))
        enough = WORTH * least
        while self._looked < min(len(plan), NODES):
            node = self._looked
            self._looked += 1
            if plan.scored[node] != UNSCORED or plan.chances[node] < enough or tree.depths[node] >= room:
                continue
            found = self._offers.look_up(tree.path_tokens(node), options.branches, options.branch_tokens)
            plan.hang(node, found.phrases, options.branch_tokens, least)
            if self._recycling:
                self._recycle(node, least)

    def _recycle(self, node: int, least: float) -> None:
        """Below a node, what the target predicted elsewhere behind the same two tokens, or the same one."""
        tree = self._plan.tree
        found = self._pool.predictions.look_up(self._before(tree, node), tree.tokens[node])
        if found is not None:
            position = len(self._sequence) + tree.depths[node]
            tokens, probs = self._sampler.guess(found.ids, found.logs, position, GUESSES)
            self._plan.recycle(node, tokens, probs, found.near, least)

    def observe(self, verdict: Verdict) -> None:
        tokens = verdict.tokens
        for right in self._plan.learn(tokens):
            self._controller.learn_first(right)
        if self._windows:
            self._controller.learn_window(verdict.origins.count(Origin.WINDOW), self._windows)
        self._offers.settle(verdict)
        if self._recycling:
            self._keep(verdict)
        self._controller.settle(len(verdict.tree), len(tokens))

    def _keep(self, verdict: Verdict) -> None:
        """The target's predictions behind every node, those of accepted ones last: of a token's two rows they count."""
        tree, predictions = verdict.tree, self._pool.predictions
        ids, logs = self._sampler.likeliest(verdict.logits_NV, KEPT)
        accepted = set(verdict.path)
        for node in [*(n for n in range(len(tree)) if n not in accepted), *verdict.path]:
            predictions.learn(self._before(tree, node), tree.tokens[node], ids[node], logs[node])

    def _before(self, tree: TokenTree, node: int) -> int | None:
        """The token before a node's, None where the text begins with it."""
        parent = tree.parents[node]
        if parent >= 0:
            return tree.tokens[parent]
        return self._sequence[-2] if len(self._sequence) > 1 else None
