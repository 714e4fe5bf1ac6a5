"""The controller: the policy that spends on drafting what pays, by costs that learn and chances that are counted.

Pool phrases, and what the target predicted elsewhere after the same tokens, hang from every likely node; a draft
forward scores the likeliest nodes that the draft model has not seen, wherever they are; the target is sent the nodes
whose chance of being accepted is worth their rows. Where nothing pays decoding is plain, and the draft model is asked
again now and then. What is worth what is prices.py's. The options of the method bound what may be chosen.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

from ouroboros.config import OuroborosOptions
from ouroboros.control.estimates import Calibration
from ouroboros.control.prices import SHORT, Prices
from ouroboros.drafting.base import DraftSession
from ouroboros.drafting.plan import UNSCORED, Plan
from ouroboros.drafting.policy import Hang, one_path
from ouroboros.flow import Answer
from ouroboros.stats import Decision
from ouroboros.tree import Origin
from ouroboros.verify import Verdict

__all__ = ["Controller"]

NODES = 160  # of a plan: phrases after phrases end here
WORTH = 2.0  # rows' prices that a node must be worth for a look at what may follow it
RIGHT = 0.8  # how often the draft model's first choice is right where recycled predictions are of no use, greedily
LEAST = 64  # tokens of a text's end that are worth reading where not all of it is
LASTING = 24  # new tokens, after which a text is expected to go on: answers out of a long passage end before


class Controller:
    """See drafting/policy.py. Decides for one request.

    Args:
        prices: of this request. greedy: whether tokens are drawn without noise and penalties. trees: whether the target
            takes trees; else it is sent the likeliest path.
    """

    def __init__(
        self,
        options: OuroborosOptions,
        prices: Prices,
        stop_ids: Set[int] = frozenset(),
        greedy: bool = True,
        trees: bool = True,
    ) -> None:
        self.chances = Calibration(prices.experience.calibration)
        self.recycles, self.least = options.recycling, 0.0
        self.prices = prices
        self._options, self._stop_ids, self._greedy, self._trees = options, stop_ids, greedy, trees
        self._sequence: Sequence[int] = ()
        self._room = 0
        self._drafting = 0.0  # seconds of this step, and of reading before it
        self._begin()

    def _begin(self) -> None:
        self._looked = 0  # nodes of the plan below this index were looked at for phrases
        self._draft_rows: list[int] = []
        self._windows = 0  # draft forwards of this step that carried the window
        self._probe = False
        self._gain = self._price = self._expected = 0.0

    def reads(self, draft: DraftSession, prompt: Sequence[int]) -> bool:
        return self.prices.reading_pays(draft.missing(prompt))

    def _missing(self, draft: DraftSession) -> int:
        """Tokens that the draft model would have to read. Of more than may be paid for it reads the end, if it can,
        once the text has lasted: until then the answer to a long prompt may be a short one."""
        prices, missing = self.prices, draft.missing(self._sequence)
        price, budget = prices.reading(missing), prices.budget
        if 0 < budget < price and prices.written >= LASTING and draft.part_of_text and not draft.skipped:
            tokens = int(missing * budget / price)
            if tokens >= LEAST:
                draft.read_from(self._sequence, len(self._sequence) - 1 - tokens)
                return draft.missing(self._sequence)
        return missing

    def begin(self, sequence: Sequence[int], room: int) -> None:
        self._begin()
        self._sequence, self._room = sequence, room
        self.prices.begin(len(sequence))
        # Greedily the phrases and a good draft model say the same, for less time (docs/LOG.md).
        self.recycles = self._options.recycling and not (self._greedy and self.prices.first_rate > RIGHT)

    def rows(self, plan: Plan, draft: DraftSession | None, hang: Hang) -> list[int]:
        options, prices = self._options, self.prices
        if options.phrase_drafting:
            self._hang_phrases(plan, hang)
        if not self._draft_rows:
            prices.consider(sorted(plan.chances[1:], reverse=True))
        if draft is None:
            return []
        missing = 0 if self._draft_rows else self._missing(draft)
        nodes, gains = self._candidates(plan, draft)
        if not nodes:
            return []
        late = min(missing, SHORT)
        size, self._gain, self._price = prices.draft_size(gains, late)
        if size and prices.reading_pays(missing):
            return nodes[:size]
        if not self._draft_rows and prices.may_probe(missing):
            self._probe = True
            return nodes[:1]
        return []

    def _candidates(self, plan: Plan, draft: DraftSession) -> tuple[list[int], list[float]]:
        """Nodes that the draft model could score next, likeliest first, and how many tokens each should add."""
        tree, chances, first = plan.tree, plan.chances, self.prices.first_rate
        price = self.prices.row_price(1 + sum(chance > 0.1 for chance in chances))
        self.least = price / 2  # nodes below it will not be worth a row, though the price may still fall a little
        scored, depths, tokens = plan.scored, tree.depths, tree.tokens
        depth = min(self._room, self._options.draft_tokens)
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
        if not draft.trees:  # it takes chains: what goes on where it has ended
            end = draft.scored - 1
            nodes = [n for n in nodes if n == 0 or scored[tree.parents[n]] == end][:1]
        gains = []
        for node in nodes:
            known = max([chances[child] for child in tree.children(node)], default=0.0)
            gains.append(chances[node] * first - price - max(known - price, 0.0))
        return nodes, gains

    def _hang_phrases(self, plan: Plan, hang: Hang) -> None:
        """Phrases below each new node that is likely enough and not scored, and below what they add."""
        tree, options, prices = plan.tree, self._options, self.prices
        least = prices.row_price(1 + prices.best_size(sorted(plan.chances[1:], reverse=True)))
        while self._looked < min(len(plan), NODES):
            node = self._looked
            self._looked += 1
            if plan.scored[node] == UNSCORED and plan.chances[node] >= WORTH * least and tree.depths[node] < self._room:
                hang(node, options.branches, options.branch_tokens, least)

    def window(self, plan: Plan, rows: Sequence[int], size: int) -> int | None:
        """Below the deepest of the rows, where it pays."""
        if not self.prices.window_pays(len(rows), size):
            return None
        self._windows += 1
        return max(rows, key=lambda node: plan.tree.depths[node])

    def read(self, seconds: float) -> None:
        self._drafting += seconds

    def drafted(self, answer: Answer) -> None:
        self._draft_rows.append(answer.rows)
        self._drafting += answer.seconds + answer.around
        self.prices.learn_overhead(answer.around)

    def choose(self, plan: Plan, hang: Hang) -> list[int]:
        options, tree, chances = self._options, plan.tree, plan.chances
        if options.lengthening and not options.phrase_drafting:
            self._hang_phrases(plan, hang)
        nodes = [n for n in range(1, len(plan)) if tree.depths[n] <= self._room]
        if not options.lengthening:
            nodes = [n for n in nodes if plan.scored[n] != UNSCORED or tree.origins[n] is Origin.DRAFT]
        nodes.sort(key=lambda n: (-chances[n], n))
        if not self._trees:
            nodes = one_path(tree, nodes)
        nodes = nodes[: options.tree_tokens]
        nodes = nodes[: self.prices.best_size([chances[n] for n in nodes])]
        self._expected = 1 + self.prices.promised(sum(chances[n] for n in nodes))
        return nodes

    def observe(self, plan: Plan, verdict: Verdict) -> Decision | None:
        prices, tokens, known = self.prices, verdict.tokens, self.prices.experience
        for right in plan.learn(tokens):
            prices.learn_first(right)
        if self._windows:
            known.window.learn(verdict.origins.count(Origin.WINDOW), self._windows)
        rows, rate = len(verdict.tree), prices.rate
        prices.observe(rows, len(tokens), self._drafting, self._probe, tokens[-1] in self._stop_ids)
        drafts, self._drafting = tuple(self._draft_rows), 0.0
        return Decision(rate, drafts, rows, self._expected, len(tokens), self._gain, self._price, self._probe)
