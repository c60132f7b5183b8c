"""A manager of runs: a bounded number at a time, each on a thread of its own, the others waiting for their turn."""

from __future__ import annotations

import atexit
import os
import threading
from collections import OrderedDict
from contextlib import suppress
from contextvars import Context
from functools import partial
from importlib import import_module
from inspect import isasyncgen, isawaitable, iscoroutine, isgenerator
from time import monotonic
from weakref import WeakSet

from llm_callback._callables import check_callable
from llm_callback._core import get_run, open_run
from llm_callback._job import Job
from llm_callback.cancel import CancelToken
from llm_callback.context import _current_run
from llm_callback.exceptions import RunQueueFull, ShutDown, ThreadRefused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Any
    from uuid import UUID

    from typing_extensions import Self

    from llm_callback._core import Run, _EventCallback

    _RunId = int | str | UUID


# How long a shutdown waits, in seconds, for another thread that is about to end a run.
_PATIENCE = 5.0


class RunManager:
    """Starts runs on threads of its own: ``max_workers`` at once, ``max_queued`` others wait, in their order.

    ``execute`` is called with a run's config, on a thread of the manager, with the run as the current one, in a
    context that is otherwise empty. What it returns is the data of ``lifecycle.completed``: a dict, or what an
    object's ``to_dict()`` makes of it, as it is, anything else as ``{"result": …}``; an awaitable or a generator, whose
    work is not done, fails the run. What it raises fails the run;
    a run that was asked to stop ends as cancelled, whatever becomes of ``execute``. Left out, it is the hierarchy of
    Strands agents, which needs the extra ``strands``. With ``capture`` what a run prints becomes its events
    (:func:`capture_output`).

    **A cancel** ends a run that waits at once, and it never starts. One that runs is told by its token and its
    handlers, and has ``cancel_timeout`` seconds, from whoever's cancel or its deadline, to end by itself. Then the
    manager ends it, as cancelled, and gives its place to the next; its thread, which cannot be stopped, is left to
    itself, and what it still says is dropped and counted.

    **After a run** the callback and the checker of its id are what they were before, the capture has ended, and the
    current run was never that of anybody else; all of it before the run's last event.

    **The threads** are daemons, and last no longer than there is work. When the interpreter exits, runs are not waited
    for as the pools of ``concurrent.futures`` are: those that wait end as cancelled, those that run are asked to stop
    and ended after ``cancel_timeout`` at the latest. For results, call :meth:`wait` or :meth:`shutdown`, or use the
    manager in ``with``. :func:`llm_callback.shutdown` ends the runs of all managers before the exit. In the child of a
    fork a manager has no runs, and is as if new.

    Thread-safe, re-entrant: everything may be called from any thread, also by what runs. No lock is held while code
    that is not ours runs.
    """

    def __init__(
        self,
        execute: Callable[[dict[str, Any]], Any] | None = None,
        *,
        max_workers: int = 10,
        max_queued: int = 1_000,
        capture: bool = True,
        cancel_timeout: float = 5.0,
    ) -> None:
        if execute is not None:
            check_callable("execute", execute)
        if not isinstance(max_workers, int) or max_workers < 1:
            raise ValueError(f"max_workers must be an int of at least 1, not {max_workers!r}")
        if not isinstance(max_queued, int) or max_queued < 0:
            raise ValueError(f"max_queued must be an int of at least 0, not {max_queued!r}")
        if not 0 <= cancel_timeout <= threading.TIMEOUT_MAX:
            raise ValueError(
                f"cancel_timeout must be a number of seconds from 0 up, not {cancel_timeout!r}"
            )
        self._execute = execute
        self._max_workers = max_workers
        self._max_queued = max_queued
        self._capture = capture
        self._cancel_timeout = cancel_timeout
        self._reset()
        with _process_lock:
            _managers.add(self)

    def _reset(self) -> None:
        # Protects all of the below, and what the jobs say of themselves. Under it: changes of these, nothing that
        # blocks, calls a run or starts a thread.
        self._lock = threading.RLock()
        self._is_shut_down = False
        self._queued: OrderedDict[Run, Job] = OrderedDict()
        self._executing: dict[Run, Job] = {}
        # Threads that have a place: never more than max_workers.
        self._workers = 0

    def start_run(
        self,
        config: Mapping[str, Any] | None = None,
        task: str = "",
        *,
        run_id: _RunId | None = None,
        deadline: float | None = None,
        on_event: _EventCallback | None = None,
    ) -> Run:
        """Open a run, queue it, and return it: it is ``pending`` until its turn comes.

        Its id is ``run_id``, else ``config["run_id"]``, else one is made. ``execute`` gets a shallow copy of ``config``
        with ``run_id`` and ``task``, the given one, else the config's, else ``""``. ``deadline`` is in seconds from
        now, the time in the queue included. ``on_event`` is registered as the event callback of the run while that
        runs: it hears what handlers, the output and :meth:`Run.emit` say, and never the run's own ``lifecycle`` events;
        its end is for :meth:`Run.wait`, or a subscription.

        Does not wait for a thread to be free. Raises :class:`ShutDown` after :meth:`shutdown` and at the interpreter's
        exit; :class:`RunQueueFull` if ``max_queued`` runs wait (threads that start runs at the same moment may each add
        one more); :class:`RunExists` if a run of this id is live; :class:`ThreadRefused` if the system refuses the only
        thread that could execute the run, which then has failed; TypeError and ValueError for bad arguments;
        ImportError if the default executor is not installed.
        """
        if on_event is not None:
            check_callable("on_event", on_event)
        given = dict(config) if config is not None else {}
        if run_id is None:
            run_id = given.get("run_id")
        given["task"] = task or given.get("task", task)
        execute = self._execute or _default_execute()
        _prepare_exit()
        self._refuse_if_shut_down()
        self._refuse_if_full()
        run = open_run(run_id, deadline=deadline, pending=True, task=given["task"])
        given["run_id"] = run.run_id
        job = Job(run, partial(execute, given), on_event)
        # Kept, and stopped with the job: a callback would hold what it is held by.
        job.keep(run.token.on_cancel(partial(self._was_cancelled, job)))
        with self._lock:
            is_late = self._is_shut_down
            if not is_late:
                self._queued[run] = job
        if is_late:
            run.cancel("the manager is shut down", kind="shutdown")
            self._refuse_if_shut_down()
        try:
            self._start_workers()
        except RuntimeError as error:
            # The system refuses a thread. With other threads at work the run will have its turn.
            with self._lock:
                is_stuck = not self._workers and self._queued.pop(run, None) is not None
            if is_stuck:
                refused = ThreadRefused(f"no thread can be started for run {run.run_id!r}: {error}")
                run.fail(refused)
                job.finish()
                raise refused from error
        if run.token.is_set():
            # Perhaps before it was in the queue.
            self._was_cancelled(job)
        return run

    def cancel_run(self, run_id: _RunId, reason: str = "") -> bool:
        """Ask a run of this manager to stop. True if it is here, has not ended, and nobody had asked before.

        One that waits for its turn has ended when this returns. Does not wait for one that runs: :meth:`wait` does.
        """
        job = self._find(run_id)
        return job is not None and job.run.cancel(reason)

    def is_running(self, run_id: _RunId) -> bool:
        """Whether a run of this manager has not ended; also while it waits for its turn, as its ``state`` tells."""
        job = self._find(run_id)
        return job is not None and job.is_open

    def get_active_runs(self) -> list[int | str]:
        """Return the ids of the runs that have not ended: those that run, then those that wait, in their order."""
        return [job.run.run_id for job in self._jobs() if job.is_open]

    def wait(self, run_id: _RunId | None = None, timeout: float | None = None) -> bool:
        """Wait for the end of a run, or of all that are here now, ``timeout`` seconds at most; whether it is there.

        True for an id of which no run is here. Ctrl-C works. Where code of a run of this manager calls it, also on
        another thread that has that run as its current one (:func:`bind`), it leaves out that run, and of the run
        itself only tells whether it has ended. Not left out is the run of a thread without a current run, on which it
        waits; nor are two runs that wait for one another, nor what waits for the caller's place.
        """
        own = self._own_jobs()
        end = _End(timeout)
        if run_id is None:
            return all(job.run.wait(end.remaining) for job in self._jobs() if job not in own)
        job = self._find(run_id)
        return job is None or job.run.wait(0 if job in own else end.remaining)

    def shutdown(self, wait: bool = True, timeout: float | None = None) -> None:  # noqa: FBT001, FBT002
        """Take no more runs, and end those that wait for their turn, as cancelled, with kind ``shutdown``.

        With ``wait``, wait for those that run, ``timeout`` seconds at most. What runs then is cancelled the same way,
        and ended after ``cancel_timeout`` at the latest: no run of this manager is open afterwards. Without ``wait``
        return at once, and let what runs go on. May be called again.

        Called by code of a run of this manager, as :meth:`wait` says, it leaves out that run, and waits for the others
        ``cancel_timeout`` seconds at most before it cancels them, as they may wait for this one. On a thread that has
        no current run it does not know the run that waits for it, and with no ``timeout`` waits for that for ever.
        """
        with self._lock:
            self._is_shut_down = True
            queued = list(self._queued.values())
        for job in queued:
            job.run.cancel("the manager is shut down", kind="shutdown")
        if not wait:
            return
        end = _End(self._patience(timeout))
        for job in self._others():
            job.is_done.wait(end.remaining)
        self._end_others("the manager is shut down", self._cancel_timeout, _PATIENCE)

    def _cancel_all(self, reason: str) -> None:
        """Take no more runs, and ask all that are here to stop: those that wait for their turn end by it."""
        with self._lock:
            self._is_shut_down = True
            # The runs that wait come first: none of them may begin in the place of a run that ends.
            jobs = [*self._queued.values(), *self._executing.values()]
        for job in jobs:
            job.run.cancel(reason, kind="shutdown")

    def _end_others(self, reason: str, patience: float | None, more: float | None) -> None:
        """Cancel the runs that are executed, and end those that have not ended after ``patience`` seconds.

        ``more`` is how many seconds it waits for another thread that is about to end a run.
        """
        stopping = self._others()
        for job in stopping:
            job.run.cancel(reason, kind="shutdown")
        end = _End(patience)
        for job in stopping:
            if not job.is_done.wait(end.remaining):
                # Perhaps its run has ended, and could not be cancelled any more.
                self._abandon(job)
                # Perhaps another thread was about to; callbacks of others might keep it.
                job.is_done.wait(more)

    def __enter__(self) -> Self:
        """Return itself. Leaving the block shuts it down, and, unless by an exception, waits for the queue first.

        In a run of this manager it waits for the queue ``cancel_timeout`` seconds at most.
        """
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.wait(timeout=self._patience(None))
        self.shutdown()

    def _refuse_if_full(self) -> None:
        with self._lock:
            free = self._max_workers - self._workers
            waiting = len(self._queued)
        if waiting >= self._max_queued + free:
            raise RunQueueFull(
                f"{waiting} runs wait for their turn, and max_queued is {self._max_queued}: start this one later"
            )

    def _refuse_if_shut_down(self) -> None:
        if self._is_shut_down:
            raise ShutDown("the manager is shut down, and starts no more runs: make another one")

    def _jobs(self) -> list[Job]:
        with self._lock:
            return [*self._executing.values(), *self._queued.values()]

    def _own_jobs(self) -> list[Job]:
        """Return what the calling code is a part of: by its thread, and by its current run."""
        here, run = threading.get_ident(), _current_run()
        with self._lock:
            return [job for job in self._executing.values() if job.thread == here or job.run == run]

    def _others(self) -> list[Job]:
        """Return what is executed, but what the calling code is a part of."""
        own = self._own_jobs()
        with self._lock:
            return [job for job in self._executing.values() if job not in own]

    def _patience(self, timeout: float | None) -> float | None:
        """Return how long to wait for other runs: where a run waits, they may wait for it."""
        if not self._own_jobs():
            return timeout
        return self._cancel_timeout if timeout is None else min(timeout, self._cancel_timeout)

    def _find(self, run_id: _RunId) -> Job | None:
        run = get_run(run_id)
        if run is None:
            return None
        with self._lock:
            return self._executing.get(run) or self._queued.get(run)

    # --- The threads ---

    def _start_workers(self) -> None:
        """Start a thread for what waits, if a place is free."""
        with self._lock:
            if not self._queued or self._workers >= self._max_workers:
                return
            self._workers += 1
        try:
            threading.Thread(target=self._work, name="llm_callback-run", daemon=True).start()
        except BaseException:
            with self._lock:
                self._workers -= 1
            raise

    def _work(self) -> None:
        job: Job | None = None
        while (job := self._next(job)) is not None:
            self._execute_run(job)

    def _next(self, done: Job | None) -> Job | None:
        """Let go of what is done, and return what is next; None if nothing is, or this thread has no place any more."""
        with self._lock:
            if done is not None and self._executing.pop(done.run, None) is None:
                return None
            job = None
            if self._queued:
                run, job = self._queued.popitem(last=False)
                job.thread = threading.get_ident()
                self._executing[run] = job
            else:
                self._workers -= 1
        if done is not None:
            done.finish()
        return job

    def _execute_run(self, job: Job) -> None:
        run = job.run
        # What `execute` raises is told by the run's end, and is no matter of the thread; nor is a run that has ended.
        with suppress(BaseException), run:
            try:
                job.prepare(capture=self._capture)
                result = Context().run(run.bind(job.execute))
            finally:
                job.clean_up()
            run.complete(**_as_data(result))

    # --- Cancels ---

    def _was_cancelled(self, job: Job) -> None:
        """Take a cancelled run out of the queue, or give it its time to end by itself."""
        with self._lock:
            queued = self._queued.pop(job.run, None)
            is_executing = self._executing.get(job.run) is job
        if queued is not None:
            job.finish()
        elif is_executing:
            # A deadline's callbacks do not run on the thread that watches deadlines, and may take their time.
            patience = CancelToken(self._cancel_timeout)
            job.keep(patience.on_cancel(partial(self._abandon, job)), patience)

    def _abandon(self, job: Job) -> None:
        """End a run whose code does not return, and give its place to another."""
        with self._lock:
            if self._executing.get(job.run) is not job:
                return
            del self._executing[job.run]
            self._workers -= 1
        job.clean_up()
        # As cancelled: it was asked to stop.
        job.run.complete()
        job.finish()
        self._start_workers()


