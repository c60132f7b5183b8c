"""Closes the bodies of clients that do not read. A server's thread that is blocked in sending cannot do so itself.

While bodies are being sent, the core's timer looks at all of them once a second: no thread waits for that. There is no
lock: each step is one operation on a dict or one assignment, and any order of the steps of two threads is right.
"""

from __future__ import annotations

import os
from time import monotonic
from typing import TYPE_CHECKING
from weakref import ref

from llm_callback.cancel import CancelToken

if TYPE_CHECKING:
    from llm_callback.web._sse import SseBody

_PERIOD = 1.0

# The bodies that are being sent, by their `id`, until they are closed or dropped.
_bodies: dict[int, ref[SseBody]] = {}
# The token whose deadline calls `_look` next. Dropping a token disarms its deadline.
_alarm: CancelToken | None = None


def watch(body: SseBody) -> None:
    """Close the body once it is stuck."""
    bodies, key = _bodies, id(body)
    bodies[key] = ref(body, lambda _: bodies.pop(key, None))
    _set_alarm()


def forget(body: SseBody) -> None:
    """Stop watching the body. Calling this again does nothing."""
    _bodies.pop(id(body), None)


def _set_alarm() -> None:
    global _alarm  # noqa: PLW0603 - of the process
    if _alarm is None:
        _alarm = alarm = CancelToken(_PERIOD)
        # After the assignment: if this thread was held up for the whole period, `_look` is called here and sets the
        # next alarm, which this one must not replace.
        alarm.on_cancel(_look)


def _look() -> None:
    global _alarm  # noqa: PLW0603 - of the process
    # First of all: a body that is added from here on sets the next alarm, and one that was added before is seen below.
    _alarm = None
    now = monotonic()
    for reference in list(_bodies.values()):
        body = reference()
        if body is not None and body._is_stuck(now):  # noqa: SLF001
            body.close()
    if _bodies:
        _set_alarm()


def _forget_the_parents() -> None:
    """Forget the parent's streams and its alarm, in the child of a fork: the parent's timer does not run here."""
    global _bodies, _alarm
    _bodies, _alarm = {}, None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_parents)
