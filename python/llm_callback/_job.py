"""One run of a manager: the function that executes the run, and what is registered and captured meanwhile."""

from __future__ import annotations

import os
import threading
from contextlib import suppress

from llm_callback._core import get_run, register_cancellation_checker, register_event_callback
from llm_callback._views import _callback_registry, _checker_registry
from llm_callback.cancel import CancelToken
from llm_callback.capture import _flush, capture_output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from llm_callback._core import CancelRegistration, Run, _EventCallback
    from llm_callback.capture import OutputCapture

# Protects which job has registered for a run's id, and whether the earlier registrations are put back. Under it:
# look-ups and registrations; never a destructor, since the caller holds what is replaced until the lock is released.
# Re-entrant: making an object may run Python's collector, and so code that takes the lock again.
_registry_lock = threading.RLock()
_registered: dict[int | str, Job] = {}


class Job:
    """A run that is queued or executed, with the registrations that are put back after it."""

    def __init__(
        self,
        run: Run,
        execute: Callable[[], Any],
        on_event: _EventCallback | None,
    ) -> None:
        self.run = run
        self.execute = execute
        self.thread: int | None = None
        # Set when the thread has finished the job, or was left alone. A plain Event has a lock: a signal handler that
        # interrupts the thread which holds that lock would wait for ever.
        self.is_done = CancelToken()
        self._on_event = on_event
        self._before: tuple[Any, Any] = (None, None)
        self._is_clean = False
        self._capture: OutputCapture | None = None
        self._kept: list[tuple[CancelRegistration, CancelToken | None]] = []

    @property
    def is_open(self) -> bool:
        return not self.run.wait(0)

    def prepare(self, *, capture: bool) -> None:
        """Register the callback and start the capture, unless the job was abandoned meanwhile."""
        run_id = self.run.run_id
        with _registry_lock:
            if self._is_clean:
                return
            # The run of an earlier job of this id has ended, and its code lingers. Its registrations must not be put
            # back after this job.
            earlier = _registered.get(run_id)
            kept = None if earlier is None else earlier._put_back()  # noqa: SLF001
            _registered[run_id] = self
            self._before = (_callback_registry.get(run_id), _checker_registry.get(run_id))
            if self._on_event is not None:
                register_event_callback(run_id, self._on_event)
        del kept
        if capture:
            self._capture = capture_output()
            if self._is_clean:
                self._capture.stop()

    def clean_up(self) -> None:
        """Stop the capture and put back the registrations. Only the first call does, whichever thread it comes from."""
        try:
            if self._capture is not None:
                self._capture.stop()
            # Printed text that is not a whole line yet becomes an event, while the callback is still registered.
            _flush(self.run.run_id, self.run.generation)
        finally:
            with _registry_lock:
                self._is_clean = True
                kept = self._put_back()
            del kept
            # The capture may have begun in between.
            if self._capture is not None:
                self._capture.stop()

    def _put_back(self) -> tuple[Any, Any] | None:
        """Put back what was registered before. The caller holds the lock, and drops the result after its release."""
        run_id = self.run.run_id
        if _registered.get(run_id) is not self:
            return None
        del _registered[run_id]
        latest = get_run(run_id)
        is_latest = latest is None or latest == self.run
        now = (_callback_registry.get(run_id), _checker_registry.get(run_id))
        callback, checker = self._before
        # A registration that the host has removed meanwhile is not put back. One that may be a later run's own stays.
        if now[0] is not None and (is_latest or now[0] is self._on_event):
            register_event_callback(run_id, callback)
        if now[1] is not None and is_latest:
            register_cancellation_checker(run_id, checker)
        return now

    def keep(self, registration: CancelRegistration, token: CancelToken | None = None) -> None:
        """Stop the registration when the job is done. The token is kept, since a dropped token has no deadline."""
        self._kept.append((registration, token))
        if self.is_done.is_set():
            self.finish()

    def finish(self) -> None:
        """Wake the threads that wait for the job, and stop the registrations of cancel callbacks."""
        self.is_done.set()
        while self._kept:
            # Two threads may do this at once.
            with suppress(IndexError):
                self._kept.pop()[0].stop()


def _forget_the_parents() -> None:
    """Make a new lock, in the child of a fork: a thread of the parent may have held the old one."""
    global _registry_lock  # noqa: PLW0603 - see above
    _registry_lock = threading.RLock()
    _registered.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_parents)