class _End:
    """The end of a wait, ``timeout`` seconds from its making, or never."""

    def __init__(self, timeout: float | None) -> None:
        self._end = None if timeout is None else monotonic() + timeout

    @property
    def remaining(self) -> float | None:
        return None if self._end is None else max(0.0, self._end - monotonic())


def _as_data(result: Any) -> dict[str, Any]:
    """Return the fields of a run's last event."""
    if not isinstance(result, (dict, type)) and callable(
        to_dict := getattr(result, "to_dict", None)
    ):
        result = to_dict()
    if isawaitable(result) or isgenerator(result) or isasyncgen(result):
        if iscoroutine(result):
            # It never runs, and Python is not to warn of that too.
            result.close()
        raise TypeError(
            f"execute returned {result!r}, whose work is not done: have it done in execute, as with"
            " asyncio.run(...) for a coroutine"
        )
    if isinstance(result, dict) and all(isinstance(key, str) for key in result):
        return result
    return {"result": result}


def _default_execute() -> Callable[[dict[str, Any]], Any]:
    """Return what executes the hierarchy of Strands agents."""
    try:
        run_in: Callable[[dict[str, Any]], Any] = import_module("llm_callback.hierarchy").run_in
    except ImportError as error:
        raise ImportError(
            f"the default executor is not there ({error}): pip install 'llm-callback[strands]', or give RunManager"
            " a callable of your own",
            name=error.name,
        ) from error
    return run_in


