"""Cancellation as a tree: a token stops its own work and all work below it, never what is above it."""

from __future__ import annotations

import threading

from llm_callback._core import _set_token_class, _Token
from llm_callback._waiting import until_cancelled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any


class CancelToken(_Token, threading.Event):
    """Tells work to stop.

    ``CancelToken(deadline=None)`` is the top of a tree of its own, and is cancelled after ``deadline`` seconds.
    ``run.token`` is the token of a run. A token is a ``threading.Event`` for code that takes one, such as strands'
    ``cancel_signal``: ``is_set``, ``wait`` and ``set`` do what they do there. ``clear`` raises RuntimeError, since a
    cancel cannot be taken back. A subclass with arguments of its own takes them in ``__new__``.

    Thread-safe, re-entrant. ``await token`` waits for the cancel in a coroutine; no thread waits.
    """

    __slots__ = ()

    async def cancelled(self) -> None:
        """Wait, in a coroutine, until the token is cancelled. Cancelling the wait leaves nothing behind."""
        await until_cancelled(self)

    def __await__(self) -> Generator[Any, None, None]:
        """Wait as ``cancelled`` does."""
        return self.cancelled().__await__()


_set_token_class(CancelToken)
