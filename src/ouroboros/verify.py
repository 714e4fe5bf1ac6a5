"""The one verification rule: draw at a node, step to the child that bears the draw, stop where there is none.

Greedy and sampled decoding, with or without processors, in the target model and inside a draft, are this same walk.
One draw per distinct prefix makes it exact (accept iff equal; every proposal is a point mass), see docs/exactness.md.
Invariant: the tokens of a verdict are what plain decoding with the same seed would have written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

from torch import Tensor

from ouroboros.errors import ModelError
from ouroboros.sampling import Histories, Sampler
from ouroboros.tree import Origin, TokenTree

__all__ = ["Verdict", "Walk", "verify", "walk"]


@dataclass(frozen=True, slots=True)
class Walk:
    """``path``: nodes from the start (included) to the last accepted one. ``token``: the draw that no child bore;
    None where the walk ended at a stop token or at a node that could not draw."""

    path: tuple[int, ...]
    token: int | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the target model said of a tree.

    Attributes:
        tree: the tree that was scored.
        path: accepted nodes, the root first: what the cache keeps.
        tokens, origins: the new tokens in order, with the bonus token unless a stop token was accepted.
        predictions: for each node the target's draw behind it; where draws depend on the history, off the accepted path
            its argmax.
        logits_NV: the target's raw logits behind each node.
    """

    tree: TokenTree
    path: tuple[int, ...]
    tokens: tuple[int, ...]
    origins: tuple[Origin, ...]
    predictions: tuple[int, ...]
    logits_NV: Tensor


def walk(tree: TokenTree, start: int, draw: Callable[[int], int | None], stop_ids: Set[int] = frozenset()) -> Walk:
    """Follows ``draw(node)`` down from ``start``."""
    path = [start]
    while True:
        token = draw(path[-1])
        child = None if token is None else tree.child(path[-1], token)
        if child is None:
            return Walk(tuple(path), token)
        path.append(child)
        if token in stop_ids:
            return Walk(tuple(path), None)


def verify(
    tree: TokenTree,
    logits_NV: Tensor,
    sampler: Sampler,
    sequence: Sequence[int],
    stop_ids: Set[int] = frozenset(),
    model: str = "the target model",
) -> Verdict:
    """Walks the tree with the target's draws.

    Args:
        tree: its root is the last token of ``sequence``. logits_NV: the target's logits behind each node.
        sequence: all committed tokens. stop_ids: tokens that end the output where they are accepted. model: what an
            error calls the target.

    Raises:
        ModelError: the walk met logits that are NaN, positive infinity, or negative infinity throughout.
    """
    positions = [len(sequence) + depth for depth in tree.depths]
    plain = not sampler.needs_history  # then all are drawn at once, with one transfer from the device
    predictions = sampler.draw(logits_NV, positions, []) if plain else sampler.argmax(logits_NV)

    def check(nodes: Sequence[int]) -> None:
        largest = logits_NV[list(nodes)].amax(-1).tolist()  # NaN, if one of them is
        for node, value in zip(nodes, largest, strict=True):
            if not math.isfinite(value):
                what = "all -inf" if value == -math.inf else "NaN" if math.isnan(value) else "infinite"
                raise ModelError(f"{model} gives no numbers for the token at position {positions[node]}: {what}")

    def draw(node: int) -> int:
        if not plain:
            check([node])
            history = Histories(sequence, [tree.path_tokens(node)])
            predictions[node] = sampler.draw(logits_NV[node : node + 1], [positions[node]], history)[0]
        return predictions[node]

    found = walk(tree, 0, draw, stop_ids)
    if plain:
        check(found.path)
    tokens = [tree.tokens[node] for node in found.path[1:]]
    origins = [tree.origins[node] for node in found.path[1:]]
    if found.token is not None:
        tokens.append(found.token)
        origins.append(Origin.BONUS)
    return Verdict(tree, found.path, tuple(tokens), tuple(origins), tuple(predictions), logits_NV)
