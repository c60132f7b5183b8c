from collections.abc import Awaitable, Callable, Hashable, Mapping
from os import PathLike
from threading import Event as ThreadingEvent
from types import TracebackType
from typing import (
    Any,
    Literal,
    TypeAlias,
    TypedDict,
    TypeVar,
    final,
    overload,
    type_check_only,
)
from uuid import UUID

from typing_extensions import Never, Self, disjoint_base

from llm_callback.cancel import CancelToken
from llm_callback.events import (
    BuiltInAction,
    BuiltInCategory,
    CallbackEvent,
    CallerContext,
    CancelKind,
    Event,
    EventAction,
    EventCategory,
    Overflow,
    RunState,
    Source,
)

__all__ = [
    "CancelRegistration",
    "LLMCallbackHandler",
    "Run",
    "RunCallback",
    "RunChecker",
    "RunHandler",
    "SinkHandle",
    "SseStream",
    "Subscription",
    "_Token",
    "_callbacks",
    "_checkers",
    "_set_flush",
    "_set_token_class",
    "_write_unraisable",
    "active_runs",
    "add_sink",
    "cancel_run",
    "check_cancellation",
    "clear_current_run_id",
    "configure",
    "create_callback_handler",
    "flush",
    "get_cancellation_checker",
    "get_current_run_id",
    "get_event_callback",
    "get_global_cancellation_checker",
    "get_global_event_callback",
    "get_run",
    "log_to_file",
    "open_run",
    "register_cancellation_checker",
    "register_event_callback",
    "set_current_run_id",
    "set_global_cancellation_checker",
    "set_global_event_callback",
    "shutdown",
    "stats",
]

# At run time an event is a dict. To type checkers a TypedDict is none, so that a callback may take either.
_EventCallback: TypeAlias = Callable[[CallbackEvent], object] | Callable[[dict[str, Any]], object]
_SinkFunction: TypeAlias = (
    Callable[[list[Event]], object] | Callable[[list[dict[str, Any]]], object]
)
# A registered callback as it is handed back: which of the two it takes is not known.
_GivenCallback: TypeAlias = Callable[[Any], Any]
_CancellationChecker: TypeAlias = Callable[[], object]
_F = TypeVar("_F", bound=Callable[..., Any])
_Speaker: TypeAlias = CallerContext | Source

@type_check_only
class _Dropped(TypedDict):
    no_callback: int
    route: int

@type_check_only
class _OldestRun(TypedDict):
    run_id: int | str
    opened_at: float

@type_check_only
class _RunsStats(TypedDict):
    live: int
    oldest: _OldestRun | None
    finished: int
    finished_bytes: int
    opened: int
    late: int

@type_check_only
class _ReaderStats(TypedDict):
    open: int
    lag: int

@type_check_only
class _SinkStats(TypedDict):
    written: int
    dropped: int
    errors: int
    last_error: str | None
    waiting: int
    waiting_bytes: int

@type_check_only
class _Stats(TypedDict):
    emitted: int
    dropped: _Dropped
    cancelled: int
    callbacks: int
    checkers: int
    runs: _RunsStats
    readers: _ReaderStats
    sinks: dict[str, _SinkStats]

def register_event_callback(run_id: Hashable, callback: _EventCallback | None) -> None:
    """Send the events of the run `run_id` to `callback`; None removes the run's callback.

    `run_id` is any hashable, and equal ids are one run, as in a dict. `callback` is called as `callback(event)` on the
    emitting thread, with no lock held: it may register, remove, emit or block, and its exceptions reach the code that
    emits. Any object but None is stored: an object that cannot be called fails only when an event is emitted.

    Thread-safe, re-entrant, does not block. Raises TypeError for an unhashable `run_id`.
    """

def get_event_callback(run_id: Hashable) -> _GivenCallback | None:
    """Return the callback of the run `run_id`, or None.

    With `configure(route="context")` the run of the calling context is preferred, if one is known.
    Thread-safe, re-entrant, does not block. Raises TypeError for an unhashable `run_id`.
    """

def register_cancellation_checker(run_id: Hashable, checker: _CancellationChecker | None) -> None:
    """Ask `checker` whether the run `run_id` is cancelled; None removes the run's checker.

    `checker` is called without arguments at each call of a handler of the run, and by :func:`check_cancellation`, on
    the calling thread, with no lock held. If it returns a true value, :class:`RunCancelled` is raised; an exception of
    `checker` passes through.

    Thread-safe, re-entrant, does not block. Raises TypeError for an unhashable `run_id`.
    """

