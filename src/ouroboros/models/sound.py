"""Whether a model's weights are numbers, found by one forward, and which are not, found by a look at each.

NaN in a matrix makes its product NaN whatever it is multiplied with, and all that follows; so the logits after two
tokens (a softmax over one key is 1 whatever the key is) tell of every matrix but the embedding, of which two rows were
read. Infinity becomes NaN in the next norm. A look at every weight would cost a quarter of what loading does; this
costs a forward, which reads the weights from the disk as the first request would have to. Rounded weights take long to
make, and may hide what they were: they are looked at in any case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from ouroboros.errors import LoadError
from ouroboros.models.base import CausalModel, ScoreRequest
from ouroboros.tree import Origin, TokenTree

__all__ = ["EMBEDDING", "check_model", "check_tensors", "check_zeros", "is_finite"]

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
PIECE = 1 << 17  # weights that are looked at together: they stay in the processor's cache
# Words of a type as a whole number, and the exponent that infinities and NaN have.
WORDS = {
    torch.float16: (torch.int16, np.uint16, 0x7C00),
    torch.bfloat16: (torch.int16, np.uint16, 0x7F80),
    torch.float32: (torch.int32, np.uint32, 0x7F800000),
    torch.float64: (torch.int64, np.uint64, 0x7FF0000000000000),
}


def is_finite(tensor: Tensor) -> bool:
    """Whether there is no NaN and no infinity, at a fifth of ``torch.isfinite``'s time.

    As whole numbers, what is not finite is the largest of the positive ones, or of all where negative ones are the
    upper half.
    """
    if tensor.dtype not in WORDS or tensor.device.type != "cpu":
        return bool(torch.isfinite(tensor).all())
    signed, unsigned, edge = WORDS[tensor.dtype]
    words = tensor.detach().contiguous().view(signed).reshape(-1).numpy()
    top = edge + (1 << (8 * words.itemsize - 1))
    for start in range(0, words.size, PIECE):
        piece = words[start : start + PIECE]
        if int(piece.max()) >= edge or int(piece.view(unsigned).max()) >= top:
            return False
    return True


def check_model(
    model: CausalModel,
    names: Iterable[str],
    get: Callable[[str], Tensor],
    minus_infinity: bool = False,
    every: bool = False,
    embedding: str | None = EMBEDDING,
) -> None:
    """
    Args:
        names: of the checkpoint's tensors. get: gives one. minus_infinity: the output matrix may hold it (models that
            were grown have rows which are never chosen). every: look at every tensor. embedding: its name; None where
            it is the output matrix too.

    Raises:
        LoadError: a tensor holds what is no number, or zeros alone, and the model's answers show it.
    """
    tree = TokenTree(0)
    tree.add(0, min(1, model.info.vocab_size - 1), Origin.DRAFT)
    logits = model.score([ScoreRequest(model.open(), tree)])[0]
    broken = bool((torch.isnan(logits) | torch.isposinf(logits)).any())
    if not broken and not minus_infinity:
        broken = bool(torch.isneginf(logits).any())
    finite = logits[torch.isfinite(logits)]
    same = finite.numel() > 1 and bool(finite.max() == finite.min())
    check_tensors(names if broken or every else [embedding] if embedding else [], get, [HEAD] if minus_infinity else [])
    if same:
        check_zeros([name for name in names if not name.endswith(".bias")], get)


def check_tensors(names: Iterable[str], get: Callable[[str], Tensor], infinite: Sequence[str] = ()) -> None:
    """
    Args:
        infinite: of those that may hold infinities.

    Raises:
        LoadError: a tensor holds what is no number.
    """
    for name in names:
        tensor = get(name).detach()
        if not is_finite(tensor) and name not in infinite:
            wrong = tensor[~torch.isfinite(tensor)]
            count = f"{wrong.numel()} of its {tensor.numel()} are no finite numbers"
            raise LoadError(f"tensor {name!r} holds {float(wrong[0])} ({count})")


def check_zeros(names: Iterable[str], get: Callable[[str], Tensor]) -> None:
    """
    Raises:
        LoadError: a tensor holds zeros alone.
    """
    for name in names:
        if not get(name).any():
            raise LoadError(f"tensor {name!r} holds zeros alone: every token is as likely as any other")
