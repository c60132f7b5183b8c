"""Carrying the current run to where it would not go by itself."""

from __future__ import annotations

from contextlib import suppress
from contextvars import ContextVar
from functools import wraps

# No further cost: `dataclasses` imports it too.
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction

from llm_callback._core import get_current_run_id, set_current_run_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from typing import Any, TypeVar

    _F = TypeVar("_F", bound=Callable[..., Any])


# Its tokens tell whether code runs in the context that it began in.
_entered: ContextVar[None] = ContextVar("llm_callback_entered")


def bind(function: _F) -> _F:
    """Return ``function`` wrapped to run under the run that is current now.

    Use it for what is handed to a thread or a pool: a thread has no current run of its own, and one that it only
    inherited from whoever started it is not believed. Where no run is current, ``function`` runs without one.
    Coroutine functions are awaited under the run; the caller's run is current again afterwards, also after an
    exception. Thread-safe: each call sets and restores its own context.

    Raises TypeError for a generator function: its body runs later, in its consumer's context.
    """
    return _bind_to(function, get_current_run_id())


def _bind_to(function: _F, run_id: Hashable) -> _F:
    """Do what ``bind`` does, and ``Run.bind``, for a run that is given."""
    if isgeneratorfunction(function) or isasyncgenfunction(function):
        msg = f"bind() cannot carry a run into the generator function {function!r}: bind what consumes it"
        raise TypeError(msg)

    if iscoroutinefunction(function) or iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004

        @wraps(function)
        async def bound_coroutine(*args: Any, **kwargs: Any) -> Any:
            previous = get_current_run_id()
            here = _entered.set(None)
            set_current_run_id(run_id)
            try:
                return await function(*args, **kwargs)
            finally:
                # A coroutine may be closed from another context, whose run is none of its business.
                with suppress(ValueError):
                    _entered.reset(here)
                    set_current_run_id(previous)

        return bound_coroutine  # type: ignore[return-value]

    @wraps(function)
    def bound(*args: Any, **kwargs: Any) -> Any:
        previous = get_current_run_id()
        set_current_run_id(run_id)
        try:
            return function(*args, **kwargs)
        finally:
            set_current_run_id(previous)

    return bound  # type: ignore[return-value]
