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


# How many seconds a shutdown waits for another thread that is about to end a run.
_PATIENCE = 5.0


class RunManager:
    """Executes runs on threads of its own: ``max_workers`` at once. Up to ``max_queued`` others wait in a queue.

    ``execute(config)`` does the work of one run. It is called on a thread of the manager, in an empty context in which
    the run is the current one. If it returns a dict, or an object with a ``to_dict()`` method, that dict is the data of
    ``lifecycle.completed``; any other value is there as ``{"result": value}``. An exception fails the run. So does an
    awaitable or a generator as the value, since its work is not done. A run that was asked to stop ends as cancelled,
    whatever ``execute`` does. By default ``execute`` runs the hierarchy of Strands agents, which needs the extra
    ``strands``. With ``capture``, text that a run's code prints becomes events of that run (:func:`capture_output`).

    **A cancel** of a run in the queue ends the run at once, and it never starts. The token and the handlers of a run
    that is executed tell its code to stop. The code has ``cancel_timeout`` seconds from the cancel, or from the
    deadline. After that the manager ends the run as cancelled and executes the next one in its place. The thread of the
    old run cannot be stopped and is left alone; its later events are dropped and counted.

    **Before a run's last event** the capture ends, and the callback and the checker of the run's id are put back as
    they were before the run.

    **The threads** are daemon threads, and end when the queue is empty. Unlike the pools of ``concurrent.futures``, a
    manager does not wait for its runs when the interpreter exits: runs in the queue end as cancelled; runs that are
    executed are asked to stop, and are ended after ``cancel_timeout`` seconds at the latest. To get the results, call
    :meth:`wait` or :meth:`shutdown`, or use the manager in ``with``. :func:`llm_callback.shutdown` ends the runs of all
    managers before the exit. In the child of a fork a manager has no runs and is as if new.

    Thread-safe and re-entrant: a run's own code may call any method too. No lock is held while ``execute`` or a
    callback runs.
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
        # Protects the attributes below and the fields of the jobs. Under it: changes of these; never a call that
        # blocks, calls a run or starts a thread.
        self._lock = threading.RLock()
        self._is_shut_down = False
        self._queued: OrderedDict[Run, Job] = OrderedDict()
        self._executing: dict[Run, Job] = {}
        # How many threads execute runs: at most max_workers. A thread that was left alone does not count.
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
        """Open a run, put it into the queue, and return it. The run is ``pending`` until a thread executes it.

        The run's id is ``run_id``, or else ``config["run_id"]``; if there is neither, an id is made. ``execute`` gets a
        shallow copy of ``config`` with the keys ``run_id`` and ``task``. The task is ``task``, or else
        ``config["task"]``, or else ``""``. The run is cancelled ``deadline`` seconds from now; the time in the queue
        counts. ``on_event`` is registered as the event callback of the run's id while the run is executed. It gets the
        events of handlers, of printed text and of :meth:`Run.emit`, but not the ``lifecycle`` events that the run
        itself emits: use :meth:`Run.wait` or a subscription to learn of the end.

        Does not block. Raises :class:`ShutDown` after :meth:`shutdown` and at the interpreter's
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
        # Stopped when the job is done: the token holds the callback, and the callback holds the job.
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
            # The system refuses a thread. If the manager has other threads, one of them will execute the run.
            with self._lock:
                is_stuck = not self._workers and self._queued.pop(run, None) is not None
            if is_stuck:
                refused = ThreadRefused(f"no thread can be started for run {run.run_id!r}: {error}")
                run.fail(refused)
                job.finish()
                raise refused from error
        if run.token.is_set():
            # The cancel may have come before the run was in the queue.
            self._was_cancelled(job)
        return run

    def cancel_run(self, run_id: _RunId, reason: str = "") -> bool:
        """Ask a run of this manager to stop. Returns True if this call was the first to ask.

        Returns False for a run that has ended, and for an id of which this manager has no run. A run in the queue has
        ended when this method returns. The method does not wait for a run that is executed: see :meth:`wait`.
        """
        job = self._find(run_id)
        return job is not None and job.run.cancel(reason)

    def is_running(self, run_id: _RunId) -> bool:
        """Return True for a run of this manager that has not ended, also while it is in the queue (``pending``)."""
        job = self._find(run_id)
        return job is not None and job.is_open

    def get_active_runs(self) -> list[int | str]:
        """Return the ids of the runs that have not ended: those that are executed, then the queue in its order."""
        return [job.run.run_id for job in self._jobs() if job.is_open]

    def wait(self, run_id: _RunId | None = None, timeout: float | None = None) -> bool:
        """Wait until a run has ended, or all runs that the manager has now, at most ``timeout`` seconds.

        Returns True once they have ended, False on timeout. Returns True for an id of which this manager has no run.
        Blocks; Ctrl-C works.

        A run's own code may call this method too, also on a thread to which it was bound (:func:`bind`). Then the
        method does not wait for that run: for that run's id it returns at once whether the run has ended. A thread
        without a current run is not recognised, and waits for the run that waits for it. Two runs that wait for each
        other wait for ever, and so does a run that waits for a run which needs its place.
        """
        own = self._own_jobs()
        end = _End(timeout)
        if run_id is None:
            return all(job.run.wait(end.remaining) for job in self._jobs() if job not in own)
        job = self._find(run_id)
        return job is None or job.run.wait(0 if job in own else end.remaining)

    def shutdown(self, wait: bool = True, timeout: float | None = None) -> None:  # noqa: FBT001, FBT002
        """Start no more runs, and end the runs in the queue as cancelled, with kind ``shutdown``.

        With ``wait``, the method then waits for the runs that are executed, at most ``timeout`` seconds. After that it
        cancels them too, and ends each after ``cancel_timeout`` seconds at the latest: afterwards no run of this
        manager is open. Without ``wait`` it returns at once, and the runs that are executed go on. The method may be
        called again.

        If a run's own code calls it (see :meth:`wait`), the method leaves out that run. It waits for the others at most
        ``cancel_timeout`` seconds before it cancels them, since they may wait for the caller. A thread without a
        current run is not recognised: without a ``timeout`` it waits for ever for a run that waits for it.
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
        """Start no more runs, and ask all runs to stop. The runs in the queue end by this."""
        with self._lock:
            self._is_shut_down = True
            # The queue comes first: no run may begin in the place of a run that ends.
            jobs = [*self._queued.values(), *self._executing.values()]
        for job in jobs:
            job.run.cancel(reason, kind="shutdown")

    def _end_others(self, reason: str, patience: float | None, more: float | None) -> None:
        """Cancel the runs that are executed, and end those that have not ended after ``patience`` seconds.

        If another thread is about to end a run, wait for that thread ``more`` seconds at most.
        """
        stopping = self._others()
        for job in stopping:
            job.run.cancel(reason, kind="shutdown")
        end = _End(patience)
        for job in stopping:
            if not job.is_done.wait(end.remaining):
                # A run that has ended can no longer be cancelled, and its code may still be at work.
                self._abandon(job)
                # Another thread may be about to end the run, and a host's callback may delay that thread.
                job.is_done.wait(more)

    def __enter__(self) -> Self:
        """Return the manager. Leaving the block shuts it down; without an exception it waits for all runs first.

        In the code of a run of this manager the wait takes at most ``cancel_timeout`` seconds.
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
        """Return the jobs of the calling code: of its thread, and of its current run."""
        here, run = threading.get_ident(), _current_run()
        with self._lock:
            return [job for job in self._executing.values() if job.thread == here or job.run == run]

    def _others(self) -> list[Job]:
        """Return the jobs that are executed, without those of the calling code."""
        own = self._own_jobs()
        with self._lock:
            return [job for job in self._executing.values() if job not in own]

    def _patience(self, timeout: float | None) -> float | None:
        """Return how long to wait for other runs. If a run's own code waits, they may wait for that run."""
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
        """Start a thread for the queue, if fewer than ``max_workers`` are at work."""
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
        """Finish the job that is done and return the next one. None ends this thread.

        None if the queue is empty, or if the manager has left this thread alone.
        """
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
        # The run's last event tells what `execute` has raised; the thread goes on. Entering an ended run raises too.
        with suppress(BaseException), run:
            try:
                job.prepare(capture=self._capture)
                result = Context().run(run.bind(job.execute))
            finally:
                job.clean_up()
            run.complete(**_as_data(result))

    # --- Cancels ---

    def _was_cancelled(self, job: Job) -> None:
        """Take a cancelled run out of the queue; or, if it is executed, end it after ``cancel_timeout`` seconds."""
        with self._lock:
            queued = self._queued.pop(job.run, None)
            is_executing = self._executing.get(job.run) is job
        if queued is not None:
            job.finish()
        elif is_executing:
            # The callbacks of deadlines have a thread of their own, so that this one may block.
            patience = CancelToken(self._cancel_timeout)
            job.keep(patience.on_cancel(partial(self._abandon, job)), patience)

    def _abandon(self, job: Job) -> None:
        """End a run whose code does not return, and execute another run in its place."""
        with self._lock:
            if self._executing.get(job.run) is not job:
                return
            del self._executing[job.run]
            self._workers -= 1
        job.clean_up()
        # The run was asked to stop, so that this ends it as cancelled.
        job.run.complete()
        job.finish()
        self._start_workers()


