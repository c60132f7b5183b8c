"""The event loop of a run's agents, on the run's own thread. A cancel of the run ends the loop."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from llm_callback import RunCancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import ParamSpec, TypeVar

    from llm_callback import Run

    _P = ParamSpec("_P")
    _T = TypeVar("_T")

# Enough seconds for a few turns of the loop.
_TURNS = 0.01


def run_in_loop(run: Run, work: Callable[[], Coroutine[Any, Any, _T]], tool_patience: float) -> _T:
    """Run the coroutine function ``work`` in a new event loop on this thread, and return its result.

    Blocks until then. A cancel of ``run``, or its end by other code, cancels all tasks of the loop at once, also those
    that wait for a silent model. Some work may go on: tasks that ignore their cancel, and functions on threads, such as
    synchronous tools, which cannot be stopped. This function waits for all of these together, ``tool_patience``
    seconds. Then it leaves them alone and emits a ``system.warning`` for each; their later results are lost. The same
    holds for work that is left when ``work`` returns. Code that blocks the loop itself is waited for without a bound.

    Raises RunCancelled if the run was cancelled or has ended, RuntimeError on a thread that runs an event loop already,
    and the exceptions of ``work``.
    """
    if asyncio._get_running_loop() is not None:  # noqa: SLF001 - asks, where the public one raises
        raise RuntimeError(
            "a hierarchy runs in an event loop of its own, and this thread runs one already: "
            "await asyncio.to_thread(executor.execute, config)"
        )
    if _is_over(run):
        # A task makes its first step before a cancel reaches it, and this step would send a request to the model.
        raise _cancelled(run)
    tools = _ToolThreads()
    loop = asyncio.new_event_loop()
    loop.set_default_executor(tools)
    patience = _Patience(tool_patience)
    left: list[tuple[str, str]] = []
    was_stopped = False
    try:
        main = loop.create_task(work())
        stop = loop.create_future()
        stopping = partial(_stop_from_any_thread, loop, partial(_stop, main, stop))
        # Also called at the run's end, whichever code ends it.
        registration = run.token._wake_on_cancel(stopping)  # noqa: SLF001
        try:
            was_stopped = loop.run_until_complete(_until_done(main, stop, patience))
        finally:
            registration.stop()
            asked = {main} if was_stopped else set()
            left += loop.run_until_complete(_end_all(asked, patience))
    finally:
        left += [("function", name) for name in tools.left_after(patience.remaining)]
        loop.close()
        for kind, name in left:
            message = (
                f"the {kind} {name} did not end within {tool_patience:g} s after its run's work: "
                "it was left alone, and what it returns is lost"
            )
            run.emit("system", "warning", {"message": message, "tool": name})
    if main.done() and not main.cancelled():
        return main.result()
    if was_stopped or _is_over(run):
        raise _cancelled(run)
    raise asyncio.CancelledError


def _is_over(run: Run) -> bool:
    return run.token.is_set() or run.finished_at is not None


def _cancelled(run: Run) -> RunCancelled:
    return RunCancelled(run.run_id, run.token.kind, run.token.reason)


class _Patience:
    """So many seconds for all the work that is to end. They count from the first ``begin``."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end: float | None = None

    def begin(self) -> None:
        if self._end is None:
            self._end = monotonic() + self._seconds

    @property
    def remaining(self) -> float:
        return self._seconds if self._end is None else max(0.0, self._end - monotonic())


def _stop_from_any_thread(loop: asyncio.AbstractEventLoop, stop: Callable[[], object]) -> None:
    # A closed loop raises, and has nothing to stop.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(stop)


def _stop(main: asyncio.Task[Any], stopped: asyncio.Future[None]) -> None:
    main.cancel()
    if not stopped.done():
        stopped.set_result(None)


async def _until_done(
    main: asyncio.Task[Any], stopped: asyncio.Future[None], patience: _Patience
) -> bool:
    """Wait until the work has ended. Returns whether the run was stopped.

    After a stop the work has half of the patience to end, and to cancel the tasks that it has started. The other half
    is for those tasks.
    """
    await asyncio.wait({main, stopped}, return_when=asyncio.FIRST_COMPLETED)
    patience.begin()
    if not main.done():
        await asyncio.wait({main}, timeout=patience.remaining / 2)
    return stopped.done()


async def _end_all(asked: set[asyncio.Task[Any]], patience: _Patience) -> list[tuple[str, str]]:
    """Cancel the tasks that are left, but for those in ``asked``, and wait for them. Returns those that do not end."""
    patience.begin()
    loop = asyncio.get_running_loop()
    supervisor = {asyncio.current_task()}
    if tasks := asyncio.all_tasks() - supervisor:
        for task in tasks - asked:
            task.cancel()
        await asyncio.wait(tasks, timeout=patience.remaining)
    left = asyncio.all_tasks() - supervisor
    generators = loop.create_task(loop.shutdown_asyncgens())
    # A few turns of the loop even if no time is left: most generators end without a wait of their own.
    await asyncio.wait({generators}, timeout=max(patience.remaining, _TURNS))
    pending = asyncio.all_tasks() - supervisor
    for task in pending:
        # The task is left on purpose. Without this, asyncio logs an error when the task is freed.
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001
    return sorted(("task", _task_name(task)) for task in pending & (left | {generators}))


def _task_name(task: asyncio.Task[Any]) -> str:
    name = getattr(task.get_coro(), "__qualname__", task.get_name())
    return str(name).rpartition("<locals>.")[2]


class _ToolThreads(ThreadPoolExecutor):
    """An executor that starts a daemon thread for each function that a loop's tasks submit.

    The interpreter joins the threads of a ThreadPoolExecutor at its exit, which a function that hangs would delay for
    ever. This class is a ThreadPoolExecutor only because asyncio takes no other executor. Only the loop's thread
    submits.
    """

    def __init__(self) -> None:
        super().__init__(max_workers=1)
        self._working: dict[Future[Any], str] = {}

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        future: Future[_T] = Future()
        self._working[future] = _name(fn)
        # From here on the future cannot be cancelled, since a function that has begun cannot be stopped.
        future.set_running_or_notify_cancel()
        future.add_done_callback(self._working.pop)
        work = partial(fn, *args, **kwargs)
        threading.Thread(target=_settle, args=(future, work), name="llm-tool", daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Do nothing: the threads do not wait for further work."""

    def left_after(self, patience: float) -> list[str]:
        """Wait ``patience`` seconds at most. Returns the names of the functions that have not returned."""
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
    # asyncio.to_thread submits partial(context.run, function, …).
    inner = function.args[0] if isinstance(function, partial) and function.args else function
    return getattr(inner, "__name__", type(inner).__name__)