def get_cancellation_checker(run_id: Hashable) -> _CancellationChecker | None:
    """Return the cancellation checker of the run `run_id`, or None.

    With `configure(route="context")` the run of the calling context is preferred, if one is known.
    Thread-safe, re-entrant, does not block. Raises TypeError for an unhashable `run_id`.
    """

def set_current_run_id(run_id: Hashable) -> None:
    """Make `run_id` the run of the calling context: of this thread, or of this asyncio task.

    A thread that starts later does not get the run; a copy of the calling context has it. Any object is accepted; None
    is the same as :func:`clear_current_run_id`. Thread-safe, does not block.
    """

def get_current_run_id() -> Any:
    """Return the run of the calling context, or None.

    On free-threaded Python, and with `-X thread_inherit_context=1`, a thread inherits the context of the thread that
    started it: a run that was only inherited is ignored. A copy of an inherited context cannot be told from a context
    that was copied on purpose, so in such worker threads set the run, or :func:`bind` it. Thread-safe, does not block.
    """

def clear_current_run_id() -> None:
    """Leave the calling context without a run. Thread-safe, does not block."""

def set_global_event_callback(callback: _EventCallback | None) -> None:
    """Register `callback` for the current run; without a current run, do nothing. For hosts that use the oldest interface."""

def get_global_event_callback() -> _GivenCallback | None:
    """Return the callback of the current run, or None."""

def set_global_cancellation_checker(checker: _CancellationChecker | None) -> None:
    """Register `checker` for the current run; without a current run, do nothing. For hosts that use the oldest interface."""

def get_global_cancellation_checker() -> _CancellationChecker | None:
    """Return the cancellation checker of the current run, or None."""

def check_cancellation() -> None:
    """Raise :class:`RunCancelled` if the current run is cancelled, by its token or by its checker; without a run, do
    nothing.

    Calls the checker on this thread, with no lock held; its exceptions pass through. Thread-safe, re-entrant.
    """

def configure(
    *,
    route: Literal["handler", "context", "strict"] = "handler",
    log_events: int = 10000,
    log_bytes: int = 16777216,
    keep_seconds: float = 300.0,
    keep_runs: int = 1000,
    keep_bytes: int = 268435456,
    max_live: int | None = None,
) -> None:
    """Change the settings of this process. A setting that is not given stays as it is; the signature shows the defaults.

    `route` says to which run an event goes if a handler's run id and the current run of the calling context differ.
    `"handler"`: to the run id that the handler was given, as in the original module. `"context"`: to the current run,
    if there is one; this repairs a host whose run id is a process-wide variable. `"strict"`: to neither; the event is
    dropped and counted in `stats()["dropped"]["route"]`. The environment variable `LLM_CALLBACK_ROUTE` sets the route
    at import.

    `log_events` and `log_bytes` bound the log of each run that is opened from now on: the oldest events make room for
    new ones, and a reader that has not read them is told. A finished run can be found and read for `keep_seconds`, as
    one of the latest `keep_runs`. All finished runs together, and the events that readers of forgotten runs have still
    to read, hold at most `keep_bytes` of encoded events. `max_live` is the number of runs that may be live at once,
    None for any number; beyond it :func:`open_run` raises :class:`TooManyRuns`.

    A child of a fork keeps the settings. Thread-safe; does not block. Raises TypeError or ValueError for invalid
    arguments; then nothing is changed.
    """

def stats() -> _Stats:
    """Return what was delivered, dropped and cancelled since import, and what is registered now.

    - `emitted`: events given to a callback.
    - `dropped`: events that reached no callback, by reason: `no_callback` (their run has none, or a false one), `route`
      (see :func:`configure`).
    - `cancelled`: how often :class:`RunCancelled` was raised.
    - `callbacks`, `checkers`: registrations now; zero once every run has cleaned up.
    - `runs`: the number of `live` runs; the `oldest` live run (its `run_id`, and `opened_at` in seconds since 1970) or
      None; the number of `finished` runs that can still be read; the `finished_bytes` that ended runs hold; the number
      of runs that were `opened`; the number of events and annotations that came `late`, after their run's end.
    - `readers`: the number of `open` subscriptions, and the `lag`: how many events the slowest has still to read.
    - `sinks`: by name (of a file its real path) the events `written` and `dropped`, the number of `errors` and the
      `last_error`, and the ended runs that the sink has still to take (`waiting`, `waiting_bytes`).

    Returns a new dict each time. Thread-safe. Takes the lock of each run's log for a moment, without the GIL.
    """

