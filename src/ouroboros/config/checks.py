"""Checks that parameters and options share; each raises one clear line."""

from __future__ import annotations

import math

from ouroboros.errors import InputError

__all__ = ["check_int", "check_number", "is_number"]


def check_int(name: str, value: object, low: int, high: int | None = None) -> None:
    allowed = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise InputError(f"{name} must be {allowed}, not {value!r}")


def check_number(name: str, value: object, test: bool, allowed: str) -> None:
    if not test:
        raise InputError(f"{name} must be {allowed}, not {value!r}")


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
