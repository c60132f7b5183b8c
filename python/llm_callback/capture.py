"""The output of runs: what a run's code prints goes to the process's streams as ever, and becomes events of the run.

While any capture is active, one proxy stands in ``sys.stdout`` and one in ``sys.stderr``, whatever the number of runs:
no run swaps the streams under another. At each write the current run says to which run the text belongs.
"""

from __future__ import annotations

import atexit
import os
import sys
from threading import RLock, get_ident, local

from llm_callback._core import _set_flush, _write_unraisable, get_run
from llm_callback.context import _bound_run, _current_run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType
    from typing import Any

    from typing_extensions import Self

    from llm_callback._core import Run

    # Of which run, by its id and generation, on which stream, and by which thread.
    _Key = tuple[int | str, int, str, int]

_STREAMS = ("stdout", "stderr")
# The number of characters of a line that one event holds at most.
_LONGEST = 65_536
# The number of unfinished lines of all runs together. Beyond it all unfinished lines become events as they are.
_MOST = 10_000

# The unfinished lines. Each is changed by its own thread only, and taken out by the thread that ends its run. The
# dict's operations are atomic, so no lock is needed, and a destructor that prints finds no lock taken.
_lines: dict[_Key, _Line] = {}

# Protects how many captures are active, and which streams are in place. Under it: assignments, no I/O, no event.
_lock = RLock()
_active = 0

# Per thread: whether it is inside a write, or emits a line. Text that is printed then is not captured again.
_inside = local()


def capture_output() -> OutputCapture:
    """Turn what the current run's code writes to stdout and stderr into events of that run, until it is stopped.

    Use it as ``with capture_output():``, or ``capture = capture_output()`` and later ``capture.stop()``. A program that
    captures for ever calls it once. Text goes to the original stream first. Every whole line then is a ``system.output
    {"stream", "text"}`` event of the run that is current at the write (:func:`set_current_run_id`, :func:`bind`), if
    that run has started and has not ended. Code that was bound to a run writes no events after the end of that run,
    even if a later run has the same id.

    Each thread of a run writes lines of its own. The event's text has no line end; a line longer than 65 536 characters
    comes in pieces. A line that is unfinished when the run ends, or the last capture, becomes an event first. Text that
    an event callback prints becomes no event.

    While a capture is active, ``sys.stdout`` and ``sys.stderr`` are proxies with all attributes of the original
    streams. A stream that is None stays None, and bytes that are written to ``buffer`` are not captured. Captures may
    end in any order. The last one puts the original stream back, if the proxy is still in place. A stream that another
    library has put there meanwhile stays, also one that wraps the proxy; the proxy then only passes text on. Streams
    that are put in place during a capture, as by ``contextlib.redirect_stdout``, are not captured.

    Thread-safe, re-entrant. Blocks as the original streams and the event callbacks do; no lock is held then. An
    exception of an event callback goes to ``sys.unraisablehook``, not into the ``print``.
    """
    return OutputCapture()


class OutputCapture:
    """One capture of the output, active until :meth:`stop`. Made by :func:`capture_output`."""

    __slots__ = ("_is_active",)

    def __init__(self) -> None:
        global _active  # noqa: PLW0603 - the streams are the process's, and so is their count
        self._is_active = True
        with _lock:
            _active += 1
            for name in _STREAMS:
                stream = getattr(sys, name, None)
                if stream is not None and type(stream) is not _Proxy:
                    setattr(sys, name, _Proxy(name, stream))

    def stop(self) -> None:
        """End the capture. If it is the last one, unfinished lines become events. Stopping again does nothing."""
        global _active  # noqa: PLW0603 - see above
        with _lock:
            if not self._is_active:
                return
            self._is_active = False
            _active -= 1
            is_last = _active == 0
            if is_last:
                for name in _STREAMS:
                    stream = getattr(sys, name, None)
                    if type(stream) is _Proxy:
                        setattr(sys, name, _original(stream))
        if is_last:
            _flush_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


