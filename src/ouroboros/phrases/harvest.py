"""Where phrases come from: text that is known, and verdicts of the target model.

``TextHarvest`` learns the n-grams of the prompt and of the accepted output as it grows. ``corrections`` reads the
target's predictions on rejected tokens (Ouroboros, section 3.3): a maximal run of draft tokens that the target predicts
at their parents, closed by its one correction; after each disagreement a new run begins, since what follows a wrong
token is conditioned on it. Branches and chains are treated alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ouroboros.phrases.pool import MAX_KEY, Held, PhrasePool
from ouroboros.tree import Origin, TokenTree

__all__ = ["TextHarvest", "corrections"]


class TextHarvest:
    """Feeds a growing text to a pool. The first ``prompt_length`` tokens are prompt, what follows is verified.

    ``most``: tokens that one call learns, where others would wait for it; the rest is left to later calls.
    """

    def __init__(self, pool: PhrasePool, prompt_length: int, most: int | None = None) -> None:
        self._pool = pool
        self._most = most
        self._prompt_length = prompt_length
        self._done = 1  # phrases beginning before this index are whole; a phrase needs one token before it
        self._known = 1  # phrases beginning before this index were counted
        self._held: dict[int, Held] = {}  # by where they begin, phrases that still grow

    def learn(self, text: Sequence[int]) -> None:
        """Learns what ``text`` has gained since the last call; phrases at its end are lengthened by later calls."""
        if len(text) <= self._known:
            return
        size = self._pool.max_tokens
        end = len(text) if self._most is None else min(len(text), self._known + self._most)
        for start in range(self._done, end):
            origin = Origin.PROMPT if start < self._prompt_length else Origin.VERIFIED
            context = text[max(0, start - MAX_KEY) : start]
            again, held = start < self._known, self._held.pop(start, None)
            self._held[start] = self._pool.insert(context, text[start : start + size], origin, again, held)
        self._known = max(self._known, end)
        for start in range(self._done, max(self._done, min(end, len(text) - size))):
            self._held.pop(start, None)
            self._done = start + 1


def corrections(
    tree: TokenTree, path: Sequence[int], predictions: Sequence[int]
) -> Iterator[tuple[list[int], list[int]]]:
    """(context, phrase) for each run on rejected nodes: ``context`` leads from the root to the run's first token, which
    is a rejected one or stands behind a disagreement; the phrase is what the target puts behind it.

    Args:
        path: the accepted nodes. predictions: the target's token behind each node (see verify.Verdict).
    """
    accepted = set(path)
    for node in range(1, len(tree)):
        parent = tree.parents[node]
        if node in accepted or (parent not in accepted and predictions[parent] == tree.tokens[node]):
            continue  # accepted, or in the middle of a run that began above
        phrase = []
        last: int | None = node
        while last is not None:
            phrase.append(predictions[last])
            last = tree.child(last, predictions[last])
        yield tree.path_tokens(node), phrase
