"""An executor whose callables run under the run that submitted them.

Not in ``context.py``, and imported at first use, since ``concurrent.futures`` imports ``logging``.
"""

from __future__ import annotations

from concurrent.futures import Executor
from functools import partial

from llm_callback._core import get_current_run_id
from llm_callback.context import _bind_to, _bound_run, bind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator
    from concurrent.futures import Future
    from typing import Any, TypeVar

    from llm_callback._core import Run

    _T = TypeVar("_T")


class BoundExecutor(Executor):
    """An executor that carries the current run to its workers.

    ``BoundExecutor(executor)`` passes every call on to ``executor``, of any class. It binds each callable to the run
    that is current at :meth:`submit` or :meth:`map`, as :func:`bind` does; if no run is current, the callable runs
    without one. The workers are left as they were. With a ``ProcessPoolExecutor``, callables stay picklable; in the
    other process the current run's id is set, but no run is open there.

    As thread-safe as ``executor``. Raises what ``executor`` raises, which after :meth:`shutdown` is RuntimeError.
    """

    def __init__(self, executor: Executor) -> None:
        if not isinstance(executor, Executor):
            raise TypeError(f"executor must be a concurrent.futures.Executor, not {executor!r}")
        self._executor = executor

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        """Submit ``fn``, bound to the current run. Raises TypeError for a generator function, as :func:`bind` does."""
        return self._executor.submit(_bound(fn), *args, **kwargs)

    def map(self, fn: Callable[..., _T], *iterables: Iterable[Any], **options: Any) -> Iterator[_T]:
        """Map as the executor does, with its options. Each call is bound to the run that is current now."""
        return self._executor.map(_bound(fn), *iterables, **options)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Shut the executor down."""
        self._executor.shutdown(wait, cancel_futures=cancel_futures)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._executor!r})"


def _bound(function: Callable[..., _T]) -> Callable[..., _T]:
    # Called for the functions that it refuses. Its closure could not be pickled for another process.
    bind(function)
    return partial(_call, get_current_run_id(), _Here(_bound_run.get()), function)


class _Here:
    """A run of this process. Pickled for another process it is no run."""

    __slots__ = ("run",)

    def __init__(self, run: Run | None = None) -> None:
        self.run = run

    def __reduce__(self) -> tuple[type[_Here], tuple[()]]:
        return _Here, ()


def _call(
    run_id: Hashable, here: _Here, function: Callable[..., _T], /, *args: Any, **kwargs: Any
) -> _T:
    return _bind_to(function, run_id, here.run)(*args, **kwargs)
