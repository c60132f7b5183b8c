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

def register_event_callback(run_id: Hashable, callback: _EventCallback | None) -> None: ...
def get_event_callback(run_id: Hashable) -> _GivenCallback | None: ...
def register_cancellation_checker(
    run_id: Hashable, checker: _CancellationChecker | None
) -> None: ...
def get_cancellation_checker(run_id: Hashable) -> _CancellationChecker | None: ...
def set_current_run_id(run_id: Hashable) -> None: ...
def get_current_run_id() -> Any: ...
def clear_current_run_id() -> None: ...
def set_global_event_callback(callback: _EventCallback | None) -> None: ...
def get_global_event_callback() -> _GivenCallback | None: ...
def set_global_cancellation_checker(checker: _CancellationChecker | None) -> None: ...
def get_global_cancellation_checker() -> _CancellationChecker | None: ...
def check_cancellation() -> None: ...
def configure(
    *,
    route: Literal["handler", "context", "strict"] = "handler",
    log_events: int = 10000,
    log_bytes: int = 16777216,
    keep_seconds: float = 300.0,
    keep_runs: int = 1000,
    keep_bytes: int = 268435456,
    max_live: int | None = None,
) -> None: ...
def stats() -> _Stats: ...
def _callbacks() -> dict[Any, _GivenCallback]: ...
def _checkers() -> dict[Any, _CancellationChecker]: ...

@disjoint_base
class LLMCallbackHandler:
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
    ) -> None: ...

def create_callback_handler(
    caller_context: CallerContext,
    event_callback: _EventCallback | None = None,
    verbose: bool = False,
    run_id: Hashable = None,
) -> LLMCallbackHandler: ...
def open_run(
    run_id: int | str | UUID | None = None,
    /,
    *,
    parent: Run | int | str | UUID | None = None,
    detached: bool = False,
    deadline: float | None = None,
    pending: bool = False,
    **data: Any,
) -> Run: ...
def get_run(run_id: int | str | UUID, /) -> Run | None: ...
def active_runs() -> list[Run]: ...
def cancel_run(
    run_id: int | str | UUID | Run, /, reason: str = "", *, kind: CancelKind = "user"
) -> bool: ...
def shutdown(reason: str, timeout: float | None) -> bool: ...
def log_to_file(
    path: str | PathLike[str],
    /,
    *,
    max_bytes: int = 268435456,
    fsync: bool = False,
    hold_bytes: int = 67108864,
    hold_seconds: float | None = 300.0,
) -> SinkHandle: ...
def add_sink(
    function: _SinkFunction,
    /,
    *,
    name: str | None = None,
    hold_bytes: int = 67108864,
    hold_seconds: float | None = 300.0,
) -> SinkHandle: ...
def flush(timeout: float | None = 5.0) -> bool: ...

@final
class SinkHandle:
    @property
    def name(self) -> str: ...
    def stats(self) -> _SinkStats: ...
    def flush(self, timeout: float | None = 5.0) -> bool: ...
    def close(self, timeout: float | None = 5.0) -> bool: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_error: object) -> None: ...

@final
class Run:
    @property
    def run_id(self) -> int | str: ...
    @property
    def parent_run_id(self) -> int | str | None: ...
    @property
    def generation(self) -> int: ...
    @property
    def state(self) -> RunState: ...
    @property
    def token(self) -> CancelToken: ...
    @property
    def cancel_requested_at(self) -> float | None: ...
    @property
    def cancel_acknowledged_at(self) -> float | None: ...
    @property
    def finished_at(self) -> float | None: ...
    @property
    def last_event_id(self) -> str | None: ...
    def start(self) -> bool: ...
    @overload
    def emit(
        self,
        category: BuiltInCategory | EventCategory,
        action: BuiltInAction | EventAction,
        data: Any = None,
        source: _Speaker | None = None,
    ) -> str | None: ...
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
    def handler(self, caller_context: _Speaker, *, verbose: bool = False) -> RunHandler: ...
    def subscribe(
        self,
        after: str | int | None = None,
        *,
        overflow: Overflow = "disconnect",
        patience: float | None = 1.0,
    ) -> Subscription: ...
    def cancel(self, reason: str = "", *, kind: CancelKind = "user") -> bool: ...
    def annotate(self, **data: Any) -> bool: ...
    def complete(self, **data: Any) -> bool: ...
    def fail(self, error: BaseException | str, details: str | None = None, **data: Any) -> bool: ...
    def wait(self, timeout: float | None = None) -> bool: ...
    def bind(self, function: _F) -> _F: ...
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
    def __copy__(self) -> Self: ...
    def __deepcopy__(self, _memo: Any) -> Self: ...

@final
class RunCallback:
    def __call__(self, event: CallbackEvent | dict[str, Any]) -> None: ...
    def __eq__(self, value: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@final
class RunChecker:
    def __call__(self, *args: Never, **kwargs: Never) -> bool: ...
    def __eq__(self, value: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@final
class Subscription:
    @property
    def ended(self) -> bool: ...
    @property
    def lost(self) -> int: ...
    def read(self, max: int = 1000, timeout: float | None = None) -> list[Event]: ...
    def aread(self, max: int = 1000, timeout: float | None = None) -> Awaitable[list[Event]]: ...
    def sse(self, heartbeat: float | None = 15.0, *, retry: int | None = None) -> SseStream: ...
    def close(self) -> None: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> Event: ...
    def __aiter__(self) -> Self: ...
    def __anext__(self) -> Awaitable[Event]: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_error: object) -> None: ...
    @property
    def _has_ready(self) -> bool: ...
    def _next_now(self) -> Event | None: ...
    def _wake_when_readable(self, wake: Callable[[], object]) -> bool: ...
    def _forget_wake(self) -> None: ...

@final
class SseStream:
    def close(self) -> None: ...
    def aclose(self) -> Awaitable[None]: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> bytes: ...
    def __aiter__(self) -> Self: ...
    def __anext__(self) -> Awaitable[bytes]: ...
    def _next_now(self) -> bytes | None: ...

@final
class CancelRegistration:
    def stop(self) -> bool: ...

@disjoint_base
class _Token:
    def __new__(cls, deadline: float | None = None) -> Self: ...
    def __init__(self, deadline: float | None = None) -> None: ...
    def is_set(self) -> bool: ...
    def isSet(self) -> bool: ...
    def set(self) -> None: ...
    def clear(self) -> None: ...
    def wait(self, timeout: float | None = None) -> bool: ...
    def cancel(self, reason: str = "", *, kind: CancelKind = "user") -> bool: ...
    def on_cancel(self, callback: Callable[[], object]) -> CancelRegistration: ...
    def _wake_on_cancel(self, wake: Callable[[], object]) -> CancelRegistration: ...
    def child(self, deadline: float | None = None) -> CancelToken: ...
    def shield(self) -> CancelToken: ...
    @property
    def kind(self) -> CancelKind | None: ...
    @property
    def reason(self) -> str | None: ...
    @property
    def remaining(self) -> float | None: ...
    def _at_fork_reinit(self) -> None: ...
    def __eq__(self, value: object, /) -> bool: ...
    def __hash__(self) -> int: ...

def _set_flush(flush: Callable[[int | str, int], None]) -> None: ...
def _set_token_class(token_class: type[ThreadingEvent]) -> None: ...
def _write_unraisable(error: BaseException, thing: object) -> None: ...
