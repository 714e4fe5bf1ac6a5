"""StaticDecoder: forwards of fixed shapes over static buffers, replayed as CUDA graphs.

Launching some ten kernels a layer costs more than the kernels do for a few rows. So a forward's rows are filled up to
a bucket, its cache is seen up to a bucket's end, everything that differs from step to step (tokens, positions, places
in the cache, the tree's mask, the wanted rows) comes in one small tensor, and the whole is captured once for each shape
and cache buffer. Rows that fill up see the first cached row and are written to the buffer's last one. Without graphs
(on a CPU, say) the same code runs operator by operator.

Several sequences at once and long prefills go through the operators' decoder, whose weights these are.

Tensor names: N rows of a bucket, R region (the rows from the first uncommitted one on), W wanted rows (one may be
wanted twice), T cached rows seen, H query heads, K key heads, D head size, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ouroboros.models.attention import visible_rows
from ouroboros.models.block import Block
from ouroboros.models.kv_cache import KVCache
from ouroboros.models.operators import OperatorDecoder
from ouroboros.models.weights import Reader

__all__ = ["StaticDecoder"]

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128)
SPAN = 256  # cached rows are seen in multiples of this
GRAPHS = 256  # kept at most; the oldest goes

Shape = tuple[int, int, int, int]  # N, R, W, T


class StaticDecoder:
    """Computes forwards of one model (see llama.Decoder). ``graphs``: capture them, on CUDA."""

    def __init__(self, reader: Reader, graphs: bool) -> None:
        self._operators = OperatorDecoder(reader, packed=False)
        self._config, self._device = reader.config, reader.device
        self._graphs: dict[tuple[int, Shape], _Graph] | None = {} if graphs else None
        self._memory = torch.cuda.graph_pool_handle() if graphs else None

    def forward(self, blocks: Sequence[Block], wanted: Sequence[int]) -> Tensor:
        rows = sum(len(block) for block in blocks)
        if len(blocks) > 1 or max(rows, len(wanted)) > ROWS[-1] or not wanted:
            return self._operators.forward(blocks, wanted)
        (block,) = blocks
        cache = block.cache
        region = cache.pending + rows
        filled = _bucket(region) if region <= ROWS[-1] else -(-region // SPAN) * SPAN
        cache.reserve(max(_bucket(rows), filled - cache.pending) + 1)  # and one that nobody reads
        span = min(-(-(cache.length + filled) // SPAN) * SPAN, cache.capacity)
        shape = _bucket(rows), filled, _bucket(len(wanted)), span
        self._operators.grow_tables(cache.capacity)
        inputs = _inputs(block, wanted, shape, cache.capacity - 1, self._config.vocab_size)
        logits_NV = self._run(cache, shape, inputs)
        block.advance()
        return logits_NV[: len(wanted)].clone()  # the next forward overwrites it

    def _run(self, cache: KVCache, shape: Shape, inputs: Tensor) -> Tensor:
        if self._graphs is None:
            return self._compute(cache.buffer, shape, inputs.to(self._device))
        key = cache.buffer.data_ptr(), shape
        graph = self._graphs.pop(key, None)
        if graph is None or graph.tables is not self._operators.tables:
            buffer = cache.buffer
            graph = _Graph(lambda given: self._compute(buffer, shape, given), inputs, self._device, self._memory)
            graph.tables, graph.buffer = self._operators.tables, buffer
            while len(self._graphs) >= GRAPHS:
                self._graphs.pop(next(iter(self._graphs)))
        self._graphs[key] = graph  # the latest is the last
        return graph.replay(inputs)

    def _compute(self, buffer: Tensor, shape: Shape, inputs: Tensor) -> Tensor:
        """Logits [W, V] of the wanted rows, and of others where fewer are wanted."""
        config, operators = self._config, self._operators
        rows, region, _, span = shape
        heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        tokens, positions, places, wanted, region_positions, root, tree_NR = inputs.split(_sizes(shape))
        tree_NR = tree_NR.view(rows, region)
        masks = self._masks(positions, root, region_positions, tree_NR, span)
        cos_ND, sin_ND = (table[positions] for table in operators.tables)

        def attention(i: int, q_HND: Tensor, k_HND: Tensor, v_HND: Tensor) -> Tensor:
            keys, values = buffer[i]
            keys.index_copy_(1, places, k_HND)
            values.index_copy_(1, places, v_HND)
            # Query heads that share a key head are rows of one attention: kernels take a mask then, and copy no keys.
            queries = q_HND.reshape(1, kv_heads, heads // kv_heads * rows, size)
            mask = masks[operators.layers[i].window]
            out = F.scaled_dot_product_attention(
                queries, keys[None, :, :span], values[None, :, :span], mask, scale=config.attention_scale
            )
            return out.view(heads, rows, size).transpose(0, 1).reshape(rows, heads * size)

        x_NE = operators.run(tokens, cos_ND, sin_ND, attention)
        return operators.logits(x_NE[wanted])

    def _masks(
        self, positions: Tensor, root: Tensor, region_positions: Tensor, tree_NR: Tensor, span: int
    ) -> dict[int | None, Tensor]:
        """For each window bool [1, 1, H / K * N, T]: committed rows, and of the region what the tree allows."""
        config = self._config
        places = torch.arange(span, device=self._device)
        inside = (places - root).clamp(0, tree_NR.shape[1] - 1)
        seen_NT = torch.where(places < root, True, (tree_NR[:, inside] != 0) & (places < root + tree_NR.shape[1]))
        row_positions = torch.where(places < root, places, region_positions[inside])
        masks = {}
        for window in self._operators.windows:
            mask_NT = seen_NT
            if window is not None:
                mask_NT = seen_NT & (positions[:, None] - row_positions < window)
                mask_NT = mask_NT | (mask_NT.sum(-1, keepdim=True) == 0)  # rows that fill up must see something
            masks[window] = mask_NT.repeat(config.num_attention_heads // config.num_key_value_heads, 1)[None, None]
        return masks


class _Graph:
    """A captured forward: its input and output lie where they lay at the capture."""

    tables: tuple[Tensor, Tensor]
    buffer: Tensor

    def __init__(self, compute: Callable[[Tensor], Tensor], inputs: Tensor, device: torch.device, memory: Any) -> None:
        self._inputs = inputs.to(device)
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):  # libraries make their handles and choices outside of the capture
            compute(self._inputs)
            compute(self._inputs)
        torch.cuda.current_stream(device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=memory):
            self._logits = compute(self._inputs)

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
    return whole.pin_memory() if torch.cuda.is_available() else whole


def _sizes(shape: Shape) -> list[int]:
    rows, region, wanted, _ = shape
    return [rows, rows, rows, wanted, region, 1, rows * region]
