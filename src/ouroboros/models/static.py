"""StaticDecoder: forwards of fixed shapes over static buffers, replayed as CUDA graphs.

Launching some ten kernels a layer costs more than the kernels do for a few rows. So a forward's rows are filled up to
a bucket, its cache is seen up to a bucket's end, everything that differs from step to step (tokens, positions, places
in the cache, the tree's mask, the wanted rows) comes in one small tensor, and the whole is captured once for each shape
and cache buffer. Rows that fill up see the first cached row and are written to the buffer's last one. Without graphs
(on a CPU, say) the same code runs operator by operator.

In a capture nothing may touch the host: no tensor is made from Python numbers, and no shape depends on a value. Graphs
share one memory pool, since they are replayed one after the other, and one buffer for their logits.

Several sequences at once and long prefills go through the operators' decoder, whose weights these are.

Tensor names: N rows of a bucket, R region (the rows from the first uncommitted one on), W wanted rows (one may be
wanted twice), T cached rows seen, H query heads, K key heads, D head size, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ouroboros.models.attention import attend_folded, visible_rows
from ouroboros.models.block import Block
from ouroboros.models.kv_cache import KVCache
from ouroboros.models.operators import OperatorDecoder
from ouroboros.models.weights import Reader

__all__ = ["StaticDecoder"]

ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # few: each makes graphs of its own, and rows cost little there
REGIONS = (32, 128)  # no more than a mask's width depends on it
SPAN = 256  # cached rows are seen in multiples of this
GRAPHS = 256  # kept at most; the oldest goes

Shape = tuple[int, int, int, int]  # N, R, W, T


class StaticDecoder:
    """Computes forwards of one model (see llama.Decoder).

    Args:
        layers: the linear layers' format (see linear.py). graphs: capture them, on CUDA.
    """

    def __init__(self, reader: Reader, layers: str, graphs: bool) -> None:
        self._operators = OperatorDecoder(reader, layers)
        self._config, self._device = reader.config, reader.device
        self._graphs: dict[tuple[int, Shape], _Graph] | None = {} if graphs else None
        self._memory = torch.cuda.graph_pool_handle() if graphs else None
        size = ROWS[-1] if graphs else 0
        self._logits = torch.empty((size, reader.config.vocab_size), dtype=reader.dtype, device=reader.device)

    def forward(self, blocks: Sequence[Block], wanted: Sequence[int]) -> Tensor:
        rows = sum(len(block) for block in blocks)
        if len(blocks) > 1 or max(rows, len(wanted)) > ROWS[-1] or not wanted:
            return self._operators.forward(blocks, wanted)
        (block,) = blocks
        cache = block.cache
        region = cache.pending + rows
        filled = next((size for size in REGIONS if size >= region), -(-region // SPAN) * SPAN)
        cache.reserve(filled - cache.pending + 1)  # and one that nobody reads
        span = min(-(-(cache.length + filled) // SPAN) * SPAN, cache.capacity)
        bucket = _bucket(max(rows, len(wanted)))
        shape = bucket, filled, 1 if len(wanted) == 1 else bucket, span
        self._operators.grow_tables(cache.capacity)
        inputs = _inputs(block, wanted, shape, cache.capacity - 1, self._config.vocab_size)
        if self._graphs is not None:
            inputs = inputs.pin_memory()
        logits_NV = self._run(cache, shape, inputs)
        block.advance()
        return logits_NV[: len(wanted)].clone()  # the next forward overwrites it

    def _run(self, cache: KVCache, shape: Shape, inputs: Tensor) -> Tensor:
        if self._graphs is None:
            return self._compute(cache.buffer, shape, inputs.to(self._device))
        key = cache.buffer.data_ptr(), shape
        graph = self._graphs.pop(key, None)
        if graph is None or graph.tables is not self._operators.tables:
            buffer, logits = cache.buffer, self._logits[: shape[2]]

            def compute(given: Tensor) -> Tensor:
                return logits.copy_(self._compute(buffer, shape, given))

            graph = _Graph(compute, inputs, logits, self._memory)
            graph.tables, graph.buffer = self._operators.tables, buffer
            while len(self._graphs) >= GRAPHS:
                self._graphs.pop(next(iter(self._graphs)))
        self._graphs[key] = graph  # the latest is the last
        return graph.replay(inputs)

    def _compute(self, buffer: Tensor, shape: Shape, inputs: Tensor) -> Tensor:
        """Logits [W, V] of the wanted rows, and of others where fewer are wanted."""
        config, operators = self._config, self._operators
        rows, region, _, span = shape
        tokens, positions, places, wanted, region_positions, root, tree_NR = inputs.split(_sizes(shape))
        tree_NR = tree_NR.view(rows, region)
        masks = self._masks(positions, root, region_positions, tree_NR, span)
        turns = [table[positions] for table in operators.tables]

        def attention(i: int, q_HND: Tensor, k_HND: Tensor, v_HND: Tensor) -> Tensor:
            keys, values = buffer[i]
            keys.index_copy_(1, places, k_HND)
            values.index_copy_(1, places, v_HND)
            mask = masks[operators.layers[i].window]
            scale, cap = config.attention_scale, config.attention_softcap
            return attend_folded(q_HND, keys[:, :span], values[:, :span], mask, scale, cap)

        x_NE = operators.run(tokens, turns, attention)
        return operators.logits(x_NE[wanted])

    def _masks(
        self, positions: Tensor, root: Tensor, region_positions: Tensor, tree_NR: Tensor, span: int
    ) -> dict[int | None, Tensor]:
        """For each window what is added to the scores, [H / K * N, T]: nothing for committed rows and what the tree
        allows of the region, else -∞. Every layer would turn a bool mask into this."""
        group = self._config.num_attention_heads // self._config.num_key_value_heads
        places = torch.arange(span, device=self._device)
        inside = (places - root).clamp(0, tree_NR.shape[1] - 1)
        seen_NT = (places < root) | ((tree_NR[:, inside] != 0) & (places < root + tree_NR.shape[1]))
        row_positions = torch.where(places < root, places, region_positions[inside])
        masks = {}
        for window in self._operators.windows:
            mask_NT = seen_NT
            if window is not None:
                mask_NT = seen_NT & (positions[:, None] - row_positions < window)
                mask_NT = mask_NT | (mask_NT.sum(-1, keepdim=True) == 0)  # rows that fill up must see something
            added_NT = torch.zeros(mask_NT.shape, dtype=self._logits.dtype, device=self._device)
            masks[window] = added_NT.masked_fill_(~mask_NT, -torch.inf).repeat(group, 1)
        return masks


class _Graph:
    """A captured forward, which writes to ``logits``; what it reads and writes lies where it lay at the capture."""

    tables: tuple[Tensor, ...]
    buffer: Tensor

    def __init__(self, compute: Callable[[Tensor], Tensor], inputs: Tensor, logits: Tensor, memory: Any) -> None:
        self._inputs, self._logits = inputs.to(logits.device), logits
        with torch.cuda.device(logits.device):  # streams are made on the current device
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # libraries make their handles and choices outside of the capture
                compute(self._inputs)
                compute(self._inputs)
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, pool=memory, stream=side):
                compute(self._inputs)

    def replay(self, inputs: Tensor) -> Tensor:
        self._inputs.copy_(inputs, non_blocking=True)
        self._graph.replay()
        return self._logits


def _bucket(rows: int) -> int:
    return next(size for size in ROWS if size >= rows)


def _inputs(block: Block, wanted: Sequence[int], shape: Shape, spare: int, vocabulary: int) -> Tensor:
    """int64, one behind the other: tokens, positions, places in the cache [N]; wanted [W]; positions of the region [R];
    the region's first row [1]; the mask [N, R]."""
    rows, region, _, _ = shape
    length, new = block.cache.length, len(block)
    first = length + block.cache.pending
    pending = [] if block.tree is None else block.tree.depths[: block.pending]
    positions = block.positions()
    region_positions = [*(length + depth for depth in pending), *positions]
    whole = torch.zeros(sum(_sizes(shape)), dtype=torch.int64)
    tokens, own_positions, places, chosen, positions_of, root, mask = whole.split(_sizes(shape))
    tokens[:new] = torch.tensor(block.tokens).clamp_(max=vocabulary - 1)  # see operators.py
    own_positions[:new] = torch.tensor(positions)
    places.fill_(spare)[:new] = torch.arange(first, first + new)
    chosen[: len(wanted)] = torch.tensor(wanted)
    positions_of[: len(region_positions)] = torch.tensor(region_positions)
    root.fill_(length)
    mask_NR = mask.view(rows, region)
    view = visible_rows(length, len(block.catch_up), block.tree, block.pending, (None,))[None]
    seen = torch.ones((1, 1), dtype=torch.bool) if view.mask is None else view.mask[:, length:]
    mask_NR[:new, : seen.shape[1]] = seen
    mask_NR[new:, 0] = 1
    return whole


def _sizes(shape: Shape) -> list[int]:
    rows, region, wanted, _ = shape
    return [rows, rows, rows, wanted, region, 1, rows * region]