def _callbacks() -> dict[Any, _GivenCallback]:
    """Return a new dict of all registered callbacks by run id."""

def _checkers() -> dict[Any, _CancellationChecker]:
    """Return a new dict of all registered checkers by run id."""

@disjoint_base
class LLMCallbackHandler:
    """Turns what an agent framework calls it with into events of one run.

    Give it to the framework as its callback handler. Each call first asks the token of `run_id`, if that run is open,
    and its cancellation checker, and raises :class:`RunCancelled` if the run is cancelled. Then it reports reasoning,
    text, tool calls and completion, in this order. Each is an event `{"source", "event", "data"}`, which goes to
    `event_callback`. If that is None, the event goes to the log of `run_id`, if that run is open, and to the callback
    registered for `run_id`. An event that reaches neither is dropped and counted: see :func:`stats`.

    `caller_context` is the source of the events; with `verbose`, text is also printed to `sys.stdout`. All attributes
    can be changed at any time. Thread-safe and re-entrant: callbacks run on the calling thread with no lock held, and
    their exceptions reach the caller.
    """

    caller_context: CallerContext
    event_callback: _GivenCallback | None
    verbose: bool
    run_id: Hashable
    tool_count: int
    previous_tool_use: Any
    _buffer: list[Any]
    def __init__(
        self,
        caller_context: CallerContext,
        event_callback: _EventCallback | None = None,
        verbose: bool = False,
        run_id: Hashable = None,
    ) -> None: ...
    def __call__(self, *args: Never, **kwargs: Any) -> None: ...
    def _emit_event(
        self,
        callback: _GivenCallback,
        category: EventCategory,
        action: EventAction,
        data: dict[str, Any],
    ) -> None:
        """Call `callback` with the event of `category` and `action`, members of the enums, and `data`.

        A subclass may override it to see or change the events.
        """

def create_callback_handler(
    caller_context: CallerContext,
    event_callback: _EventCallback | None = None,
    verbose: bool = False,
    run_id: Hashable = None,
) -> LLMCallbackHandler:
    """Make an :class:`LLMCallbackHandler`; a function under the name that hosts call."""

def open_run(
    run_id: int | str | UUID | None = None,
    /,
    *,
    parent: Run | int | str | UUID | None = None,
    detached: bool = False,
    deadline: float | None = None,
    pending: bool = False,
    **data: Any,
) -> Run:
    """Open a run: a log of its own, a token, handlers, readers. Use it as `with open_run(42, task="…") as run:`.

    `run_id` is an int, a str, or a UUID, which stands for its text; if it is left out, a UUID is made. `parent` is a
    live run, or its id: the new run's token is a child of the parent's, and the lifecycle events have the parent's id
    as `parent_run_id`. The run is cancelled `deadline` seconds from now. With `pending=True` the run exists and can be
    cancelled, but begins with :meth:`Run.start` or `with`. All other keywords are the data of the run's first event,
    `lifecycle.started`.

    The parent's end cancels the new run too, with kind `parent`, unless the new run is `detached`. A run that has ended
    can still be found and read for 300 seconds, as one of the latest 1 000: see :func:`configure`.

    Thread-safe. Blocks, without the GIL, while another thread changes the table of runs. Raises :class:`RunExists` if a
    run of this id is live, :class:`ParentNotLive`, :class:`TooManyRuns` if as many runs are live as :func:`configure`
    allows, :class:`ShutDown` after a shutdown or at the interpreter's exit, :class:`RunCancelled` if the parent is
    cancelled, and TypeError or ValueError for an invalid id, deadline or data.
    """

def get_run(run_id: int | str | UUID, /) -> Run | None:
    """Return the latest run of this id, live or finished; None if there is none.

    Thread-safe. Raises TypeError or ValueError for an invalid run id.
    """

def active_runs() -> list[Run]:
    """Return the runs that have not ended, in no order. Thread-safe."""

