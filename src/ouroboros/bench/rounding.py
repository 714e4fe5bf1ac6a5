"""How far rounding moves logits on a model, dtype and device, and what may pass for rounding.

The logits behind a position do not depend, on paper, on how they are computed. Here the same ones are computed in three
ways and compared with a *reference*: a single row after one prefill of a fresh slot.

    batch    no tree, no commit: the text prefilled in pieces and token by token, other tokens in the same forward,
             several slots in one forward
    tree     rows of trees of several sizes, each behind a prefill of its own fresh slot
    commit   rows of trees in a slot that has reached the position by commits, with rejected nodes in every step

**Rule.** Let the *cap* be ``WIDE`` or ``HALF`` times epsilon × scale, one rounding of the largest logit. ``batch``
counts as rounding up to the cap; ``tree`` and ``commit`` count as rounding up to ``FACTOR`` times ``batch`` (or an
eighth of the cap, where ``batch`` was lucky: short texts give few rows), and never above the cap. A way that goes
beyond is no rounding: it is named in ``unexplained`` and adds nothing to ``bound``, the largest difference that
near-ties may be put down to. So wrong masks, positions or commits, which move rows of trees and not ``batch``, cannot
raise the bound by which they are judged: either they are within a few times honest rounding, or they are left out and
told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, islice, pairwise

import torch
from torch import Tensor

from ouroboros.models.base import CausalModel, ModelInfo, ScoreRequest, Slot
from ouroboros.tree import Origin, TokenTree

__all__ = ["FACTOR", "HALF", "WIDE", "Noise", "Spread", "Text", "epsilon_of", "last_logits", "measure"]

FACTOR = 4.0  # rows of trees round as other rows do (measured: 0.7 to 2.5 times as much)
WIDE = 32.0  # fp32 and fp64: sums over the width round at each step (measured: 5 to 7 on the embedded model)
HALF = 8.0  # shorter types: sums are kept in fp32, and only results are rounded (measured: 0.8)
QUANTILE = 0.999
_TREES = (2, 8, 32, 64)  # nodes
_BESIDE = (1, 15)  # other tokens in the same forward
_DEPTH = 3  # positions compared behind each context
_SAMPLE = 4096  # logits of a row that enter the quantile; the largest difference is of all


@dataclass(frozen=True, slots=True)
class Text:
    """A text to measure on. ``contexts``: lengths ≥ 1 of its beginnings, rising, behind which logits are compared."""

    token_ids: tuple[int, ...]
    contexts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Spread:
    """Absolute differences to the reference: of how many rows, the largest, and the 99.9 % quantile."""

    rows: int
    largest: float
    quantile: float


@dataclass(frozen=True, slots=True)
class Noise:
    """What was measured, and what follows of it (see the rule above). All in raw logits.

    Attributes:
        epsilon: the dtype's distance from 1 to the next number. scale: the largest logit of the reference rows.
        batch, tree, commit: the differences. limit: up to which tree and commit count as rounding.
        bound: the largest difference that counts as rounding; near-ties are judged by it.
        unexplained: names of ways whose differences are beyond rounding.
    """

    epsilon: float
    scale: float
    batch: Spread
    tree: Spread
    commit: Spread
    limit: float
    bound: float
    unexplained: tuple[str, ...]


def epsilon_of(info: ModelInfo) -> float:
    """The distance from 1 to the next number in what the model multiplies in."""
    dtype = getattr(torch, info.dtype, torch.bfloat16)  # a weight format of another name computes in half precision
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        dtype = torch.bfloat16
    epsilon = torch.finfo(dtype).eps
    if dtype == torch.float32 and info.device.startswith("cuda"):
        lower = {"high": 2.0**-10, "medium": 2.0**-7}  # TensorFloat-32, bfloat16
        epsilon = lower.get(torch.get_float32_matmul_precision(), epsilon)
    return epsilon


def last_logits(model: CausalModel, token_ids: Sequence[int]) -> Tensor:
    """The reference: logits [vocabulary] behind the tokens, as a single row after one prefill of a fresh slot."""
    return _root(model, _slot(model, token_ids[:-1]), token_ids[-1])


def measure(model: CausalModel, texts: Sequence[Text], progress: Callable[[str], None]) -> Noise:
    """Measures on all texts. ``progress`` is told what comes next.

    Raises:
        ValueError: no texts.
    """
    if not texts:
        raise ValueError("rounding is measured on at least one text")
    batch, tree, commit = _Tally(), _Tally(), _Tally()
    scale = 0.0
    for number, text in enumerate(texts, 1):
        progress(f"rounding, text {number} of {len(texts)}")
        rows = _references(model, text)
        finite = [float(row[row.isfinite()].abs().max()) for row in rows.values() if row.isfinite().any()]
        scale = max(scale, *finite, 0.0)
        for length in text.contexts:
            _batch(model, text, length, rows, batch)
            _trees(model, text, length, rows, tree)
        _single_steps(model, text, rows, batch)
        _commits(model, text, rows, commit)
    return _judge(epsilon_of(model.info), scale, batch.spread(), tree.spread(), commit.spread())


def _judge(epsilon: float, scale: float, batch: Spread, tree: Spread, commit: Spread) -> Noise:
    one = epsilon * scale
    cap = one * (WIDE if epsilon < 1e-5 else HALF)
    limit = min(FACTOR * max(batch.largest, cap / 8), cap)
    allowed = {"batch": (batch, cap), "tree": (tree, limit), "commit": (commit, limit)}
    explained = [spread.largest for spread, most in allowed.values() if spread.largest <= most]
    return Noise(
        epsilon=epsilon,
        scale=scale,
        batch=batch,
        tree=tree,
        commit=commit,
        limit=limit,
        bound=max(explained, default=one),
        unexplained=tuple(name for name, (spread, most) in allowed.items() if spread.largest > most),
    )


class _Tally:
    def __init__(self) -> None:
        self._rows = 0
        self._largest = 0.0
        self._samples: list[Tensor] = []

    def add(self, row_V: Tensor, reference_V: Tensor) -> None:
        row_V = _fit(row_V, reference_V.shape[0])
        # Logits that are masked with an infinity agree; one that is not a number agrees with nothing.
        apart_V = torch.where(row_V == reference_V, 0.0, (row_V - reference_V).abs()).nan_to_num(nan=math.inf)
        self._rows += 1
        self._largest = max(self._largest, float(apart_V.max()))
        self._samples.append(apart_V[:: -(-apart_V.shape[0] // _SAMPLE)])

    def spread(self) -> Spread:
        if not self._samples:
            return Spread(0, 0.0, 0.0)
        ordered = torch.cat(self._samples).sort().values
        return Spread(self._rows, self._largest, float(ordered[math.ceil(QUANTILE * len(ordered)) - 1]))


def _fit(row_V: Tensor, size: int) -> Tensor:
    return row_V[:size].double().cpu()


def _slot(model: CausalModel, token_ids: Sequence[int]) -> Slot:
    slot = model.open()
    if token_ids:
        model.prefill(slot, token_ids)
    return slot


def _root(model: CausalModel, slot: Slot, token: int, catch_up: Sequence[int] = ()) -> Tensor:
    return _fit(model.score([ScoreRequest(slot, TokenTree(token), None, catch_up)])[0][0], model.info.vocab_size)


def _ends(text: Text, length: int) -> range:
    """Lengths of the beginnings behind which logits are compared for this context."""
    return range(length, min(length + _DEPTH, len(text.token_ids)) + 1)


def _references(model: CausalModel, text: Text) -> dict[int, Tensor]:
    ends = sorted({end for length in text.contexts for end in _ends(text, length)})
    return {end: last_logits(model, text.token_ids[:end]) for end in ends}


def _batch(model: CausalModel, text: Text, length: int, rows: dict[int, Tensor], tally: _Tally) -> None:
    ids = text.token_ids[:length]
    for beside in _BESIDE:
        if beside < length:
            slot = _slot(model, ids[: length - 1 - beside])
            tally.add(_root(model, slot, ids[-1], ids[length - 1 - beside : -1]), rows[length])
    slot = _slot(model, ids[: length // 2])
    if length // 2 < length - 1:
        model.prefill(slot, ids[length // 2 : -1])
    tally.add(_root(model, slot, ids[-1]), rows[length])
    ends = _ends(text, length)
    slots = [_slot(model, text.token_ids[: end - 1]) for end in ends]
    requests = [ScoreRequest(slot, TokenTree(text.token_ids[end - 1])) for slot, end in zip(slots, ends, strict=True)]
    for end, logits in zip(ends, model.score(requests), strict=True):
        tally.add(logits[0], rows[end])


def _single_steps(model: CausalModel, text: Text, rows: dict[int, Tensor], tally: _Tally) -> None:
    """Token by token from the first context to the last, as plain decoding goes, but without commits."""
    slot, ids = _slot(model, text.token_ids[: text.contexts[0] - 1]), text.token_ids
    for before, length in pairwise(text.contexts):
        for token in ids[before - 1 : length - 1]:
            model.prefill(slot, [token])
        tally.add(_root(model, slot, ids[length - 1]), rows[length])
        slot.rewind(length - 1)


def _trees(model: CausalModel, text: Text, length: int, rows: dict[int, Tensor], tally: _Tally) -> None:
    ids = text.token_ids
    ahead = ids[length : length + _DEPTH]
    if not ahead:
        return  # the context may end here
    for size in _TREES:
        tree, spine = _tree(model.info, ids, length, ahead[: max(1, size // 2)], size)
        logits_NV = model.score([ScoreRequest(_slot(model, ids[: length - 1]), tree)])[0]
        for depth, node in enumerate(spine):
            tally.add(logits_NV[node], rows[length + depth])


def _commits(model: CausalModel, text: Text, rows: dict[int, Tensor], tally: _Tally) -> None:
    """Decodes the text again with trees that hold it: one, two or three nodes are kept in a step, and some rejected."""
    ids, length = text.token_ids, text.contexts[0]
    last = min(text.contexts[-1] + _DEPTH, len(ids))
    slot = _slot(model, ids[: length - 1])
    for step in count():
        ahead = ids[length : min(length + step % 3, last)]
        room = 1 if len(ids) > length else 0  # a last token may fill the context
        tree, spine = _tree(model.info, ids, length, ahead, (len(ahead) + 1) * 3 * room or 1)
        logits_NV = model.score([ScoreRequest(slot, tree)])[0]
        for depth, node in enumerate(spine):
            if length + depth in rows:
                tally.add(logits_NV[node], rows[length + depth])
        slot.commit(spine)
        length += len(spine)
        if length > last:
            return


def _tree(
    info: ModelInfo, ids: Sequence[int], length: int, ahead: Sequence[int], size: int
) -> tuple[TokenTree, list[int]]:
    """A tree of about ``size`` nodes at the token that ends the first ``length``, and the nodes that bear the text
    ``ahead``. Wrong tokens, from elsewhere in the text, stand beside, before and below these; where the model takes
    chains only, behind them."""
    tree = TokenTree(ids[length - 1])
    spine = [0]
    wrong = (ids[(7 * k + 3) % len(ids)] for k in count())
    beside = size - 1 - len(ahead)
    if not info.trees:
        for token in ahead:
            spine.append(tree.add(spine[-1], token, Origin.DRAFT))
        room = info.max_positions - length - len(ahead)
        tree.extend(spine[-1], islice(wrong, max(0, min(beside, room))), Origin.VERIFIED)
        return tree, spine
    for depth, token in enumerate(ahead or ids[length : length + 1]):
        for k in range(beside // max(1, len(ahead))):
            below = len(tree) - 1 if k % 2 else spine[-1]  # a child of what came last, or a sibling
            other = next(wrong)
            if other != token:
                tree.add(below if tree.depths[below] <= depth else spine[-1], other, Origin.VERIFIED)
        if depth < len(ahead):
            spine.append(tree.add(spine[-1], token, Origin.DRAFT))
    return tree, spine
