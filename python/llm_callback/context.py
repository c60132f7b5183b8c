"""Carrying the current run to threads and pools, where it would not go by itself."""

from __future__ import annotations

from contextlib import suppress
from contextvars import ContextVar
from functools import wraps

# Costs nothing: `dataclasses` imports it too.
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction

from llm_callback._core import get_current_run_id, get_run, set_current_run_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from typing import Any, TypeVar

    from llm_callback._core import Run

    _F = TypeVar("_F", bound=Callable[..., Any])


# The run that code was bound to, beside its id, which a later run may have too; None if only an id was bound. The
# variable's tokens tell whether code runs in the context that it began in.
_bound_run: ContextVar[Run | None] = ContextVar("llm_callback_bound_run", default=None)


def bind(function: _F) -> _F:
    """Return ``function`` wrapped so that the run that is current now is the current one while it runs.

    Use it for functions that are given to a thread or a pool: a new thread has no current run, and a run that it only
    inherited from the thread that started it is not believed. If no run is current, ``function`` runs without one. A
    coroutine function is awaited under the run. The caller's run is current again afterwards, also after an exception.
    Thread-safe: each call sets and restores its own context.

    Raises TypeError for a generator function: its body runs later, in the context of the code that consumes it.
    """
    return _bind_to(function, get_current_run_id(), _bound_run.get())


def _bind_to(function: _F, run_id: Hashable, run: Run | None = None) -> _F:
    """Do what ``bind`` and ``Run.bind`` do, for a run that is given by its id, or as an object."""
    if isgeneratorfunction(function) or isasyncgenfunction(function):
        msg = f"bind() cannot carry a run into the generator function {function!r}: bind what consumes it"
        raise TypeError(msg)

    if iscoroutinefunction(function) or iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004

        @wraps(function)
        async def bound_coroutine(*args: Any, **kwargs: Any) -> Any:
            previous = get_current_run_id()
            here = _bound_run.set(run)
            set_current_run_id(run_id)
            try:
                return await function(*args, **kwargs)
            finally:
                # A coroutine may be closed from another context, whose run must stay as it is.
                with suppress(ValueError):
                    _bound_run.reset(here)
                    set_current_run_id(previous)

        return bound_coroutine  # type: ignore[return-value]

    @wraps(function)
    def bound(*args: Any, **kwargs: Any) -> Any:
        previous = get_current_run_id()
        here = _bound_run.set(run)
        set_current_run_id(run_id)
        try:
            return function(*args, **kwargs)
        finally:
            _bound_run.reset(here)
            set_current_run_id(previous)

    return bound  # type: ignore[return-value]


def _current_run() -> Run | None:
    """Return the current run, if there is one: the run that was bound, else the latest of the current id."""
    run_id = get_current_run_id()
    if run_id is None:
        return None
    try:
        run = get_run(run_id)
    except (TypeError, ValueError):
        # The drop-in takes any object for an id, but a run's id is an int or a str.
        return None
    bound = _bound_run.get()
    # An id that was set later belongs to another run. Both ids come from Rust: no `__eq__` of a user's class is called.
    return bound if run and bound and bound.run_id == run.run_id else run
