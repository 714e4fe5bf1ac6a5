"""The protocol between decoding and models: open a slot, prefill it, score trees, commit a path.

Cache invariant, between two steps: a slot holds all committed tokens but the last; the tree's root is that last token.
``score`` leaves its nodes *pending* behind the committed rows; a later ``score`` of the same tree, grown by more nodes,
computes the new nodes alone; ``commit`` keeps a path of pending nodes and drops the rest; ``rewind`` shortens the
committed part. This file knows nothing of any architecture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ouroboros.tree import TokenTree

__all__ = ["CausalModel", "ModelInfo", "ScoreRequest", "Slot", "Work"]


@dataclass(frozen=True, slots=True)
class Work:
    """What a forward has to do, from the model's shapes; 0 where nobody knows.

    Attributes:
        bytes: of weights, read once in each forward. products: multiplications of each new row.
        cache_bytes: read for each cached position. cache_products: of each new row, for each cached position.
        layers: blocks that are computed one after the other.
    """

    bytes: int = 0
    products: int = 0
    cache_bytes: int = 0
    cache_products: int = 0
    layers: int = 0


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What decoding needs to know of a model. ``max_positions``: of a sequence; ``dtype``, ``device``: torch names;
    ``trees``: False where ``score`` takes chains only; ``part_of_text``: whether a sequence may begin anywhere in a
    text, or must with the prompt; ``engine``: what computes, and why nothing faster; ``mixes``: whether one forward may
    read text of some slots and score trees of others, for less than two take; ``grown``: from what to what, for a model
    that costs more than it has learned (see grow.py), None for others; ``stored``: of a GGUF file, the types of its
    matrices, from which they were rounded to ``dtype``; ``work``: what a forward does."""

    backend: str
    vocab_size: int
    max_positions: int
    eos_token_ids: frozenset[int]
    parameters: int
    dtype: str
    device: str
    trees: bool = True
    part_of_text: bool = True
    engine: str = ""
    mixes: bool = False
    grown: str | None = None
    stored: str | None = None
    work: Work = Work()


class Slot(Protocol):
    """One sequence's cache inside a model."""

    @property
    def length(self) -> int:
        """Committed tokens in the cache."""

    @property
    def pending(self) -> int:
        """Tree nodes that are scored and not yet committed."""

    def commit(self, path: Sequence[int]) -> None:
        """Keeps these pending nodes (a path from node 0 downwards, in order) as committed rows and drops the others."""

    def truncate(self, pending: int) -> None:
        """Forgets the pending nodes from index ``pending`` on."""

    def rewind(self, length: int) -> None:
        """Forgets the pending nodes and all committed rows from ``length`` on."""

    def fork(self, length: int) -> Slot:
        """A new slot with a copy of the first ``length`` committed rows of this one, which stays as it is."""


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """One sequence's share of a forward.

    Attributes:
        slot: its cache. tree: nodes below ``slot.pending`` are scored already, the others are computed now.
        rows: nodes (each ≥ slot.pending) whose logits are wanted, in this order; None for all the new ones.
        catch_up: committed tokens, before the root, that the cache lacks; computed in the same forward and committed.
            Only when nothing is pending.
    """

    slot: Slot
    tree: TokenTree
    rows: Sequence[int] | None = None
    catch_up: Sequence[int] = ()


class CausalModel(Protocol):
    """A causal language model with caches for several sequences."""

    @property
    def info(self) -> ModelInfo: ...

    def open(self) -> Slot:
        """A new empty slot; it is freed when it is no longer referred to."""

    def prefill(self, slot: Slot, token_ids: Sequence[int]) -> None:
        """Appends tokens to the committed rows of a slot without pending nodes; computes no logits."""

    def score(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        """One forward for all requests. Returns for each the logits behind its wanted rows, [rows, vocabulary]."""
