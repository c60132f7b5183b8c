"""The event loop in which a run's agents work: one for each run, on the run's own thread, ended by the run's cancel."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from llm_callback import RunCancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import ParamSpec, TypeVar

    from llm_callback import Run

    _P = ParamSpec("_P")
    _T = TypeVar("_T")


def run_in_loop(run: Run, work: Callable[[], Coroutine[Any, Any, _T]], tool_patience: float) -> _T:
    """Return what the coroutine function ``work`` returns, done in an event loop of its own on this thread.

    Blocks until then. A cancel of ``run`` cancels all of its tasks at once, also those that wait for a silent model.
    Functions that work on threads, as synchronous tools do, cannot be stopped: they are waited for ``tool_patience``
    seconds after a cancel, and then left alone, which a ``system.warning`` of the run tells. What they return or raise
    later reaches nobody.

    Raises RunCancelled if the run was cancelled, RuntimeError on a thread that runs an event loop already, and whatever
    ``work`` raises.
    """
    if asyncio._get_running_loop() is not None:  # noqa: SLF001 - asks, where the public one raises
        raise RuntimeError(
            "a hierarchy runs in an event loop of its own, and this thread runs one already: "
            "await asyncio.to_thread(executor.execute, config)"
        )
    if run.token.is_set():
        # A task's first step, up to where it waits, comes before its cancel: that would ask the model.
        raise _cancelled(run)
    tools = _ToolThreads()
    loop = asyncio.new_event_loop()
    loop.set_default_executor(tools)
    try:
        main = loop.create_task(work())
        registration = run.token.on_cancel(partial(_cancel_from_any_thread, loop, main))
        try:
            return loop.run_until_complete(main)
        except asyncio.CancelledError:
            if run.token.is_set():
                raise _cancelled(run) from None
            raise
        finally:
            registration.stop()
            _cancel_all(loop)
            loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        for name in tools.left_after(tool_patience):
            message = (
                f"the tool {name} did not end within {tool_patience:g} s after its run's work: "
                "it was left alone, and what it returns is lost"
            )
            run.emit("system", "warning", {"message": message, "tool": name})
        loop.close()


def _cancelled(run: Run) -> RunCancelled:
    return RunCancelled(run.run_id, run.token.kind, run.token.reason)


def _cancel_from_any_thread(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    # A loop that is closed has nothing to cancel.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(task.cancel)


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what a cancelled or failed task has left behind, and wait for its end."""
    if tasks := asyncio.all_tasks(loop):
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.wait(tasks))


class _ToolThreads(ThreadPoolExecutor):
    """A thread for each function that a loop's tasks hand over.

    A pool's own threads are joined at the interpreter's exit, which one function that hangs would hold up: these are
    daemons. It is a ThreadPoolExecutor since asyncio takes nothing else. Only the loop's thread submits.
    """

    def __init__(self) -> None:
        super().__init__(max_workers=1)
        self._working: dict[Future[Any], str] = {}

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        future: Future[_T] = Future()
        self._working[future] = _name(fn)
        # Not taken back any more: a function that began cannot be.
        future.set_running_or_notify_cancel()
        future.add_done_callback(self._working.pop)
        work = partial(fn, *args, **kwargs)
        threading.Thread(target=_settle, args=(future, work), name="llm-tool", daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Do nothing: no thread waits for work."""

    def left_after(self, patience: float) -> list[str]:
        """Wait so many seconds; return the names of the functions that still work."""
        working = dict(self._working)
        return sorted(working[future] for future in wait(working, patience).not_done)


def _settle(future: Future[Any], work: Callable[[], Any]) -> None:
    try:
        result = work()
    except BaseException as error:  # noqa: BLE001 - the future has it
        future.set_exception(error)
    else:
        future.set_result(result)


def _name(function: Callable[..., Any]) -> str:
    # asyncio.to_thread hands over partial(context.run, function, …).
    inner = function.args[0] if isinstance(function, partial) and function.args else function
    return getattr(inner, "__name__", type(inner).__name__)
