"""A target that learns from its own best answers, and unlearns its loops.

What a small model writes is vague and loops. As with instruction-tuned models, a little training on text of its own
helps: it answers prompts of the corpus several times, the likeliest answer that ends, parses and does not repeat itself
is kept and learned (rejection sampling, Zelikman et al. 2022; Dong et al. 2023), and tokens of its greedy and sampled
text that complete a 4-gram for another time are made unlikely (sequence-level unlikelihood, Welleck et al. 2020).
It knows nothing of files.

Tensor names: B sequences, L tokens, N learned rows, V vocabulary.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from ouroboros.stats import repeated_4grams
from ouroboros.training.examples import Batch, Batches, Example
from ouroboros.training.trainer import Plan, Trainer
from recipes.embedded_pair.models import head_rows

LOOPS_EVERY = 3  # every third step unlearns
MOST_REPEATED = 0.12  # share of repeated 4-grams that a kept answer may have


@dataclass(frozen=True)
class Answer:
    """A prompt's ids with those of an answer, an end-of-sequence last; ``score``: its nats a token."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    score: float

    @property
    def example(self) -> Example:
        return Example((*self.prompt, *self.tokens), len(self.prompt))


def is_code(text: str) -> bool:
    """Whether a document is Python, and every function in it has a body behind its docstring."""
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return bool(functions) and all(len(node.body) > (ast.get_docstring(node) is not None) for node in functions)


def is_good(tokenizer: Tokenizer, prompt: Sequence[int], tokens: Sequence[int], code: bool) -> bool:
    """Whether an answer ends, does not loop and, where it is code, parses."""
    if not tokens or tokens[-1] != 0 or repeated_4grams(tokens) > MOST_REPEATED:
        return False
    return not code or is_code(tokenizer.decode([*prompt, *tokens]))


def best_answers(
    module: Any, groups: Sequence[Sequence[tuple[Sequence[int], Sequence[int]]]], batch: int = 32
) -> list[Answer]:
    """Of each group of (prompt, answer) the one with the highest mean log-probability."""
    flat = [pair for group in groups for pair in group]
    scores = log_likelihoods(module, flat, batch)
    found, place = [], 0
    for group in groups:
        if group:
            score, number = max((scores[place + i], i) for i in range(len(group)))
            found.append(Answer(tuple(group[number][0]), tuple(group[number][1]), score))
        place += len(group)
    return found


@torch.inference_mode()
def log_likelihoods(module: Any, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], batch: int) -> list[float]:
    """Mean log-probability of the tokens behind each prompt."""
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    found = [0.0] * len(pairs)
    device = next(module.parameters()).device
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        texts = [[*pairs[i][0], *pairs[i][1]] for i in rows]
        ids_BL = torch.zeros(len(rows), max(map(len, texts)), dtype=torch.long)
        for row, text in enumerate(texts):
            ids_BL[row, : len(text)] = torch.tensor(text)
        logits = module(input_ids=ids_BL.to(device), use_cache=False).logits
        for row, i in enumerate(rows):
            first, last = len(pairs[i][0]), len(texts[row])
            logs = logits[row, first - 1 : last - 1].float().log_softmax(-1)
            found[i] = float(logs.gather(-1, ids_BL[row, first:last, None].to(device)).mean())
    return found


def good_beginnings(
    tokenizer: Tokenizer, texts: Sequence[tuple[Sequence[int], Sequence[int]]], least: int = 12, most: int = 40
) -> list[Example]:
    """Of texts that were not allowed to end, and so break off: the longest beginning that is Python, where that is
    at most ``most`` tokens shorter and repeats itself little."""
    found = []
    for prompt, tokens in texts:
        for count in range(len(tokens), max(len(tokens) - most, least), -1):
            text = tokenizer.decode([*prompt, *tokens[:count]])
            if text.endswith("\n") and is_code(text):
                if repeated_4grams(tokens[:count]) <= MOST_REPEATED:
                    found.append(Example((*prompt, *tokens[:count]), len(prompt)))
                break
    return found


class Loops:
    """Batches of texts whose repetitions are to be unlearned: "learned" are the tokens of the model's own that complete
    a 4-gram which stood in its text before."""

    def __init__(
        self, texts: Sequence[tuple[Sequence[int], Sequence[int]]], batch: int, length: int, seed: int
    ) -> None:
        examples = [Example((*prompt, *tokens), len(prompt)) for prompt, tokens in texts]
        self._batches = Batches([one for one in examples if any(repeats(one.tokens, one.first))], batch, length, seed)

    def __call__(self, step: int) -> Batch:
        batch = self._batches(step)
        learned_BL = torch.zeros_like(batch.learned_BL)
        for row, (ids, learned) in enumerate(zip(batch.ids_BL.tolist(), batch.learned_BL.tolist(), strict=True)):
            first = learned.index(True) + 1
            count = sum(learned)
            marks = repeats(ids[: first + count], first)
            learned_BL[row, first - 1 : first - 1 + len(marks)] = torch.tensor(marks)
        return Batch(batch.ids_BL, learned_BL)


def repeats(tokens: Sequence[int], first: int) -> list[bool]:
    """For each token from ``first`` on: whether it completes a 4-gram that stood behind ``first`` before."""
    seen: set[tuple[int, ...]] = set()
    found = []
    for place in range(first, len(tokens)):
        gram = tuple(tokens[place - 3 : place + 1]) if place - 3 >= first else None
        found.append(gram in seen)
        if gram is not None:
            seen.add(gram)
    return found


class Refiner(Trainer):
    """Trains on kept answers and corpus; every third step makes tokens of ``Loops`` unlikely (see ``alternate``)."""

    def __init__(self, module: Any, plan: Plan) -> None:
        super().__init__(module, None, plan)

    def loss(self, batch: Batch) -> Tensor:
        ids_BL, learned_BL = batch.ids_BL.to(self._device), batch.learned_BL.to(self._device)
        with self._autocast():
            logits_NV = head_rows(self.draft, ids_BL, learned_BL)
        next_N = ids_BL.roll(-1, dims=1)[learned_BL]
        if self.step % LOOPS_EVERY == LOOPS_EVERY - 1:
            return unlikelihood(logits_NV, next_N)
        return F.cross_entropy(logits_NV.float(), next_N, reduction="none")


def unlikelihood(logits_NV: Tensor, next_N: Tensor) -> Tensor:
    """−log(1 − q(token)) in nats, [N]."""
    logs_N = -F.cross_entropy(logits_NV.float(), next_N, reduction="none")
    return -torch.log1p(-logs_N.exp().clamp(max=1 - 1e-4))


def alternate(good: Callable[[int], Batch], loops: Callable[[int], Batch]) -> Callable[[int], Batch]:
    """The batches of a ``Refiner``."""

    def batches(step: int) -> Batch:
        number, place = divmod(step, LOOPS_EVERY)
        return loops(number) if place == LOOPS_EVERY - 1 else good(number * (LOOPS_EVERY - 1) + place)

    return batches
