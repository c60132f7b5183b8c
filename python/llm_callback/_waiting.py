"""The waits of coroutines. Each wait is a future, which the thread that appends an event wakes; no thread waits.

Rust calls these functions for ``async for`` and ``aread``; ``CancelToken`` calls them for ``await``. asyncio is
imported when a coroutine runs, so that processes without coroutines do not pay for it.
"""

from __future__ import annotations

from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import Future, TimerHandle
    from collections.abc import Callable

    from llm_callback._core import SseStream, Subscription
    from llm_callback.cancel import CancelToken
    from llm_callback.events import Event


async def next_event(subscription: Subscription) -> Event:
    """Return the next event. Raises StopAsyncIteration after the last."""
    if not subscription._has_ready:  # noqa: SLF001
        await _turn()
    while (event := subscription._next_now()) is None:  # noqa: SLF001
        await _readable(subscription, None)
    return event


async def next_chunk(
    stream: SseStream, subscription: Subscription, timeout: float | None, heartbeat: bytes
) -> bytes:
    """Return what SSE sends next: ``heartbeat`` if nothing comes for ``timeout`` seconds."""
    await _turn()
    while (chunk := stream._next_now()) is None:  # noqa: SLF001
        if not await _readable(subscription, timeout):
            return heartbeat
    return chunk


async def read(subscription: Subscription, maximum: int, timeout: float | None) -> list[Event]:
    """Return the events that are there. If there are none, wait for the first one, at most ``timeout`` seconds."""
    await _turn()
    while True:
        events = subscription.read(maximum, 0)
        if events or subscription.ended or not await _readable(subscription, timeout):
            return events


async def close(stream: SseStream) -> None:
    """Close the stream. Closing does not wait."""
    stream.close()


async def until_cancelled(token: CancelToken) -> None:
    """Wait until ``token`` is cancelled."""
    # A loop, since the end of the token's run also wakes this coroutine, and the token may be cancelled later.
    while not token.is_set():
        future, wake = _alarm()
        registration = token._wake_on_cancel(wake)  # noqa: SLF001
        try:
            await future
        finally:
            registration.stop()


async def _turn() -> None:
    """Let the loop's other tasks run: a reader that always finds an event would keep them waiting."""
    from asyncio import sleep  # noqa: PLC0415

    await sleep(0)


async def _readable(subscription: Subscription, timeout: float | None) -> bool:
    """Wait until there is an event or the end, at most ``timeout`` seconds. Returns False on timeout."""
    future, wake = _alarm()
    if not subscription._wake_when_readable(wake):  # noqa: SLF001
        return True
    late: TimerHandle | None = None
    try:
        if timeout is not None:
            late = future.get_loop().call_later(timeout, _settle, future, False)  # noqa: FBT003
        return await future
    finally:
        subscription._forget_wake()  # noqa: SLF001
        if late is not None:
            late.cancel()


def _alarm() -> tuple[Future[bool], Callable[[], None]]:
    """Return a future of the running loop, and a function that sets its result to True from any thread."""
    from asyncio import get_running_loop  # noqa: PLC0415

    loop = get_running_loop()
    future: Future[bool] = loop.create_future()
    return future, partial(_wake, future)


def _wake(future: Future[bool]) -> None:
    try:
        future.get_loop().call_soon_threadsafe(_settle, future, True)  # noqa: FBT003
    except RecursionError:
        # The stack of the calling thread has no room left. The caller tries again on another thread.
        raise
    except RuntimeError:
        # On a closed loop no coroutine waits.
        pass


def _settle(future: Future[bool], result: bool) -> None:  # noqa: FBT001
    if not future.done():
        future.set_result(result)
