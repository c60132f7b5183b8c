"""What a sink that is a Python function needs from Python: a check of the function, and the log of what it raises."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _check_sink(function: Any) -> None:
    """Raise TypeError for what cannot be called, or does its work later."""
    from inspect import (  # noqa: PLC0415 - imported when the first sink is added
        isasyncgenfunction,
        iscoroutinefunction,
        isgeneratorfunction,
    )

    if not callable(function):
        raise TypeError(f"a sink must be callable, not {function!r}")
    for each in (function, type(function).__call__):
        if iscoroutinefunction(each) or isgeneratorfunction(each) or isasyncgenfunction(each):
            raise TypeError(
                f"a sink must do its work when it is called, and {function!r} does not: give a plain function, which may"
                " call asyncio.run_coroutine_threadsafe(...)"
            )


def _report(name: str, error: BaseException) -> None:
    """Log what a sink has raised."""
    from logging import getLogger  # noqa: PLC0415 - imported when a sink has failed

    getLogger("llm_callback").error(
        "the sink %r raised %s: it gets the same events again; what it raises next is counted, and not logged"
        " until it has gone well",
        name,
        type(error).__name__,
        exc_info=error,
    )
