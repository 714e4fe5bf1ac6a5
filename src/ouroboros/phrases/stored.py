"""What a pool's file may hold: every type, shape and number is looked at before it is used.

The file may come from anywhere, with ids of another vocabulary, and numbers that nothing ever wrote. Ids index tables
of the models, counts and log-probabilities go into sums and exponentials: one that cannot be ends the file here, in
words. Nothing is allocated by a number that the file merely names: arrays are as large as the file itself at most.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Arrays", "check", "check_bounds", "check_shapes"]

Arrays = Mapping[str, npt.NDArray[Any]]
TYPES = {
    **dict.fromkeys(("keys", "tokens", "outputs", "successors", "predictions"), "I32"),
    "counts": "I64",
    "logs": "F16",
}
OPTIONAL = ("outputs", "successors", "predictions", "logs")  # files were without them once
BOUNDS = {"max_keys": 2**31 - 1, "phrases_per_key": 256, "max_tokens": 1024}
MOST_BOUNDS = 1000  # characters of these
ORIGINS = 4
MOST_COUNT = 2**40
MOST_IDS = 64  # of a prediction: the kernels rank no more
SUM, ABOVE = 1.01, 1e-3  # of a prediction's probabilities, above a log of 0: logs were sums, and rounded to 16 bits


class _DamagedError(ValueError):
    """What is wrong, in a few words."""


def check_bounds(text: str) -> dict[str, int]:
    """The pool's own bounds.

    Raises:
        ValueError: they are not what a pool has.
    """
    if len(text) > MOST_BOUNDS:
        raise _DamagedError(f"its bounds have {len(text)} characters")
    try:
        values = json.loads(text)
    except RecursionError:
        raise _DamagedError("its bounds are nested") from None
    if not isinstance(values, dict) or set(values) != set(BOUNDS):
        raise _DamagedError(f"its bounds are {text[:60]!r}")
    for name, most in BOUNDS.items():
        value = values[name]
        if type(value) is not int or not 1 <= value <= most:
            raise _DamagedError(f"{name} is {value!r:.40}; allowed are 1 to {most}")
    return values


def check_shapes(shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> list[str]:
    """The names of the arrays to read, given each one's type and shape.

    Raises:
        ValueError: one is missing, or of another type or shape.
    """
    for name, wanted in TYPES.items():
        if name not in shapes:
            if name in OPTIONAL:
                continue
            raise _DamagedError(f"it lacks {name}")
        kind, shape = shapes[name]
        if kind != wanted:
            raise _DamagedError(f"{name} is of type {kind}, not {wanted}")
        if len(shape) != (1 if name == "outputs" else 2):
            raise _DamagedError(f"{name} has the shape {list(shape)}")
        if shape[0] > 0 and 0 in shape:  # rows without a column: any number of them would fit into the file
            raise _DamagedError(f"{name} has the shape {list(shape)}")
    rows = shapes["keys"][1][0]
    if shapes["tokens"][1][0] != rows or shapes["counts"][1] != (rows, 4):
        raise _DamagedError("keys, tokens and counts are not of the same length")
    if ("predictions" in shapes) != ("logs" in shapes):
        raise _DamagedError("predictions and logs must be there both")
    if "logs" in shapes:
        (rows, columns), logs = shapes["predictions"][1], shapes["logs"][1]
        if rows and (logs != (rows, columns - 2) or columns - 2 > MOST_IDS):
            raise _DamagedError(f"predictions and logs have the shapes {[rows, columns]} and {list(logs)}")
    return [name for name in TYPES if name in shapes]


def check(arrays: Arrays, vocab_size: int, max_tokens: int) -> None:
    """
    Args:
        arrays: with types and shapes that ``check_shapes`` has seen. vocab_size: of the model at hand. max_tokens: the
            pool's longest phrase.

    Raises:
        ValueError: a number that cannot be.
    """
    for name in ("keys", "tokens", "outputs", "successors", "predictions"):
        if name in arrays:
            _ids(name, arrays[name], vocab_size)
    for name, column in (("keys", 0), ("tokens", 0), ("successors", 0), ("predictions", 1), ("predictions", 2)):
        if name in arrays and len(arrays[name]) and (arrays[name][:, column] < 0).any():
            raise _DamagedError(f"{name} has an empty entry")
    for name, first in (("keys", 0), ("tokens", 0), ("successors", 1), ("predictions", 2)):
        if name in arrays:
            _padded(name, arrays[name][:, first:])
    _counts(arrays["counts"], max(max_tokens, arrays["tokens"].shape[1]))
    if "logs" in arrays and len(arrays["logs"]):
        _logs(arrays["predictions"][:, 2:], arrays["logs"].astype(np.float64))


def _ids(name: str, ids: npt.NDArray[Any], vocab_size: int) -> None:
    wrong = ids[(ids < -1) | (ids >= vocab_size)]
    if wrong.size:
        raise _DamagedError(f"{name} holds the token id {int(wrong[0])}; allowed are 0 to {vocab_size - 1}")


def _padded(name: str, ids: npt.NDArray[Any]) -> None:
    if ((ids[:, :-1] < 0) & (ids[:, 1:] >= 0)).any():
        raise _DamagedError(f"{name} has a token after an entry's end")


def _counts(counts: npt.NDArray[Any], longest: int) -> None:
    for column, (name, least, most) in enumerate(
        (("origin", 0, ORIGINS - 1), ("seen", 1, MOST_COUNT), ("offered", 0, MOST_COUNT), ("accepted", 0, MOST_COUNT))
    ):
        wrong = counts[:, column][(counts[:, column] < least) | (counts[:, column] > most)]
        if wrong.size:
            raise _DamagedError(f"{name} is {int(wrong[0])}; allowed are {least} to {most}")
    if (counts[:, 3] > counts[:, 2] * longest).any():
        raise _DamagedError("more tokens of a phrase were accepted than offered")


def _logs(ids: npt.NDArray[Any], logs: npt.NDArray[Any]) -> None:
    """Log-probabilities; -inf is one, of a token that the model rules out."""
    logs = np.where(ids >= 0, logs, -np.inf)
    if not (logs <= ABOVE).all():  # nan as well
        raise _DamagedError(f"logs hold {float(logs[~(logs <= ABOVE)][0])}; a log-probability is 0 at most")
    if (np.exp(logs).sum(-1) > SUM).any():
        raise _DamagedError("the probabilities of a prediction add up to more than 1")
    ordered = np.sort(ids, axis=-1)
    if ((ordered[:, :-1] == ordered[:, 1:]) & (ordered[:, 1:] >= 0)).any():
        raise _DamagedError("predictions name a token twice")
