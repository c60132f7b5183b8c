"""One run of a manager: what to call for it, what is registered and captured meanwhile, and what is put back."""

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

# Protects whose registrations those of a run's id are, and whether they are put back. Under it: look-ups and
# registrations, after which what was replaced is still held, so that no destructor is called.
# Re-entrant: what it guards is made of objects, and the collector may run where one is made.
_registry_lock = threading.RLock()
_registered: dict[int | str, Job] = {}


class Job:
    """A run that waits or is executed: what to call, and what to put back after it."""

    def __init__(
        self,
        run: Run,
        execute: Callable[[], Any],
        on_event: _EventCallback | None,
    ) -> None:
        self.run = run
        self.execute = execute
        self.thread: int | None = None
        # Set when the thread has come back from it, or is not waited for any more. A plain Event has a lock: a signal
        # handler that interrupts the thread holding it would wait for it for ever.
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
        """Register and capture, unless it was abandoned meanwhile."""
        run_id = self.run.run_id
        with _registry_lock:
            if self._is_clean:
                return
            # Its run has ended, since ours has begun, and its code lingers: ours is not to put back what it put there.
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
        """Leave everything as it was before the run; once, also where two threads want to."""
        try:
            if self._capture is not None:
                self._capture.stop()
            # The last of what it printed, while its callback can hear of it.
            _flush(self.run.run_id, self.run.generation)
        finally:
            with _registry_lock:
                self._is_clean = True
                kept = self._put_back()
            del kept
            # It may have begun in between.
            if self._capture is not None:
                self._capture.stop()

    def _put_back(self) -> tuple[Any, Any] | None:
        """Put back what was registered before, under the lock; return what is replaced, to die without it."""
        run_id = self.run.run_id
        if _registered.get(run_id) is not self:
            return None
        del _registered[run_id]
        latest = get_run(run_id)
        is_latest = latest is None or latest == self.run
        now = (_callback_registry.get(run_id), _checker_registry.get(run_id))
        callback, checker = self._before
        # What somebody has removed meanwhile is not put back, and what may be a later run's own stays.
        if now[0] is not None and (is_latest or now[0] is self._on_event):
            register_event_callback(run_id, callback)
        if now[1] is not None and is_latest:
            register_cancellation_checker(run_id, checker)
        return now

    def keep(self, registration: CancelRegistration, token: CancelToken | None = None) -> None:
        """Stop the registration when all is done. The token is kept, for its time to go on."""
        self._kept.append((registration, token))
        if self.is_done.is_set():
            self.finish()

    def finish(self) -> None:
        """Wake who waits for it, and let go of what would call it."""
        self.is_done.set()
        while self._kept:
            # Two threads may be here.
            with suppress(IndexError):
                self._kept.pop()[0].stop()


def _forget_the_parents() -> None:
    """In the child of a fork: the lock may have been held by a thread of the parent's."""
    global _registry_lock  # noqa: PLW0603 - see above
    _registry_lock = threading.RLock()
    _registered.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_parents)
