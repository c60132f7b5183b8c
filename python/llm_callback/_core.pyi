from collections.abc import Callable, Hashable
from typing import Any, Literal, TypeAlias, TypedDict, type_check_only

from typing_extensions import Never, disjoint_base

from llm_callback.caller import CallerContext
from llm_callback.enums import EventAction, EventCategory

__all__ = [
    "LLMCallbackHandler",
    "_callbacks",
    "_checkers",
    "check_cancellation",
    "clear_current_run_id",
    "configure",
    "create_callback_handler",
    "get_cancellation_checker",
    "get_current_run_id",
    "get_event_callback",
    "get_global_cancellation_checker",
    "get_global_event_callback",
    "register_cancellation_checker",
    "register_event_callback",
    "set_current_run_id",
    "set_global_cancellation_checker",
    "set_global_event_callback",
    "stats",
]

_Event: TypeAlias = dict[str, dict[str, Any]]
_EventCallback: TypeAlias = Callable[[_Event], object]
_CancellationChecker: TypeAlias = Callable[[], object]

@type_check_only
class _Dropped(TypedDict):
    no_callback: int
    route: int

@type_check_only
class _Stats(TypedDict):
    emitted: int
    dropped: _Dropped
    cancelled: int
    callbacks: int
    checkers: int

def register_event_callback(run_id: Hashable, callback: _EventCallback | None) -> None: ...
def get_event_callback(run_id: Hashable) -> _EventCallback | None: ...
def register_cancellation_checker(
    run_id: Hashable, checker: _CancellationChecker | None
) -> None: ...
def get_cancellation_checker(run_id: Hashable) -> _CancellationChecker | None: ...
def set_current_run_id(run_id: Hashable) -> None: ...
def get_current_run_id() -> Any: ...
def clear_current_run_id() -> None: ...
def set_global_event_callback(callback: _EventCallback | None) -> None: ...
def get_global_event_callback() -> _EventCallback | None: ...
def set_global_cancellation_checker(checker: _CancellationChecker | None) -> None: ...
def get_global_cancellation_checker() -> _CancellationChecker | None: ...
def check_cancellation() -> None: ...
def configure(*, route: Literal["handler", "context", "strict"]) -> None: ...
def stats() -> _Stats: ...
def _callbacks() -> dict[Any, _EventCallback]: ...
def _checkers() -> dict[Any, _CancellationChecker]: ...

@disjoint_base
class LLMCallbackHandler:
    caller_context: CallerContext
    event_callback: _EventCallback | None
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
        callback: _EventCallback,
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
