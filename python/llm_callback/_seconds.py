"""A number of seconds, as callers give it."""

from __future__ import annotations

_INFINITY = float("inf")


def seconds(name: str, value: object) -> float | None:
    """Return ``value`` as a float, or None, which means no limit.

    Raises TypeError if ``value`` is not a number and ValueError for NaN; the message names the argument.
    """
    if value is None:
        return None
    wrong = f"{name} must be a number of seconds, or None, not {value!r}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(wrong)
    try:
        number = float(value)
    except OverflowError:
        number = _INFINITY if value > 0 else -_INFINITY
    if not -_INFINITY <= number <= _INFINITY:
        raise ValueError(wrong)
    return number


def positive_seconds(name: str, value: object) -> float | None:
    """Do what :func:`seconds` does, and raise ValueError for a number that is not above 0."""
    number = seconds(name, value)
    if number is not None and number <= 0:
        raise ValueError(f"{name} must be a number of seconds above 0, or None, not {value!r}")
    return number