class _End:
    """The moment when a wait ends, ``timeout`` seconds from now; None is never."""

    def __init__(self, timeout: float | None) -> None:
        self._end = None if timeout is None else monotonic() + timeout

    @property
    def remaining(self) -> float | None:
        return None if self._end is None else max(0.0, self._end - monotonic())


def _as_data(result: Any) -> dict[str, Any]:
    """Return the data of ``lifecycle.completed`` for what ``execute`` has returned."""
    if not isinstance(result, (dict, type)) and callable(
        to_dict := getattr(result, "to_dict", None)
    ):
        result = to_dict()
    if isawaitable(result) or isgenerator(result) or isasyncgen(result):
        if iscoroutine(result):
            # The coroutine never runs. The error says so, and Python's warning is not needed.
            result.close()
        raise TypeError(
            f"execute returned {result!r}, whose work is not done: have it done in execute, as with"
            " asyncio.run(...) for a coroutine"
        )
    if isinstance(result, dict) and all(isinstance(key, str) for key in result):
        return result
    return {"result": result}


def _default_execute() -> Callable[[dict[str, Any]], Any]:
    """Return the function that runs the hierarchy of Strands agents."""
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

# Protects the set of managers, and whether the exit is prepared. Under it: changes of these, and the registration.
# Re-entrant, as all locks here: making an object may run Python's collector, and so code that takes the lock again.
_process_lock = threading.RLock()
_managers: WeakSet[RunManager] = WeakSet()
_is_prepared = False
_is_exiting = False


def _prepare_exit() -> None:
    """Arrange, once, that all runs are asked to stop before the interpreter joins threads at its exit.

    A run may wait for a thread of ``concurrent.futures``, which is joined at exit. Functions that are registered later
    are called earlier, so that module is imported first.
    """
    global _is_prepared  # noqa: PLW0603 - of the process
    if _is_prepared and not _is_exiting:
        return
    try:
        if _is_exiting:
            raise RuntimeError("all runs are ended already")  # noqa: TRY301 - handled as threading's own error is
        import_module("concurrent.futures.thread")
        # Private, but the only functions that are called before the joins: those of `atexit` come after them.
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
    """End the runs of all managers within ``timeout`` seconds. The managers start no more runs.

    All runs are asked to stop at once. Each manager gives its runs ``cancel_timeout`` seconds, or what is left.
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
    """Make the managers as if new, in the child of a fork: the parent's threads are not here, and may hold a lock."""
    global _process_lock  # noqa: PLW0603 - see above
    _process_lock = threading.RLock()
    for manager in list(_managers):
        manager._reset()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_parents)
