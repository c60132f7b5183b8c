"""The exceptions that this package raises on its own account."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable


class RunCancelled(InterruptedError):
    """The run that the calling code works for was cancelled.

    Raised by handlers and by :func:`check_cancellation`. ``run_id`` is the run, as the handler or the current
    context knows it; ``kind`` and ``reason`` say who stopped it and why, as its token does, and are None where a
    registered checker did. Hosts of the original module catch ``InterruptedError`` and log ``type(error).__name__``:
    both go on working, since the class also keeps that name; tracebacks and pickles use its own.
    """

    run_id: Hashable
    kind: str | None
    reason: str | None

    def __init__(
        self, run_id: Hashable = None, kind: str | None = None, reason: str | None = None
    ) -> None:
        super().__init__("Run was cancelled")
        self.run_id = run_id
        self.kind = kind
        self.reason = reason

    def __reduce__(self) -> tuple[type[RunCancelled], tuple[Hashable, str | None, str | None]]:
        """Pickle by its fields: an OSError would be rebuilt from its message."""
        return type(self), (self.run_id, self.kind, self.reason)


RunCancelled.__name__ = "InterruptedError"


class SubscriberLagged(RuntimeError):
    """A reader was too slow: its run's log let go of what it had not read, and its ``overflow`` is ``"disconnect"``.

    ``next`` is the sequence number that it would have read next, ``oldest`` the oldest that the log holds. Resuming
    after the id of the last event that was read loses nothing that the log still holds, and tells what is lost.
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
