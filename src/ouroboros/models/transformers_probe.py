"""``adapt``: whether a transformers model computes trees, chains only or nothing that can be rolled back, by trying.

Its answers through the cache, on short random texts, must be those of its own forward without one. It knows nothing of
any single architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import transformers
from torch import Tensor

from ouroboros.errors import LoadError
from ouroboros.models.base import ScoreRequest
from ouroboros.models.transformers_config import (
    check_config,
    check_module,
    mask_kinds,
    max_positions,
    narrowed,
    unknown_window,
)
from ouroboros.models.transformers_model import MaskForm, TransformersModel, evaluating
from ouroboros.tree import Origin, TokenTree

__all__ = ["Make", "adapt"]

MASKED = {"eager", "sdpa"}  # implementations of attention that take any additive mask
# What two ways of computing the same logits may differ by, in parts of the logits' scale. In the short types a mixture
# of experts may route single rows otherwise: there the median counts.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
PROMPT, DEPTH = 8, 6  # of the test's texts
SHARED = (0, 3, 1, 4)  # how many tokens below the root each of them shares with the one before it

Make = Callable[..., TransformersModel]  # as TransformersModel


@dataclass(frozen=True, slots=True)
class _Truth:
    """The test's texts, which share a prompt, and with the one before them a part of what follows; and what the model's
    own forward without a cache says of them, [texts, tokens, vocabulary]."""

    texts: list[list[int]]
    logits: Tensor


@torch.no_grad()  # and no inference mode: tables that a module makes and keeps in its first forward are trained with
def adapt(module: transformers.PreTrainedModel, make: Make = TransformersModel) -> TransformersModel:
    """A loaded model behind the protocol, with what it has been found to take; it keeps the mode it is in.

    Raises:
        LoadError: its answers depend on later tokens, or on a state that cannot be rolled back.
    """
    check_config(module.config)
    check_module(module)
    with evaluating(module):
        return _adapt(module, make)


def _adapt(module: transformers.PreTrainedModel, make: Make) -> TransformersModel:
    config = module.config.get_text_config(decoder=True)
    matrix = module.get_input_embeddings().weight
    assert isinstance(matrix, Tensor)
    embeddings = matrix.shape[0]
    chains = make(module, embeddings, None)  # refuses weights that are not there, before they are tried
    if max_positions(config) < PROMPT + DEPTH:
        raise LoadError(f"its context of {max_positions(config)} tokens is too short (at least {PROMPT + DEPTH})")
    with narrowed(config):
        truth = _try_chains(chains, module, embeddings)
        vocab_size = truth.logits.shape[-1]
        for form in _forms(module, config, chains):
            model = make(module, vocab_size, form)
            try:
                if _takes_trees(model, truth):
                    return _together(make, module, truth, form) or model
            except Exception:  # whatever an architecture raises on masks that it does not know
                continue
    return make(module, vocab_size, None)


def _forms(
    module: transformers.PreTrainedModel, config: transformers.PretrainedConfig, model: TransformersModel
) -> Sequence[MaskForm]:
    """How masks could be passed; no way where a tree would be wrong, or fail in no clean way."""
    if not model.takes_positions or unknown_window(config) or config._attn_implementation not in MASKED:
        return ()
    return ("by kind", "single") if len(mask_kinds(config)) == 1 else ("by kind",)


def _try_chains(model: TransformersModel, module: transformers.PreTrainedModel, embeddings: int) -> _Truth:
    """Tries chains with roll-back against forwards without cache.

    Raises:
        LoadError: they differ.
    """
    kind = module.config.model_type
    try:
        texts = _texts(embeddings)
        expected: Tensor = module(
            torch.tensor(texts, device=model.info.device), use_cache=False, return_dict=True
        ).logits
        # Two texts that begin alike: a causal model answers alike, whatever comes later.
        if not _agree(expected[2, : PROMPT + 1], expected[3, : PROMPT + 1]):
            raise LoadError(f"architecture {kind!r} is not causal: its answers depend on later tokens")
        slot = model.open()
        model.prefill(slot, texts[0][: PROMPT - 1])
        got = [model.score([ScoreRequest(slot, _chain(texts[0][PROMPT - 1 :]))])[0]]
        slot.commit(range(SHARED[1] + 1))
        got.append(model.score([ScoreRequest(slot, _chain(texts[1][PROMPT + SHARED[1] :]))])[0])
        slot.rewind(2)
        tree = _chain(texts[3][PROMPT - 1 :])
        got.append(model.score([ScoreRequest(slot, tree, catch_up=texts[3][2 : PROMPT - 1])])[0])
    except LoadError:
        raise
    except Exception as error:  # architectures raise whatever they like on a cache that is not of their kind
        what = " ".join(str(error).split())[:200] or type(error).__name__
        raise LoadError(f"architecture {kind!r} cannot be run on a cache of rows: {what}") from error
    if slot.rows != {PROMPT + DEPTH}:
        raise LoadError(f"architecture {kind!r} keeps no key-value cache that could be rolled back")
    rows = [expected[0, PROMPT - 1 :], expected[1, PROMPT + SHARED[1] :], expected[3, PROMPT - 1 :]]
    if not _agree(torch.cat(got), torch.cat(rows)):
        raise LoadError(f"architecture {kind!r} answers otherwise after its cache is rolled back")
    return _Truth(texts, expected)


def _takes_trees(model: TransformersModel, truth: _Truth) -> bool:
    """Tries a tree that grows while it is pending, and another below a part of it that is kept."""
    texts, expected = truth.texts, truth.logits
    slot = model.open()
    model.prefill(slot, texts[0][: PROMPT - 3])
    tree, got, rows = TokenTree(texts[0][PROMPT - 1]), [], []
    ends: list[int] = []
    for half in (texts[:2], texts[2:]):
        ends += [tree.extend(0, text[PROMPT:], Origin.DRAFT) for text in half]
        catch_up = texts[0][slot.length : PROMPT - 1] if slot.pending == 0 else []
        got.append(model.score([ScoreRequest(slot, tree, catch_up=catch_up)])[0])
    paths = [tree.path(end) for end in ends]
    for node in range(len(tree)):
        text = next(i for i, path in enumerate(paths) if node in path)
        rows.append(expected[text, PROMPT - 1 + tree.depths[node]])
    kept = SHARED[3] + 1
    slot.commit(paths[3][:kept])
    below = TokenTree(texts[3][PROMPT + SHARED[3]])
    for number in (2, 0, 3):  # the first two do not begin like this, and stand in the way
        below.extend(0, texts[number][PROMPT + kept :], Origin.DRAFT)
    wanted = below.walk(texts[3][PROMPT + kept :])
    got.append(model.score([ScoreRequest(slot, below, rows=wanted)])[0])
    rows += list(expected[3, PROMPT + SHARED[3] :])
    found, right = torch.cat(got), torch.stack(rows)
    # Each node sees all before it, for comparison: where that changes little, little may be wrong.
    slot = model.open()
    model.prefill(slot, texts[0][: PROMPT - 1])
    positions = [PROMPT - 1 + depth for depth in tree.depths]
    wrong = model.forward(slot, tree.tokens, positions, None, range(len(tree)))
    error, signal = _errors(found, right).median(), _errors(wrong, right[: len(tree)]).median()
    return _agree(found, right) and bool(error <= signal / 5)


def _together(
    make: Make, module: transformers.PreTrainedModel, truth: _Truth, form: MaskForm
) -> TransformersModel | None:
    """The model with several sequences in one forward, if that answers as each alone: tries three of different lengths
    in the cache, with different numbers of new rows."""
    model = make(module, truth.logits.shape[-1], form, True)
    requests, rows = [], []
    for number, (text, read, scored) in enumerate(
        zip(truth.texts, (PROMPT - 1, 2, PROMPT + 1), (3, 1, 2), strict=False)
    ):
        slot = model.open()
        model.prefill(slot, text[:read])
        requests.append(ScoreRequest(slot, _chain(text[read : read + scored])))
        rows.append(truth.logits[number, read : read + scored])
    try:
        first = model.score(requests)
        for request in requests:
            request.slot.rewind(2)
        again = model.score([ScoreRequest(r.slot, _chain(t[2:4])) for r, t in zip(requests, truth.texts, strict=False)])
    except Exception:  # as above
        return None
    rows += [truth.logits[number, 2:4] for number in range(len(requests))]
    return model if _agree(torch.cat([*first, *again]), torch.cat(rows)) else None


def _texts(vocab_size: int) -> list[list[int]]:
    """Random texts of one length that share a prompt, and with the one before them a part of what follows."""
    source = torch.Generator().manual_seed(0)
    size = PROMPT + DEPTH
    tokens = torch.randperm(vocab_size, generator=source)[: size * len(SHARED)].tolist()
    tokens = (tokens * size)[: size * len(SHARED)]
    texts = [tokens[:size]]
    for number, shared in enumerate(SHARED[1:], start=1):
        own = tokens[number * size : (number + 1) * size]
        texts.append(texts[-1][: PROMPT + shared] + own[PROMPT + shared :])
    return texts


def _chain(tokens: Sequence[int]) -> TokenTree:
    tree = TokenTree(tokens[0])
    tree.extend(0, tokens[1:], Origin.DRAFT)
    return tree


def _errors(found: Tensor, expected: Tensor) -> Tensor:
    """Of each row the largest difference, in parts of the logits' scale."""
    found, expected = found.double(), expected.double()
    scale = (expected - expected.mean(-1, keepdim=True)).abs().amax()
    return (found - expected).abs().amax(-1) / scale


def _agree(found: Tensor, expected: Tensor) -> bool:
    errors = _errors(found, expected)
    worst = errors.median() if expected.dtype in (torch.float16, torch.bfloat16) else errors.amax()
    return bool(worst <= TOLERANCE.get(expected.dtype, 0.0))