def cancel_run(
    run_id: int | str | UUID | Run, /, reason: str = "", *, kind: CancelKind = "user"
) -> bool:
    """Ask the live run of this id, and all runs below it, to stop. Returns True if there is one, and this call was the
    first to ask.

    A :class:`Run` may be given in place of an id: then that run is meant, and no later run of the same id. `kind` is
    who asks: `user`, `shutdown`, `disconnect`, …. The first reason stays. The `on_cancel` callbacks of the run's tokens
    are called before this function returns. Thread-safe. Raises TypeError or ValueError for an invalid run id or kind.
    """

def shutdown(reason: str, timeout: float | None) -> bool:
    """End every live run as cancelled, with kind `shutdown`, refuse new ones for good, and wait until the sinks have
    written every event, `timeout` seconds at most. Returns True if they have.

    :func:`llm_callback.shutdown` calls this after it has ended the runs of every `RunManager`; see there.
    """

def log_to_file(
    path: str | PathLike[str],
    /,
    *,
    max_bytes: int = 268435456,
    fsync: bool = False,
    hold_bytes: int = 67108864,
    hold_seconds: float | None = 300.0,
) -> SinkHandle:
    """Write the events of all runs that are opened from now on to a file, as newline-delimited JSON.

    A separate thread writes the file, without the GIL: no other thread waits for the disk. Events that the disk has not
    taken wait in the runs' logs. If the disk is full or hangs, the events are tried again; if a log evicts events
    meanwhile, a `stream.gap` line says so. The logs of ended runs are held for the file, at most `hold_bytes` of events
    and for `hold_seconds` (None: for any time). Beyond that only their lifecycle events are held, in 16 MiB more, and
    the others count as dropped in `stats()["sinks"]`, under the file's real path.

    One system call writes several whole lines: lines that another process appends come between two such calls. If an
    event would make the file larger than `max_bytes`, the file is renamed with `.1` at its end, in place of an older
    one. If the renaming fails, the file goes on growing, and the error is counted. No other program may move either
    file. With `fsync` each flush waits for the disk: after lifecycle events, and once a second while events come.

    Returns the :class:`SinkHandle`, which flushes and closes the file; it need not be kept. In the child of a fork
    nothing is written: call this function there, for example in a hook of the server's workers. Thread-safe. Raises
    OSError if the file cannot be opened or the system refuses the thread, and ValueError if this process writes to that
    path already.
    """

def add_sink(
    function: _SinkFunction,
    /,
    *,
    name: str | None = None,
    hold_bytes: int = 67108864,
    hold_seconds: float | None = 300.0,
) -> SinkHandle:
    """Call `function` with the events of all runs that are opened from now on: lists of dicts, each list of one run.

    A thread of the sink calls the function, one list after the other, at most 256 events at a time. Each run's events
    come in order. Events that runs emit meanwhile wait in the runs' logs, so that a slow function delays nobody. If the
    function raises, the same events come again, after a pause that grows up to two seconds; the exception is counted,
    and logged once by the logger `llm_callback`. If a run's log evicts events before the function has taken them (see
    :func:`configure`), a `stream.gap` event says so. The logs of ended runs are held for the function, at most
    `hold_bytes` of events and for `hold_seconds` (None: for any time). Beyond that only their lifecycle events are
    held, in 16 MiB more, and the others count as dropped.

    `name` is the sink's key in `stats()["sinks"]`, which no other sink may have; if it is left out, the function's
    qualified name. `function` must not be a coroutine function, and must not wait for :func:`flush`. At the
    interpreter's exit it is called with the events that are left, for five seconds at most. Thread-safe; does not
    block. Raises TypeError for an object that cannot be called, ValueError if there is a sink of that name, and
    :class:`ThreadRefused` if the system refuses the sink's thread.
    """

def flush(timeout: float | None = 5.0) -> bool:
    """Wait until every sink has taken every event that was emitted before this call, at most `timeout` seconds. Returns
    True once all have; False on timeout, and if a sink calls this.

    For a lifespan handler, or before a snapshot: runs go on meanwhile. Without sinks it returns True at once.
    Thread-safe. Blocks without the GIL; Ctrl-C works.
    """