class _Proxy:
    """Stands for a stream, and captures the text that is written to it."""

    __slots__ = ("__weakref__", "_name", "_original")

    def __init__(self, name: str, original: Any) -> None:
        object.__setattr__(self, "_name", name)
        object.__setattr__(self, "_original", original)

    def write(self, text: str, /) -> Any:
        original = _original(self)
        if not _active or getattr(_inside, "a_write", False):
            return original.write(text)
        # The original may be a wrapper around an older proxy: one of the two captures.
        _inside.a_write = True
        try:
            written = original.write(text)
            if isinstance(text, str):
                _take(object.__getattribute__(self, "_name"), text)
        finally:
            _inside.a_write = False
        return written

    def writelines(self, lines: Iterable[str], /) -> None:
        for line in lines:
            self.write(line)

    # isinstance(sys.stdout, io.TextIOBase) is as it was.
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return _original(self).__class__

    def __getattribute__(self, name: str) -> Any:
        if name in _OWN:
            return object.__getattribute__(self, name)
        return getattr(_original(self), name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(_original(self), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(_original(self), name)

    def __dir__(self) -> list[str]:
        return dir(_original(self))

    def __iter__(self) -> Iterator[Any]:
        return iter(_original(self))

    def __next__(self) -> Any:
        return next(_original(self))

    def __enter__(self) -> Self:
        _original(self).__enter__()
        return self

    def __exit__(self, *error: object) -> Any:
        return _original(self).__exit__(*error)

    def __repr__(self) -> str:
        return f"<llm_callback's proxy of {_original(self)!r}>"


_OWN = {"write", "writelines", "__class__"}


def _original(proxy: _Proxy) -> Any:
    return object.__getattribute__(proxy, "_original")


class _Line:
    """An unfinished line: its pieces, and their length together."""

    __slots__ = ("length", "pieces")

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.length = 0

    def add(self, text: str) -> None:
        self.pieces.append(text)
        self.length += len(text)

    def cut(self) -> Iterator[str]:
        """Take out pieces while the line is longer than one event may be."""
        if self.length > _LONGEST:
            text = self.take()
            while len(text) > _LONGEST:
                yield text[:_LONGEST]
                text = text[_LONGEST:]
            self.add(text)

    def take(self) -> str:
        text = "".join(self.pieces)
        self.pieces.clear()
        self.length = 0
        return text


def _take(name: str, text: str) -> None:
    """Turn text that was written into events of the current run, line by line."""
    run = _current_run()
    # A print does not start a pending run. A run that has ended gets no events, even if a later run has its id.
    if run is None or run.state != "running":
        return
    key = (run.run_id, run.generation, name, get_ident())
    line = _lines.pop(key, None) or _Line()
    *whole, rest = text.split("\n")
    for end in whole:
        line.add(end)
        for piece in line.cut():
            _emit(run, name, piece)
        _emit(run, name, line.take())
    line.add(rest)
    for piece in line.cut():
        _emit(run, name, piece)
    if not line.length:
        return
    _lines[key] = line
    if not _active or run.state != "running":
        # The end of the run or of the capture came before the line was there.
        _flush(run.run_id, run.generation)
    elif len(_lines) > _MOST:
        _flush_all()


def _flush(run_id: int | str, generation: int) -> None:
    """Turn the unfinished lines of a run into events. Rust calls this before and after the end of each run."""
    if not _lines:
        return
    # The list is made in one step, whatever other threads do.
    keys = [key for key in list(_lines) if key[:2] == (run_id, generation)]
    lines = [(key, line) for key in keys if (line := _lines.pop(key, None)) is not None]
    run = get_run(run_id) if lines else None
    if run is None or run.generation != generation:
        return
    was_inside = getattr(_inside, "a_write", False)
    _inside.a_write = True
    try:
        for (_, _, name, _), line in lines:
            _emit(run, name, line.take())
    finally:
        _inside.a_write = was_inside


def _flush_all() -> None:
    for run_id, generation, *_ in list(_lines):
        _flush(run_id, generation)


def _emit(run: Run, name: str, text: str) -> None:
    try:
        run.emit("system", "output", {"stream": name, "text": text})
    except Exception as error:  # noqa: BLE001 - a print must not raise a callback's exception
        _write_unraisable(error, run)


def _forget_the_parents() -> None:
    """In the child of a fork: another thread of the parent may hold the lock for ever, and its runs are not here."""
    global _lock  # noqa: PLW0603 - see above
    _lock = RLock()
    _lines.clear()
    # The child may open a run of the same id.
    _bound_run.set(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_parents)
# Called before Rust ends the runs that are still open: a function that is registered later is called earlier.
atexit.register(_flush_all)
_set_flush(_flush)
