"""What is trained on: sequences of tokens, and batches of them in an order that seed and step alone decide.

So a run that was interrupted goes on with the batches that it would have had. It knows nothing of models and text.

Tensor names: B sequences, L tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ouroboros.errors import InputError

__all__ = ["Batch", "Batches", "Example", "windows"]

GROUP = 16  # batches whose sequences are sorted by length together: little padding, still shuffled


@dataclass(frozen=True, slots=True)
class Example:
    """``tokens``: a text; ``first``: index of the first token to be learned (before it is the prompt), at least 1."""

    tokens: tuple[int, ...]
    first: int = 1


@dataclass(frozen=True, slots=True)
class Batch:
    """``ids_BL``: tokens, filled up with 0 on the right; ``learned_BL``: bool, whether the row's *next* token is to be
    learned."""

    ids_BL: Tensor
    learned_BL: Tensor


class Batches:
    """Batches without end; each example comes once in an epoch.

    Args:
        examples: at least one. batch: sequences of a batch, fewer where there are fewer examples. length: the most
            tokens of a sequence; what is longer loses its beginning (of the prompt), then its end.

    Raises:
        InputError: nothing to learn from.
    """

    def __init__(self, examples: Sequence[Example], batch: int, length: int, seed: int) -> None:
        cut = (_cut(example, length) for example in examples)
        self._examples = [example for example in cut if len(example.tokens) > example.first >= 1]
        if not self._examples:
            raise InputError("there is nothing to train on: no text has a token behind its first")
        self._batch = min(batch, len(self._examples))
        self._seed = seed
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    def __len__(self) -> int:
        """Batches of an epoch; what does not fill a batch waits for another epoch's order."""
        return len(self._examples) // self._batch

    def __call__(self, step: int) -> Batch:
        epoch, place = divmod(step, len(self))
        if self._epoch[0] != epoch:
            self._epoch = epoch, self._order(epoch)
        return _pad([self._examples[i] for i in self._epoch[1][place]])

    def _order(self, epoch: int) -> list[list[int]]:
        rng = random.Random(f"{self._seed}/{epoch}")
        order = rng.sample(range(len(self._examples)), k=len(self) * self._batch)
        batches: list[list[int]] = []
        for start in range(0, len(order), GROUP * self._batch):
            group = order[start : start + GROUP * self._batch]
            group.sort(key=lambda i: len(self._examples[i].tokens))
            batches += [group[i : i + self._batch] for i in range(0, len(group), self._batch)]
        rng.shuffle(batches)
        return batches


def _cut(example: Example, length: int) -> Example:
    over = len(example.tokens) - length
    if over <= 0:
        return example
    skipped = min(over, max(0, example.first - 1))
    return Example(example.tokens[skipped : skipped + length], example.first - skipped)


def _pad(examples: Sequence[Example]) -> Batch:
    longest = max(len(example.tokens) for example in examples)
    ids_BL = torch.zeros(len(examples), longest, dtype=torch.long)
    learned_BL = torch.zeros(len(examples), longest, dtype=torch.bool)
    for row, example in enumerate(examples):
        ids_BL[row, : len(example.tokens)] = torch.tensor(example.tokens)
        learned_BL[row, example.first - 1 : len(example.tokens) - 1] = True
    return Batch(ids_BL, learned_BL)


def windows(texts: Iterable[Sequence[int]], length: int) -> list[Example]:
    """Texts cut into examples of ``length`` tokens, one token of each being the first of the next."""
    return [
        Example(tuple(text[start : start + length]))
        for text in texts
        for start in range(0, max(1, len(text) - 1), length - 1)
        if len(text) - start > 1
    ]
