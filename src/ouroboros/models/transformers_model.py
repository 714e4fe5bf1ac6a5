"""TransformersModel: a causal language model of transformers behind the protocol of base.py.

Chains run as the model masks them itself; trees run on explicit masks and positions. What a model takes, its maker
says: ``models.transformers_probe.adapt`` finds it out by trying. This file knows nothing of decoding, nor of any single
architecture.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
import transformers
from torch import Tensor
from transformers.cache_utils import Cache

from ouroboros.errors import LoadError
from ouroboros.models.base import ModelInfo, ScoreRequest, Slot, Work
from ouroboros.models.transformers_batch import SideBySide, padded_masks
from ouroboros.models.transformers_cache import RowSlot
from ouroboros.models.transformers_config import WINDOWS, end_tokens, mask_kinds, max_positions, positions_end
from ouroboros.tree import TokenTree

__all__ = ["MaskForm", "TransformersModel", "evaluating"]

PREFILL_CHUNK = 512
MaskForm = Literal["by kind", "single"]  # a tree's masks: one for each kind of attention, by its name; or one tensor


class TransformersModel:
    """A loaded transformers model (see base.CausalModel). ``info.trees`` says whether it takes trees or chains only;
    ``config``: of its text.

    Args:
        module: a causal language model; its ``forward`` alone is called, in evaluation mode, whatever mode it is in.
        vocab_size: the number of its logits. masks: how its forward takes the masks of a tree; None: it takes none.
        together: whether several sequences may share a forward, which takes such masks; else each has its own.
        past_end: it may go on past the positions that it was made for, where its forward does.

    Raises:
        LoadError: its weights are not in memory.
    """

    def __init__(
        self,
        module: transformers.PreTrainedModel,
        vocab_size: int,
        masks: MaskForm | None,
        together: bool = False,
        past_end: bool = False,
    ) -> None:
        assert masks is not None or not together
        self._module = module
        self._made_of = _state(module)
        self._parts_train = False
        self.config = module.config.get_text_config(decoder=True)
        self._form, self._together = masks, together
        embedding = module.get_input_embeddings().weight
        assert isinstance(embedding, Tensor)
        if embedding.is_meta and getattr(module, "hf_device_map", None) is None:
            raise LoadError("its weights are not in memory (device meta)")
        self._device: torch.device = torch.device("cpu") if embedding.is_meta else embedding.device
        parameters = inspect.signature(module.forward).parameters
        self.takes_positions = "position_ids" in parameters
        self._takes_rows = "logits_to_keep" in parameters
        self.info = ModelInfo(
            backend="transformers",
            vocab_size=vocab_size,
            max_positions=positions_end(self.config) if past_end else max_positions(self.config),
            eos_token_ids=end_tokens(module),
            parameters=sum(p.numel() for p in module.parameters()),
            dtype=str(module.dtype).removeprefix("torch."),
            device=str(self._device),
            trees=masks is not None,
            engine="one padded forward for several requests" if together else "several requests in turn",
            work=Work(cache_bytes=_row_bytes(self.config, module.dtype)),
        )

    @property
    def change(self) -> str | None:
        """What of the module is another than when this was made, and would be taken for the old; None: nothing."""
        state = _state(self._module)
        return next(
            (f"its {n} was {was} and is {state[n]}" for n, was in self._made_of.items() if state[n] != was), None
        )

    def open(self) -> RowSlot:
        """
        Raises:
            LoadError: the module has changed since.
        """
        if change := self.change:
            raise LoadError(f"the loaded {type(self._module).__name__} has changed, {change}; load it again")
        self._parts_train = any(part.training for part in self._module.modules())  # too slow for every forward
        return RowSlot()

    @torch.no_grad()
    def prefill(self, slot: Slot, token_ids: Sequence[int]) -> None:
        own = _own(slot)
        assert own.pending == 0, "tokens cannot be committed behind pending nodes"
        for start in range(0, len(token_ids), PREFILL_CHUNK):
            chunk = token_ids[start : start + PREFILL_CHUNK]
            self.forward(own, chunk, range(own.length, own.length + len(chunk)), None, [len(chunk) - 1])
            own.advance(len(chunk), 0)

    @torch.no_grad()
    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        each = [_Rows(request) for request in requests]
        if self._together and len(each) > 1 and not any(rows.slot.shifted for rows in each):
            return self._score_together(each)
        return [self._score(rows) for rows in each]

    def _score(self, rows: _Rows) -> Tensor:
        mask = None
        if any(parent != node - 1 for node, parent in enumerate(rows.tree.parents)):
            assert self._form is not None, "this model takes chains only"
            mask = self._masks(rows.tree, rows.pending, rows.catch_up, rows.seen)
        logits = self.forward(rows.slot, rows.tokens, rows.positions, mask, rows.wanted)
        rows.advance()
        return logits

    def _score_together(self, each: Sequence[_Rows]) -> list[Tensor]:
        """One forward, in which all have as many rows as the one with the most."""
        longest = max(len(rows.tokens) for rows in each)
        masks = [self._masks(rows.tree, rows.pending, rows.catch_up, rows.seen) for rows in each]
        mask: Any
        if isinstance(masks[0], dict):
            mask = {kind: padded_masks([own[kind] for own in masks]) for kind in masks[0]}
        else:
            mask = padded_masks(masks)
        tokens = [[*rows.tokens, *[0] * (longest - len(rows.tokens))] for rows in each]
        positions = [[*rows.positions, *[0] * (longest - len(rows.positions))] for rows in each]
        wanted = sorted({row for rows in each for row in rows.wanted})
        cache = SideBySide([rows.slot for rows in each], [len(rows.tokens) for rows in each])
        logits_BWV = self._forward(cache, tokens, positions, mask, wanted)
        for rows in each:
            rows.advance()
        places = {row: place for place, row in enumerate(wanted)}
        return [
            logits_WV[[places[row] for row in rows.wanted]] for rows, logits_WV in zip(each, logits_BWV, strict=True)
        ]

    def forward(
        self, slot: RowSlot, tokens: Sequence[int], positions: Sequence[int], mask: Any, rows: Sequence[int]
    ) -> Tensor:
        """Appends rows to the slot, which counts them after. Returns the logits [rows, vocabulary] behind ``rows``.

        Without a mask the tokens are a chain, and the model masks it.
        """
        return self._forward(slot.cache, [tokens], [positions], mask, rows, slot)[0]

    def _forward(
        self,
        cache: Cache,
        tokens: Sequence[Sequence[int]],
        positions: Sequence[Sequence[int]],
        mask: Any,
        rows: Sequence[int],
        shifted: RowSlot | None = None,
    ) -> Tensor:
        """Of a batch: logits [sequences, rows, vocabulary]. ``shifted``: a lone sequence, that may have positions and
        inputs of its own."""
        ahead, beside = (0, {}) if shifted is None else (shifted.ahead, shifted.beside)
        last = max(max(own) for own in positions) + (ahead if isinstance(ahead, int) else 0)
        assert last < self.info.max_positions, f"position {last} is beyond the model's context"
        # Ids beyond the matrix can only reach a draft model with fewer padding rows than its target.
        ids = torch.tensor([list(own) for own in tokens], device=self._device).clamp_(
            max=self._made_of["vocabulary"] - 1
        )
        arguments: dict[str, Any] = {"input_ids": ids, "past_key_values": cache, "attention_mask": mask}
        if self.takes_positions:
            arguments["position_ids"] = torch.tensor([list(own) for own in positions], device=self._device) + ahead
        if self._takes_rows:
            arguments["logits_to_keep"] = torch.tensor(list(rows), dtype=torch.long)  # on a CPU it indexes any device
        for name, value in beside.items():
            arguments[name] = value.expand(-1, len(tokens[0]))
        with evaluating(self._module) if self._parts_train or self._module.training else nullcontext():
            logits: Tensor = self._module(**arguments, use_cache=True, return_dict=True).logits
        return logits if self._takes_rows else logits[:, list(rows)]

    def _masks(self, tree: TokenTree, pending: int, catch_up: int, positions: Sequence[int]) -> Any:
        """Additive masks [1, 1, N, T] of the new rows (catch-up tokens, then nodes) over all rows."""
        total, root = len(positions), len(positions) - len(tree)
        first = root + pending - catch_up  # the first new row
        visible = torch.ones((total - first, total), dtype=torch.bool).tril(first)
        visible[catch_up:, root:] = torch.from_numpy(tree.ancestor_mask(pending))
        keys, queries = torch.tensor(positions), torch.tensor(positions[first:])[:, None]

        def additive(kind: str) -> Tensor:
            seen = visible
            if kind != "full_attention":
                size = getattr(self.config, WINDOWS[kind])
                near = keys > queries - size if kind == "sliding_attention" else keys // size == queries // size
                seen = visible & near
            mask = torch.zeros(visible.shape, dtype=self._module.dtype)
            return mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)[None, None].to(self._device)

        masks = {kind: additive(kind) for kind in mask_kinds(self.config)}
        return masks if self._form == "by kind" else next(iter(masks.values()))


class _Rows:
    """One request's new rows: their tokens, positions, and those whose logits are ``wanted``. ``seen``: the positions
    of all rows, cached ones too. ``catch_up``: how many of the new rows come before the tree."""

    def __init__(self, request: ScoreRequest) -> None:
        self.slot, self.tree = _own(request.slot), request.tree
        slot, tree, pending, catch_up = self.slot, self.tree, self.slot.pending, request.catch_up
        assert not catch_up or pending == 0, "catch-up tokens cannot follow pending nodes"
        assert len(tree) > pending, "a forward needs new nodes"
        self.pending, self.catch_up = pending, len(catch_up)
        root = slot.length + len(catch_up)
        nodes = [root + depth for depth in tree.depths]
        self.tokens = [*catch_up, *tree.tokens[pending:]]
        self.positions = [*range(slot.length, root), *nodes[pending:]]
        self.seen = [*range(root), *nodes]
        rows = range(pending, len(tree)) if request.rows is None else request.rows
        self.wanted = [len(catch_up) + row - pending for row in rows]

    def advance(self) -> None:
        """Counts the rows, once the cache holds them."""
        self.slot.advance(self.catch_up, len(self.tree) - self.pending)


def _row_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes of one position in the cache, as far as the config says; 0 where it does not."""
    heads = getattr(config, "num_attention_heads", None) or 0
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    hidden, layers = getattr(config, "hidden_size", None) or 0, getattr(config, "num_hidden_layers", None) or 0
    if not all(isinstance(value, int) for value in (heads, kv_heads, hidden, layers)) or not heads:
        return 0
    size = getattr(config, "head_dim", None) or hidden // heads
    return 2 * layers * kv_heads * size * dtype.itemsize


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Meanwhile a module is in evaluation mode (no dropout); afterwards each of its parts is in the mode it was in."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _state(module: transformers.PreTrainedModel) -> dict[str, Any]:
    """What a change of the module would make wrong here."""
    head, embedding = module.get_output_embeddings(), module.get_input_embeddings().weight
    assert isinstance(embedding, Tensor)
    text = module.config.get_text_config(decoder=True)
    return {
        "vocabulary": embedding.shape[0],
        "number of logits": getattr(getattr(head, "weight", None), "shape", (0,))[0],
        "dtype": module.dtype,
        "device": embedding.device,
        "attention": text._attn_implementation,
        "context": max_positions(text),
        "end tokens": end_tokens(module),
    }


def _own(slot: Slot) -> RowSlot:
    assert isinstance(slot, RowSlot), "a slot belongs to the model that opened it"
    return slot
