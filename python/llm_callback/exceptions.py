"""The exceptions that this package raises on its own account."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable


class RunCancelled(InterruptedError):
    """The run that the calling code works for was cancelled.

    Raised by handlers and by :func:`check_cancellation`. ``run_id`` is the run, as the handler or the current
    context knows it. Hosts of the original module catch ``InterruptedError`` and log ``type(error).__name__``:
    both go on working, since the class also keeps that name; tracebacks and pickles use its own.
    """

    run_id: Hashable

    def __init__(self, run_id: Hashable = None) -> None:
        super().__init__("Run was cancelled")
        self.run_id = run_id

    def __reduce__(self) -> tuple[type[RunCancelled], tuple[Hashable]]:
        """Pickle by run id: an OSError would be rebuilt from its message."""
        return type(self), (self.run_id,)


RunCancelled.__name__ = "InterruptedError"