@final
class SinkHandle:
    """The handle of a sink. Made by :func:`add_sink` and :func:`log_to_file`.

    Dropping the handle leaves the sink as it is; used in `with`, leaving the block closes the sink. Thread-safe. In the
    child of a fork its methods raise :class:`ForeignProcess`: the sink is the parent's.
    """
    @property
    def name(self) -> str:
        """The sink's name, under which `stats()["sinks"]` has its counters."""
    def stats(self) -> _SinkStats:
        """Return the sink's counters, as `stats()["sinks"]` has them; also after it was closed. Does not wait for the
        sink.
        """
    def flush(self, timeout: float | None = 5.0) -> bool:
        """Wait until the sink has taken every event that was emitted before this call, at most `timeout` seconds; None is
        no limit. Returns True once it has; False on timeout, if the sink is closed, and if the sink itself calls this.

        Blocks without the GIL; Ctrl-C works.
        """
    def close(self, timeout: float | None = 5.0) -> bool:
        """Stop the sink once it has taken every event that was emitted before this call, at most after `timeout` seconds.
        Events that it has not taken by then count as dropped. Returns True if it has taken everything. The other sinks
        go on.

        Blocks without the GIL. Ctrl-C ends the waiting, and the sink goes on closing. Closing again waits again, and
        returns the same. If the sink itself calls this, it does not wait, and returns False.
        """
    def __enter__(self) -> Self: ...
    def __exit__(self, *_error: object) -> None: ...

