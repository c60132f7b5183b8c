"""The end of all runs before the interpreter's own: by hand, or by a signal."""

from __future__ import annotations

from contextlib import suppress
from time import monotonic

from llm_callback import _core
from llm_callback._seconds import seconds
from llm_callback.manager import _shut_down_managers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any


def shutdown(reason: str = "the process shuts down", timeout: float | None = 5.0) -> bool:
    """End every live run as cancelled, refuse new runs, and wait until the sinks have written every event.

    Call it where the process is about to end without the interpreter's own exit: uvicorn ends by a signal, after which
    no ``atexit`` function runs. The exit calls the same by itself.

    Every live run is cancelled with kind ``shutdown`` and this ``reason``. First each ``RunManager`` refuses new runs.
    Its queued runs end; the runs that it executes have its ``cancel_timeout``, half of ``timeout`` at most, to end by
    themselves, and are ended then. All other runs end at once. From then on :func:`open_run` raises :class:`ShutDown`.

    Blocks for ``timeout`` seconds at most; None is no limit. The callbacks of ``on_cancel`` run on the calling thread,
    and may keep it longer. Releases the GIL. In a coroutine, use ``await asyncio.to_thread(llm_callback.shutdown)``.
    Returns True once every sink, such as the file of :func:`log_to_file`, has every event. Returns False on timeout:
    events that a sink has not taken by then count as dropped.

    Thread-safe and re-entrant: it may be called in a callback, in a signal handler and by code of a run. Calling it
    again ends nothing more, and returns whether the sinks have every event; of several timeouts the earliest counts.
    Events that runs emit afterwards are dropped and counted. The child of a fork starts with no runs and may open new
    ones. Raises TypeError or ValueError for invalid arguments, before anything else.
    """
    if not isinstance(reason, str):
        raise TypeError(f"reason must be a str, not {reason!r}")
    timeout = seconds("timeout", timeout)
    if timeout is None:
        _shut_down_managers(reason, None)
        return _core.shutdown(reason, None)
    end = monotonic() + timeout
    _shut_down_managers(reason, max(0.0, timeout / 2))
    return _core.shutdown(reason, max(0.0, end - monotonic()))


def shutdown_on_sigterm(timeout: float | None = 5.0) -> None:
    """Make SIGTERM call :func:`shutdown`, and then do what it did before.

    For plain scripts, which SIGTERM would otherwise end at once, with runs that have no last event. It is
    ``shutdown_on_signal(signal.SIGTERM, timeout)``: see :func:`shutdown_on_signal`.
    """
    import signal  # noqa: PLC0415 - few need it

    shutdown_on_signal(signal.SIGTERM, timeout)


def shutdown_on_signal(number: int, timeout: float | None = 5.0) -> None:
    """Make a signal that asks the process to end call :func:`shutdown` first.

    ``number`` is that signal, such as ``signal.SIGINT``. When the signal comes, our handler puts back the handler that
    was there before, calls ``shutdown`` with ``timeout`` seconds (None is no limit), and then has the previous handler
    act. The default action ends the process by the signal: for SIGTERM the exit status is 143 in a shell. The handler
    that Python installs for SIGINT raises KeyboardInterrupt. Any other Python handler is called. A signal that the
    process ignores stays ignored.

    A second signal during the shutdown goes to the previous handler at once, and may end the process, or interrupt the
    shutdown by KeyboardInterrupt. Do not use a signal that does not end the process by default, such as SIGCHLD.
    ``asyncio.run`` cancels its main task on SIGINT only if no handler is installed: with ours, KeyboardInterrupt is
    raised in the code that runs. Servers have a place for :func:`shutdown` of their own, such as the lifespan of an
    ASGI application: use that.

    Python calls signal handlers on the main thread, between two of its instructions: a main thread that is inside a
    long call of C code comes to the handler after that call. Callbacks of ``on_cancel`` run in the handler too. They
    may keep the main thread longer than ``timeout``, and for ever if they wait for a lock that it holds.

    Only installs the handler, and does not block. Calling it again for the same signal shuts down once more, which ends
    nothing more. Raises ValueError on any other thread than the main one, and for an invalid ``number`` or ``timeout``;
    TypeError for one that is no number, and OverflowError for a ``number`` beyond a C int; OSError for a signal that
    cannot be caught; RuntimeError if the present handler was not installed by Python, and could not be put back.
    """
    import signal  # noqa: PLC0415 - few need it

    timeout = seconds("timeout", timeout)
    previous = signal.getsignal(number)
    if previous is None:
        raise RuntimeError(
            f"the handler of signal {number} was not installed by Python and could not be put back: call"
            " llm_callback.shutdown() where that handler ends the process"
        )
    # Raises ValueError on another thread, also where there is nothing to be done.
    signal.signal(number, previous)
    if previous is not signal.SIG_IGN:
        signal.signal(number, OnSignal(previous, timeout))


class OnSignal:
    """A signal handler that shuts down and then lets the previous one act."""

    def __init__(
        self, previous: Callable[[int, FrameType | None], Any] | int, timeout: Any
    ) -> None:
        self.previous = previous
        self._timeout = timeout

    def __call__(self, number: int, frame: FrameType | None) -> None:
        import signal  # noqa: PLC0415 - is there already

        # A handler that was installed later may call this one on another thread, where nothing can be installed.
        with suppress(ValueError):
            signal.signal(number, self.previous)
        try:
            shutdown(f"the process was asked to end by {_name(number)}", self._timeout)
        finally:
            if callable(self.previous):
                self.previous(number, frame)
            else:
                signal.raise_signal(number)


def _name(number: int) -> str:
    """Return the name of a signal; only some real-time signals have one."""
    import signal  # noqa: PLC0415 - is there already

    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
