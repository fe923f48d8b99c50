"""Checks of arguments. Each error names the owner and the field."""

from __future__ import annotations

import math


def text(owner: str, field: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{owner}: {field} must be a str, got {type(value).__name__} {value!r}")
    if not value.strip():
        raise ValueError(f"{owner}: {field} must not be empty")
    return value


def seconds(owner: str, field: str, value: object, *, zero: bool = False) -> float:
    """A number of seconds greater than zero, or with `zero` at least zero."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(
            f"{owner}: {field} must be a number of seconds, got {type(value).__name__} {value!r}"
        )
    if math.isnan(value) or value < 0 or (value == 0 and not zero):
        least = "zero or more" if zero else "greater than zero"
        raise ValueError(f"{owner}: {field} must be {least} (seconds), got {value!r}")
    return float(value)


def count(owner: str, field: str, value: object) -> int:
    """A whole number, at least one."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"{owner}: {field} must be a whole number, got {type(value).__name__} {value!r}"
        )
    if value < 1:
        raise ValueError(f"{owner}: {field} must be at least 1, got {value!r}")
    return value