# --- The process ---

# Protects the managers that there are, and whether the exit is prepared. Under it: these, and the registration.
# Re-entrant, as all locks here: what they guard is made of objects, and the collector may run where one is made.
_process_lock = threading.RLock()
_managers: WeakSet[RunManager] = WeakSet()
_is_prepared = False
_is_exiting = False


def _prepare_exit() -> None:
    """Have the runs asked to stop before the interpreter waits for threads, once.

    A run may wait for a thread of ``concurrent.futures``, which is joined at exit: ours comes before that, since it
    is registered after it.
    """
    global _is_prepared  # noqa: PLW0603 - of the process
    if _is_prepared and not _is_exiting:
        return
    try:
        if _is_exiting:
            raise RuntimeError("all runs are ended already")  # noqa: TRY301 - told as what threading says is
        import_module("concurrent.futures.thread")
        # Private, but the only place before the joins: `atexit` comes after them.
        register = getattr(threading, "_register_atexit", atexit.register)
        with _process_lock:
            if not _is_prepared:
                register(_end_all)
                _is_prepared = True
    except RuntimeError as error:
        raise ShutDown(
            "the interpreter exits, and no more runs can be started: start them before the main thread ends"
        ) from error


def _end_all() -> None:
    global _is_exiting  # noqa: PLW0603 - of the process
    _is_exiting = True
    _shut_down_managers("the interpreter exits", None)


def _shut_down_managers(reason: str, timeout: float | None) -> None:
    """End the runs of all managers, which take no more, within ``timeout`` seconds.

    All are asked to stop at once. Each manager gives its runs its ``cancel_timeout``, if there is as much.
    """
    with _process_lock:
        managers = list(_managers)
    end = _End(timeout)
    for manager in managers:
        manager._cancel_all(reason)  # noqa: SLF001
    for manager in managers:
        patience, more = manager._cancel_timeout, _PATIENCE  # noqa: SLF001
        if (left := end.remaining) is not None:
            patience, more = min(patience, left), min(more, left)
        manager._end_others(reason, patience, more)  # noqa: SLF001


def _forget_the_parents() -> None:
    """In the child of a fork: its threads are the parent's, and a lock may have been held by one of them."""
    global _process_lock  # noqa: PLW0603 - see above
    _process_lock = threading.RLock()
    for manager in list(_managers):
        manager._reset()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_parents)
