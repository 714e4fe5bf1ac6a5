"""Attention of new rows over one sequence's cache.

The mask rule: a new row sees every committed row, and of the pending and new rows those that are itself or above it in
the tree; in a layer with a sliding window, of these only the rows whose position is less than ``window`` before its
own. Tensor names: H heads, N new rows, T all rows, D head size.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ouroboros.tree import TokenTree

__all__ = ["View", "attend", "attend_folded", "soft_cap", "visible_rows"]


class View(NamedTuple):
    """What new rows see of a cache: rows from ``first`` on, where ``mask`` (bool [N, T - first]) allows; None: all."""

    first: int
    mask: Tensor | None


def visible_rows(
    committed: int, catch_up: int, tree: TokenTree | None, pending: int, windows: Iterable[int | None]
) -> dict[int | None, View]:
    """For each window what the new rows see: ``catch_up`` committed tokens, then the tree's new nodes."""
    mask = _causal_mask(committed, catch_up, tree, pending)
    return {w: View(0, mask) if w is None else _windowed(mask, committed, catch_up, tree, pending, w) for w in windows}


def _causal_mask(committed: int, catch_up: int, tree: TokenTree | None, pending: int) -> Tensor | None:
    """bool [N, T]; None where every row sees all rows (a single new one)."""
    nodes = 0 if tree is None else len(tree) - pending
    new = catch_up + nodes
    if new == 1 and pending == 0:
        return None
    total = committed + catch_up + (0 if tree is None else len(tree))
    mask = torch.zeros((new, total), dtype=torch.bool)
    mask[:, :committed] = True
    if catch_up:
        mask[:catch_up, committed : committed + catch_up] = torch.ones((catch_up, catch_up), dtype=torch.bool).tril()
        mask[catch_up:, committed : committed + catch_up] = True
    if tree is not None:
        mask[catch_up:, committed + catch_up :] = torch.from_numpy(tree.ancestor_mask(pending))
    return mask


def _windowed(
    mask: Tensor | None, committed: int, catch_up: int, tree: TokenTree | None, pending: int, window: int
) -> View:
    root = committed + catch_up  # committed row i has position i, a node its root's position and its depth
    nodes = [] if tree is None else [root + depth for depth in tree.depths]
    new = [*range(committed, root), *nodes[pending:]]
    if max(new) < window:
        return View(0, mask)
    first = min(max(min(new) - window + 1, 0), root)  # no new row sees a row before it
    if mask is None:
        return View(first, None)
    distance = torch.tensor(new)[:, None] - torch.tensor([*range(first, root), *nodes])
    return View(first, mask[:, first:] & (distance < window))


def attend(
    queries_HND: Tensor,
    keys_HTD: Tensor,
    values_HTD: Tensor,
    mask_NT: Tensor | None,
    scale: float | None = None,
    cap: float | None = None,
) -> Tensor:
    """Softmax attention with grouped keys: query head h reads key head h * kv_heads // heads. Returns [N, H * D].

    ``scale``: factor on the scores; by default 1 / √D. ``cap``: see ``soft_cap``, of the scaled scores.
    """
    grouped = queries_HND.shape[0] != keys_HTD.shape[0]
    if cap is not None or (grouped and mask_NT is not None and queries_HND.is_cuda):
        group = queries_HND.shape[0] // keys_HTD.shape[0]
        mask_MT = None if mask_NT is None else mask_NT.repeat(group, 1)
        return attend_folded(queries_HND, keys_HTD, values_HTD, mask_MT, scale, cap)
    mask = None if mask_NT is None else mask_NT[None, None]
    queries, keys, values = queries_HND[None], keys_HTD[None], values_HTD[None]
    out = F.scaled_dot_product_attention(queries, keys, values, mask, scale=scale, enable_gqa=grouped)
    return out[0].transpose(0, 1).flatten(1)


def attend_folded(
    queries_HND: Tensor,
    keys_HTD: Tensor,
    values_HTD: Tensor,
    mask_MT: Tensor | None,
    scale: float | None = None,
    cap: float | None = None,
) -> Tensor:
    """``attend`` with the query heads of a key head as rows of one attention: CUDA's kernels that take masks know no
    groups, and PyTorch would write out all scores in their place.

    ``mask_MT``: bool, or what is added to the scores; M = H / K * N: the rows' mask for each query head of a key head.
    """
    heads, rows, size = queries_HND.shape
    queries = queries_HND.reshape(1, keys_HTD.shape[0], -1, size)
    if cap is None:
        mask = None if mask_MT is None else mask_MT[None, None]
        out = F.scaled_dot_product_attention(queries, keys_HTD[None], values_HTD[None], mask, scale=scale)
    else:  # PyTorch's kernels know no caps
        scores_KMT = soft_cap(queries[0] @ keys_HTD.transpose(1, 2) * (size**-0.5 if scale is None else scale), cap)
        if mask_MT is not None and mask_MT.dtype == torch.bool:
            scores_KMT = scores_KMT.masked_fill(~mask_MT, -torch.inf)
        elif mask_MT is not None:
            scores_KMT = scores_KMT + mask_MT
        wide = torch.promote_types(scores_KMT.dtype, torch.float32)
        out = scores_KMT.softmax(-1, dtype=wide).to(values_HTD.dtype) @ values_HTD
    return out.view(heads, rows, size).transpose(0, 1).reshape(rows, heads * size)


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """x where it is small, and never beyond ± cap."""
    return torch.tanh(x / cap) * cap
