"""The event loop in which a run's agents work: one for each run, on the run's own thread, ended by the run's cancel."""

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

# Seconds for some turns of the loop.
_TURNS = 0.01


def run_in_loop(run: Run, work: Callable[[], Coroutine[Any, Any, _T]], tool_patience: float) -> _T:
    """Return what the coroutine function ``work`` returns, done in an event loop of its own on this thread.

    Blocks until then. A cancel of ``run``, or its end by somebody else, cancels all of its tasks at once, also those
    that wait for a silent model. What does not end with it is waited for ``tool_patience`` seconds, all of it together,
    and then left alone, which a ``system.warning`` of the run tells: tasks that ignore their cancel, and functions that
    work on threads, as synchronous tools do, which cannot be stopped. What they return or raise later reaches nobody.
    The same holds for what ``work`` leaves behind when it returns. What blocks the loop itself is not bounded.

    Raises RunCancelled if the run was cancelled or had ended, RuntimeError on a thread that runs an event loop already,
    and whatever ``work`` raises.
    """
    if asyncio._get_running_loop() is not None:  # noqa: SLF001 - asks, where the public one raises
        raise RuntimeError(
            "a hierarchy runs in an event loop of its own, and this thread runs one already: "
            "await asyncio.to_thread(executor.execute, config)"
        )
    if _is_over(run):
        # A task's first step, up to where it waits, comes before its cancel: that would ask the model.
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
        # Called at the run's end too, whoever has ended it.
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
    """So many seconds, from the first ``begin`` on, for all that is to end."""

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
    # A loop that is closed has nothing to stop.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(stop)


def _stop(main: asyncio.Task[Any], stopped: asyncio.Future[None]) -> None:
    main.cancel()
    if not stopped.done():
        stopped.set_result(None)


async def _until_done(
    main: asyncio.Task[Any], stopped: asyncio.Future[None], patience: _Patience
) -> bool:
    """Wait for the work's end, after a stop for half of the patience at most; return whether it was stopped.

    The other half is also for what the work has begun, which is not cancelled before the work had its time to do so.
    """
    await asyncio.wait({main, stopped}, return_when=asyncio.FIRST_COMPLETED)
    patience.begin()
    if not main.done():
        await asyncio.wait({main}, timeout=patience.remaining / 2)
    return stopped.done()


async def _end_all(asked: set[asyncio.Task[Any]], patience: _Patience) -> list[tuple[str, str]]:
    """Cancel what is there still, but for those who were asked, and wait for its end; return what does not end."""
    patience.begin()
    loop = asyncio.get_running_loop()
    supervisor = {asyncio.current_task()}
    if tasks := asyncio.all_tasks() - supervisor:
        for task in tasks - asked:
            task.cancel()
        await asyncio.wait(tasks, timeout=patience.remaining)
    left = asyncio.all_tasks() - supervisor
    generators = loop.create_task(loop.shutdown_asyncgens())
    # Those that end without a wait of their own do so also where no time is left.
    await asyncio.wait({generators}, timeout=max(patience.remaining, _TURNS))
    pending = asyncio.all_tasks() - supervisor
    for task in pending:
        # Left on purpose: asyncio would log it as a mistake when the task is freed.
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001
    return sorted(("task", _task_name(task)) for task in pending & (left | {generators}))


def _task_name(task: asyncio.Task[Any]) -> str:
    name = getattr(task.get_coro(), "__qualname__", task.get_name())
    return str(name).rpartition("<locals>.")[2]


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