@final
class Run:
    """One run: its events, its readers, its token and its end. Made by :func:`open_run`; found by :func:`get_run`.

    Leaving a `with` block normally completes the run. An exception fails it, a cancellation cancels it, and both are
    re-raised. A run that has ended stays as it ended, and can still be read.

    Thread-safe, re-entrant: all methods may be called from any thread, at any time, also after the end. Two objects
    of one run are equal. In the child of a fork the methods raise :class:`ForeignProcess`.
    """
    @property
    def run_id(self) -> int | str:
        """The run's id: an int or a str."""
    @property
    def parent_run_id(self) -> int | str | None:
        """The id of the run that this run is a part of, or None."""
    @property
    def generation(self) -> int:
        """1 for the first run of this id, 2 for the next one, and so on, as far as earlier runs are remembered."""
    @property
    def state(self) -> RunState:
        """`pending`, `running`, `completed`, `failed` or `cancelled`. The last three are as in the terminal event."""
    @property
    def token(self) -> CancelToken:
        """The run's :class:`CancelToken`. Give it, or children of it, to the code that works for the run."""
    @property
    def cancel_requested_at(self) -> float | None:
        """When the run was asked to stop, in seconds since 1970; None if it was not."""
    @property
    def cancel_acknowledged_at(self) -> float | None:
        """When the run's code was first told to stop, in seconds since 1970; None if it was not."""
    @property
    def finished_at(self) -> float | None:
        """When the run ended, in seconds since 1970; None until then."""
    @property
    def last_event_id(self) -> str | None:
        """The id of the latest event, or None."""
    def start(self) -> bool:
        """Begin a run that was opened with `pending=True`: its first event is `lifecycle.started`.

        Returns True if the run is running now. Returns False if it has ended, or was asked to stop: then it never
        starts.
        """
    @overload
    def emit(
        self,
        category: BuiltInCategory | EventCategory,
        action: BuiltInAction | EventAction,
        data: Any = None,
        source: _Speaker | None = None,
    ) -> str | None:
        """Append an event to the run's log. Returns the event's id, or None if the run has ended: then the event is
        dropped, and counted.

        `category` and `action` are members of :class:`EventCategory` and :class:`EventAction`, or their values. A kind
        of your own is one dotted text in their place, and `data` comes next: `emit("billing.charged", {"cents": 5})`. A
        terminal kind, such as `lifecycle.completed`, ends the run as that kind says, whatever the run's token says;
        :meth:`complete` and :meth:`fail` look at the token.

        `source` is a :class:`CallerContext` or its dict, None for the run itself. `data` is written as JSON at once; a
        value that JSON has no form for becomes `str(value)`. A callback that is registered for the run is called after
        the log has the event.

        Blocks, without the GIL, only for a reader with `overflow="block"`. Raises ValueError for an unknown kind, and
        for data that contain themselves.
        """
    # A kind of the application's own, as in emit("billing.charged", {"cents": 3}). The data are a Mapping, so that a
    # misspelt action, which is a str, matches no overload.
    @overload
    def emit(
        self,
        category: str,
        action: Mapping[str, object] | None = None,
        /,
        *,
        source: _Speaker | None = None,
    ) -> str | None: ...
    @overload
    def emit(
        self, category: str, action: Mapping[str, object] | None, source: _Speaker | None, /
    ) -> str | None: ...
    @overload
    def emit(
        self,
        category: str,
        /,
        *,
        data: Mapping[str, object] | None = None,
        source: _Speaker | None = None,
    ) -> str | None: ...
    def handler(self, caller_context: _Speaker, *, verbose: bool = False) -> RunHandler:
        """Return an :class:`LLMCallbackHandler` that emits into this run, with `caller_context` as the source.

        The handler copies `caller_context` now; a later change does not show. It keeps no tokens. Besides text,
        reasoning and tool calls it reports `llm.completed` for each complete message of the model, and
        `llm.tool_result` for each result of a tool. Unlike the original's handler it also reports text that is only
        white space, so that the text is whole. Entries of a caller's `invocation_state` make no events, except for
        entries named `delta` or `current_tool_use`: these replace strands' arguments of the same names.

        The handler raises :class:`RunCancelled` once the run is cancelled, also after that end, so that the code that
        still works for the run stops. After any other end its events are dropped, and counted.
        """
    def subscribe(
        self,
        after: str | int | None = None,
        *,
        overflow: Overflow = "disconnect",
        patience: float | None = 1.0,
    ) -> Subscription:
        """Return a :class:`Subscription` to the run's events.

        `after` says where it begins: None with the next event, `"start"` with the oldest event that is held, an id
        (`"<ms>-<sequence>"`, as in SSE's `Last-Event-ID`) or a sequence number after that event. Held events are
        replayed, then the subscription is live: nothing is missed and nothing comes twice. If the log does not hold the
        event that comes next, a `stream.gap` event says so, and the oldest held event follows.

        `overflow` says what happens to a slow reader, when the log (10 000 events, 16 MiB) evicts events that it has
        not read. `"disconnect"`: reading raises :class:`SubscriberLagged`. `"gap"`: a `stream.gap` event comes, then
        the oldest held event. `"coalesce"`: consecutive text of one source that is read at once comes as one event;
        then as `"gap"`. `"block"`: the emitting thread waits, `patience` seconds at most; then as `"gap"`.
        """
    def cancel(self, reason: str = "", *, kind: CancelKind = "user") -> bool:
        """Ask this run, and all runs below it, to stop. Returns True if this call was the first to ask, and the run has
        not ended. See :func:`cancel_run`.
        """
    def annotate(self, **data: Any) -> bool:
        """Put the keywords into the data of the run's terminal event, however the run ends.

        For values that are known before the end, such as the tokens used so far. Of two keywords of one name the later
        stays; the fields of the end itself, such as `error` or `reason`, stay in any case. A terminal event of
        :meth:`emit` gets no annotations. Returns False, and counts the annotation as late, if the run ends or has
        ended. That is so in an `on_cancel` callback if the cancel ends a pending run, or comes from a shutdown. All
        annotations of a run hold at most 64 KiB of JSON. Thread-safe; does not block. Raises ValueError for data that
        contain themselves, or do not fit; then no keyword is added.
        """
    def complete(self, **data: Any) -> bool:
        """End the run as completed. The keywords are the data of its terminal event, `lifecycle.completed`. Returns True
        if this call ended the run.

        A run that was asked to stop ends as cancelled, with the same data beside the reason.
        """
    def fail(self, error: BaseException | str, details: str | None = None, **data: Any) -> bool:
        """End the run with an error. Its terminal event is `lifecycle.failed {error, details}`. Returns True if this call
        ended the run.

        `error` is an exception or a text. `details`, if left out, are the exception's class, or empty. A run that was
        asked to stop ends as cancelled instead.
        """
    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the run's end, at most `timeout` seconds. Returns True once the run has ended, False on timeout.

        Blocks without the GIL; Ctrl-C works.
        """
    def bind(self, function: _F) -> _F:
        """Return `function` wrapped so that this run is the current one while it runs. See :func:`bind`."""
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> Literal[False]: ...
    def __eq__(self, value: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@final
class RunHandler(LLMCallbackHandler):
    """A handler that is bound to one run. Made by :meth:`Run.handler`.

    Give it to a framework as its callback handler. Thread-safe, re-entrant. Its run and its `caller_context` cannot be
    changed, and copying it returns the handler itself.
    """
    def __copy__(self) -> Self: ...
    def __deepcopy__(self, _memo: Any) -> Self: ...

@final
class RunCallback:
    """The callback of one run. Called with an event `{"source", "event", "data"}`, it appends the event to the run's log,
    then calls the callback that is registered for the run.
    """
    def __call__(self, event: CallbackEvent | dict[str, Any]) -> None: ...
    def __eq__(self, value: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@final
class RunChecker:
    """The checker of one run. Called, it returns whether the run is cancelled: by its token, or by the registered checker."""
    def __call__(self, *args: Never, **kwargs: Never) -> bool: ...
    def __eq__(self, value: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@final
class Subscription:
    """A reader of one run's events. Made by :meth:`Run.subscribe`.

    Iterating it, with `for` or `async for`, gives the events as dicts, in order, up to the terminal event: `{"id",
    "run_id", "timestamp", "sequence", "source", "event", "data"}`. Each event is read once: :meth:`read` and
    :meth:`sse` go on where the iteration stopped.

    One thread or coroutine reads at a time; a second one gets :class:`ReaderBusy`. Any thread may call :meth:`close` at
    any time. A subscription that is dropped, closed or cancelled leaves nothing behind. Threads wait without the GIL,
    and Ctrl-C works; for a coroutine no thread waits. Reading raises :class:`SubscriberLagged` if the reader was too
    slow and its `overflow` is `"disconnect"`.
    """
    @property
    def ended(self) -> bool:
        """Whether no more events will come: the terminal event was read, or the subscription is closed."""
    @property
    def lost(self) -> int:
        """How many events this reader was told to have missed, by `stream.gap` events."""
    def read(self, max: int = 1000, timeout: float | None = None) -> list[Event]:
        """Return the next events, at most `max`, as a list of dicts. If there is none, wait for one, `timeout` seconds at
        most; without a timeout, until there is an event or the end.

        The list is empty on timeout and after the end: see :attr:`ended`.
        """
    def aread(self, max: int = 1000, timeout: float | None = None) -> Awaitable[list[Event]]:
        """As :meth:`read`, for coroutines: no thread waits. Cancelling the coroutine loses no event."""
    def sse(self, heartbeat: float | None = 15.0, *, retry: int | None = None) -> SseStream:
        """Return an iterator, for `for` and `async for`, over the bytes that SSE sends. Each item has as many whole frames
        as are there, up to about 64 KiB; a larger frame is sent whole.

        If no event comes for `heartbeat` seconds, the item is a comment, which keeps the connection open and reveals
        clients that are gone; with None there are no comments. If `retry` is given, the first line tells the client
        after how many milliseconds to connect again. The iteration ends after the run's last event. The iterator's
        `close` closes the subscription. The format is that of the WHATWG's HTML standard, section 9.2. Raises TypeError
        or ValueError for invalid arguments.
        """
    def close(self) -> None:
        """Stop reading. A read that waits ends, also in another thread or coroutine, and emitting threads no longer wait
        for this reader.

        Thread-safe; closing again does nothing. Events that were read from the log and not returned yet are dropped.
        """
    def __iter__(self) -> Self: ...
    def __next__(self) -> Event: ...
    def __aiter__(self) -> Self: ...
    def __anext__(self) -> Awaitable[Event]: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_error: object) -> None: ...
    @property
    def _has_ready(self) -> bool:
        """Whether the next event was read from the log already."""
    def _next_now(self) -> Event | None:
        """The next event, None if there is none yet. Raises StopAsyncIteration at the end."""
    def _wake_when_readable(self, wake: Callable[[], object]) -> bool:
        """Calls `wake`, from any thread, when there is something to read. Returns False, and does not call it, if there is
        something now.
        """
    def _forget_wake(self) -> None:
        """Drops the wake that `_wake_when_readable` has stored."""

@final
class SseStream:
    """The bytes that SSE sends. Made by :meth:`Subscription.sse`."""
    def close(self) -> None:
        """Close the subscription. Thread-safe; closing again does nothing."""
    def aclose(self) -> Awaitable[None]:
        """As :meth:`close`, for `contextlib.aclosing`."""
    def __iter__(self) -> Self: ...
    def __next__(self) -> bytes: ...
    def __aiter__(self) -> Self: ...
    def __anext__(self) -> Awaitable[bytes]: ...
    def _next_now(self) -> bytes | None:
        """Return the bytes to send next, None if there are none yet. Raises StopAsyncIteration at the end."""

@final
class CancelRegistration:
    """What :meth:`CancelToken.on_cancel` returns. Dropping it does not stop the callback."""
    def stop(self) -> bool:
        """Take the callback back. Returns True if this call did so: then the callback was not called, and never will be.
        Thread-safe; does not wait for a call that has begun.
        """

@disjoint_base
class _Token:
    """What :class:`CancelToken` does in Rust."""
    def __new__(cls, deadline: float | None = None) -> Self: ...
    def __init__(self, deadline: float | None = None) -> None: ...
    def is_set(self) -> bool:
        """Return whether the token is cancelled. Once True, always True. Does not block."""
    def isSet(self) -> bool:
        """As :meth:`is_set`, which `threading.Event` has under this name too."""
    def set(self) -> None:
        """As :meth:`cancel` without a reason: for code that expects a `threading.Event`."""
    def clear(self) -> None:
        """Raise RuntimeError: a cancel cannot be taken back."""
    def wait(self, timeout: float | None = None) -> bool:
        """Block until the token is cancelled, at most `timeout` seconds. Returns whether it is cancelled. Blocks without
        the GIL; Ctrl-C works.
        """
    def cancel(self, reason: str = "", *, kind: CancelKind = "user") -> bool:
        """Cancel this token and all tokens below it. Returns True if this call was the first to cancel this token; the
        first reason stays.

        `kind` is `user`, `deadline`, `parent`, `shutdown` or `disconnect`. First all tokens are cancelled, and the
        threads that wait for one are woken. Then the `on_cancel` callbacks are called, on this thread, with no lock
        held. An exception of a callback goes to `sys.unraisablehook`, and the other callbacks are called; a Ctrl-C is
        raised after them. Thread-safe, re-entrant.
        """
    def on_cancel(self, callback: Callable[[], object]) -> CancelRegistration:
        """Call `callback()` once, when the token is cancelled; now, on this thread, if it is cancelled already.

        The callback is called with no lock held on the thread that cancels. After a deadline that is a thread which
        calls the callbacks of all deadlines, one after another; if a callback takes longer than a second, another
        thread calls those of the other deadlines. The callback may do anything: ask, cancel, register, subscribe,
        raise.

        Returns a :class:`CancelRegistration`. Its `stop` takes the callback back; dropping the registration does not.
        The token keeps the callback until it is called or stopped, or the run has ended.
        """
    def _wake_on_cancel(self, wake: Callable[[], object]) -> CancelRegistration:
        """As `on_cancel`, for a waiting coroutine: `wake` is also called if the token drops it uncalled, for example at
        the end of the token's run.
        """
    def child(self, deadline: float | None = None) -> CancelToken:
        """Return a token below this one: it is cancelled when this token is, and at its own `deadline`, in seconds from
        now.
        """
    def shield(self) -> CancelToken:
        """Return a token that no cancel and no deadline of this token reaches: for work that must be done after a cancel."""
    @property
    def kind(self) -> CancelKind | None:
        """Who cancelled the token: `user`, `deadline`, `parent`, `shutdown` or `disconnect`; None if it is not cancelled."""
    @property
    def reason(self) -> str | None:
        """The message of the cancel, which may be empty; None if the token is not cancelled."""
    @property
    def remaining(self) -> float | None:
        """How many seconds are left until the token's deadline, at least 0; None without a deadline."""
    def _at_fork_reinit(self) -> None:
        """`threading.Event` has one; nothing here needs it."""
    def __eq__(self, value: object, /) -> bool: ...
    def __hash__(self) -> int: ...

def _set_flush(flush: Callable[[int | str, int], None]) -> None: ...
def _set_token_class(token_class: type[ThreadingEvent]) -> None:
    """Set the Python class of tokens."""

def _write_unraisable(error: BaseException, thing: object) -> None:
    """Pass `error`, which `thing` has raised, to `sys.unraisablehook`. Python code cannot make the argument of that hook."""
