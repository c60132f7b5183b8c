"""The exceptions that this package raises on its own account; an extra's are beside what raises them.

All but :class:`RunCancelled` are below :class:`LlmCallbackError`, and each is also the built-in error that it extends.
``except LlmCallbackError`` so does not take a cancellation for a failure.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable

    from llm_callback.events import CancelKind


class RunCancelled(InterruptedError):
    """The run that the calling code works for was cancelled.

    Raised by handlers and by :func:`check_cancellation`. ``run_id`` is the run, as the handler or the current
    context knows it; ``kind`` and ``reason`` say who stopped it and why, as its token does, and are None where a
    registered checker did. Hosts of the original module catch ``InterruptedError`` and log ``type(error).__name__``:
    both go on working, since the class also keeps that name; tracebacks and pickles use its own.
    """

    run_id: Hashable
    kind: CancelKind | None
    reason: str | None

    def __init__(
        self, run_id: Hashable = None, kind: CancelKind | None = None, reason: str | None = None
    ) -> None:
        super().__init__("Run was cancelled")
        self.run_id = run_id
        self.kind = kind
        self.reason = reason

    def __reduce__(
        self,
    ) -> tuple[type[RunCancelled], tuple[Hashable, CancelKind | None, str | None]]:
        """Pickle by its fields: an OSError would be rebuilt from its message."""
        return type(self), (self.run_id, self.kind, self.reason)


RunCancelled.__name__ = "InterruptedError"


class LlmCallbackError(Exception):
    """The base of the errors that this package raises on its own account."""


class RunExists(LlmCallbackError, RuntimeError):
    """A run of this id is live: another one can be opened once it has ended. A host may answer 409."""


class ParentNotLive(LlmCallbackError, RuntimeError):
    """The parent of the run that was to be opened is not live. A host may answer 409."""


class TooManyRuns(LlmCallbackError, RuntimeError):
    """As many runs are live as ``configure(max_live=…)`` allows. A host may answer 429."""


class RunQueueFull(LlmCallbackError, RuntimeError):
    """As many runs wait for their turn as the manager's ``max_queued`` allows. A host may answer 429."""


class ShutDown(LlmCallbackError, RuntimeError):
    """The runs of this process or of a manager were shut down: none is opened any more. A host may answer 503."""


class ThreadRefused(LlmCallbackError, RuntimeError):
    """The system refuses a thread that is needed. A host may answer 503."""


class RunEnded(LlmCallbackError, RuntimeError):
    """The run has ended, and cannot be entered again."""


class ReaderBusy(LlmCallbackError, RuntimeError):
    """Another thread or coroutine is reading the subscription: give each reader one of its own."""


class ForeignProcess(LlmCallbackError, RuntimeError):
    """The object belongs to the process that this one was forked from: make another one here."""


class SubscriberLagged(LlmCallbackError, RuntimeError):
    """A reader with ``overflow="disconnect"`` was too slow: the run's log evicted events that it had not read.

    ``next`` is the sequence number that the reader would have read next, ``oldest`` the oldest that the log holds. A
    reader that resumes after the id of its last event loses nothing that the log still holds, and is told what is lost.
    """

    next: int
    oldest: int

    def __init__(self, next: int, oldest: int) -> None:  # noqa: A002
        super().__init__(
            f"the reader is too slow: it was to read event {next}, the log begins with event {oldest}"
        )
        self.next = next
        self.oldest = oldest

    def __reduce__(self) -> tuple[type[SubscriberLagged], tuple[int, int]]:
        """Pickle by its fields."""
        return type(self), (self.next, self.oldest)
