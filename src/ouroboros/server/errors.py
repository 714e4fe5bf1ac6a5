"""Errors as OpenAI's API tells them: ``{"error": {"message", "type", "param", "code"}}`` and a status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ouroboros.errors import InputError, OuroborosError
from ouroboros.prompts import short

__all__ = ["APIError", "of_library", "of_validation"]

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class APIError(Exception):
    """What a client is told. ``code``: a word for programs, or None. ``headers``: of the response."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def of_library(error: OuroborosError) -> APIError:
    """Bad input is the client's, everything else the server's."""
    if isinstance(error, InputError):
        return APIError(400, str(error))
    return APIError(500, str(error), code="request_failed")


def of_validation(errors: Sequence[Any]) -> APIError:
    """The first thing that is wrong with a body; unions name each of their members, of which the deepest counts."""
    if not errors:
        return APIError(400, "the request is not valid")
    worst = max(errors, key=lambda error: (error["type"] != "extra_forbidden", len(error["loc"])))
    place = [str(part) for part in worst["loc"] if part != "body"]
    param = ".".join(place)
    if worst["type"] == "json_invalid":
        return APIError(400, f"the body is no JSON: {worst.get('ctx', {}).get('error', worst['msg'])}")
    if worst["type"] == "extra_forbidden":
        return APIError(400, f"unknown field {param!r:.80}", param, "unknown_parameter")
    message = worst["msg"].removeprefix("Value error, ")
    given = "" if worst["type"] == "missing" else f", not {short(worst.get('input'))}"
    return APIError(400, f"{param or 'the body'}: {message}{given}", param or None)
