"""Many LLM-agent runs in one process: every event, and every cancel, reaches its own run and no other."""

from llm_callback import _lazy
from llm_callback._core import (
    CancelRegistration,
    LLMCallbackHandler,
    Run,
    SinkHandle,
    SseStream,
    Subscription,
    active_runs,
    add_sink,
    cancel_run,
    check_cancellation,
    clear_current_run_id,
    configure,
    create_callback_handler,
    flush,
    get_cancellation_checker,
    get_current_run_id,
    get_event_callback,
    get_global_cancellation_checker,
    get_global_event_callback,
    get_run,
    log_to_file,
    open_run,
    register_cancellation_checker,
    register_event_callback,
    set_current_run_id,
    set_global_cancellation_checker,
    set_global_event_callback,
    stats,
)
from llm_callback._shutdown import shutdown, shutdown_on_signal, shutdown_on_sigterm
from llm_callback._views import (
    _callback_registry as _callback_registry,
    _checker_registry as _checker_registry,
    _current_run_id as _current_run_id,
)
from llm_callback.cancel import CancelToken
from llm_callback.capture import OutputCapture, capture_output
from llm_callback.context import bind
from llm_callback.events import AgentType, CallerContext, EventAction, EventCategory
from llm_callback.exceptions import (
    ForeignProcess,
    LlmCallbackError,
    ParentNotLive,
    ReaderBusy,
    RunCancelled,
    RunEnded,
    RunExists,
    RunQueueFull,
    ShutDown,
    SubscriberLagged,
    ThreadRefused,
    TooManyRuns,
)
from llm_callback.manager import RunManager

# What brings more of the standard library along than the rest is imported at its first use.
_lazy.import_at_first_use(
    globals(),
    {
        "_version": ["__version__"],
        "bound_executor": ["BoundExecutor"],
        "events": [
            "CallbackEvent",
            "CancelKind",
            "Event",
            "EventWord",
            "Overflow",
            "RunState",
            "Source",
        ],
    },
)
# Not a name of this module, which has public names only.
if _lazy.TYPE_CHECKING:
    from llm_callback._version import __version__ as __version__
    from llm_callback.bound_executor import BoundExecutor
    from llm_callback.events import (
        CallbackEvent,
        CancelKind,
        Event as Event,
        EventWord as EventWord,
        Overflow as Overflow,
        RunState as RunState,
        Source as Source,
    )

# Without the types Event, EventWord, Overflow, RunState and Source: `from llm_callback import *` in a host of the
# original module would hide its `threading.Event`.
__all__ = [
    "AgentType",
    "BoundExecutor",
    "CallbackEvent",
    "CallerContext",
    "CancelKind",
    "CancelRegistration",
    "CancelToken",
    "EventAction",
    "EventCategory",
    "ForeignProcess",
    "LLMCallbackHandler",
    "LlmCallbackError",
    "OutputCapture",
    "ParentNotLive",
    "ReaderBusy",
    "Run",
    "RunCancelled",
    "RunEnded",
    "RunExists",
    "RunManager",
    "RunQueueFull",
    "ShutDown",
    "SinkHandle",
    "SseStream",
    "SubscriberLagged",
    "Subscription",
    "ThreadRefused",
    "TooManyRuns",
    "active_runs",
    "add_sink",
    "bind",
    "cancel_run",
    "capture_output",
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
    "shutdown_on_signal",
    "shutdown_on_sigterm",
    "stats",
]
