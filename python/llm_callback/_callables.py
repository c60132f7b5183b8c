"""A function that somebody gives to be called later."""

from __future__ import annotations

from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def check_callable(name: str, given: Any) -> None:
    """Raise TypeError for what is not callable, and for a function whose result must be awaited or iterated."""
    if not callable(given):
        raise TypeError(f"{name} must be callable, not {given!r}")
    for each in (given, type(given).__call__):
        if iscoroutinefunction(each) or isgeneratorfunction(each) or isasyncgenfunction(each):
            raise TypeError(
                f"{name} must do its work when it is called, and {given!r} does not: wrap it, as in"
                f" lambda given: asyncio.run({name}(given))"
            )
