"""From a request's fields to sampling parameters, within the limits that the server was given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ouroboros.config import MAX_SEED, METHODS, SamplingParams
from ouroboros.server.errors import APIError
from ouroboros.server.schema import Completing, Sampling
from ouroboros.server.settings import Settings

__all__ = ["check_size", "params_of", "stops_of"]

MOST_STOP = 512  # characters of a stop string


def stops_of(stop: str | Sequence[str] | None, settings: Settings) -> tuple[str, ...]:
    """
    Raises:
        APIError: too many, too long, or an empty one.
    """
    found = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(found) > settings.max_stops:
        raise APIError(400, f"stop has {len(found)} texts; allowed are {settings.max_stops}", "stop")
    for text in found:
        if not 0 < len(text) <= MOST_STOP:
            raise APIError(400, f"a stop text has {len(text)} characters; allowed are 1 to {MOST_STOP}", "stop")
    return found


def check_size(what: str, text: str, settings: Settings) -> None:
    """
    Raises:
        APIError: a schema, or what stands for one, is larger than the server takes.
    """
    if len(text) > settings.max_schema:
        raise APIError(400, f"{what} has {len(text)} characters; allowed are {settings.max_schema}", what)


def params_of(
    request: Sampling,
    settings: Settings,
    max_tokens: int | None,
    default_tokens: int,
    stops: tuple[str, ...] = (),
    logprobs: int | None = None,
    **more: Any,
) -> SamplingParams:
    """
    Args:
        max_tokens: that were asked for; of None it is ``default_tokens``. more: further fields of SamplingParams.

    Raises:
        APIError, InputError: a value that is not allowed.
    """
    limit = settings.max_tokens
    if max_tokens is not None and limit is not None and max_tokens > limit:
        raise APIError(400, f"max_tokens must be at most {limit}, not {max_tokens}", "max_tokens")
    values: dict[str, Any] = {
        "max_new_tokens": max_tokens or min(default_tokens, limit or default_tokens),
        "temperature": 1.0 if request.temperature is None else request.temperature,
        "top_p": 1.0 if request.top_p is None else request.top_p,
        "top_k": request.top_k or 0,
        "min_p": request.min_p or 0.0,
        "repetition_penalty": request.repetition_penalty or 1.0,
        "ignore_eos": bool(request.ignore_eos),
        "seed": None if request.seed is None else request.seed & MAX_SEED,
        "stop": stops,
        "logprobs": logprobs,
    }
    if isinstance(request, Completing):
        n = request.n or 1
        if n > settings.max_samples:
            raise APIError(400, f"n must be at most {settings.max_samples}, not {n}", "n")
        values |= {
            "n": n,
            "presence_penalty": request.presence_penalty or 0.0,
            "frequency_penalty": request.frequency_penalty or 0.0,
            "logit_bias": _bias(request.logit_bias or {}),
        }
    method = _method(request)
    return SamplingParams(**values, **more, **({} if method is None else {"method": method}))


def _method(request: Sampling) -> str | None:
    if request.method is not None and request.method not in METHODS:
        raise APIError(400, f"method must be one of {', '.join(METHODS)}, not {request.method!r:.60}", "method")
    if request.draft is False:
        if request.method not in (None, "autoregressive"):
            raise APIError(400, f"draft must be true with the method {request.method!r}", "draft")
        return "autoregressive"
    return request.method


def _bias(bias: dict[str, float]) -> dict[int, float]:
    found = {}
    for name, value in bias.items():
        if not (name.isascii() and name.isdigit() and len(name) < 10):
            raise APIError(400, f"logit_bias must map token ids to numbers, not {name!r:.40}", "logit_bias")
        found[int(name)] = value
    return found
