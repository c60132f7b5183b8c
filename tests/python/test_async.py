"""Coroutines: readers and waits that block no loop, start no thread, and leave nothing when they are cancelled."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from llm_callback import CancelToken, SubscriberLagged, open_run
from readers import being_read, events_of, kind, kinds, numbers, overrun_by_size, parse, say
from support import DEADLINE, Running, printed, together

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from llm_callback import Run, SseStream, Subscription


def run_loop(main: Coroutine[Any, Any, Any]) -> Any:
    """Return what ``main`` does on a loop of its own; fail if it does not come to an end."""

    async def limited() -> Any:
        return await asyncio.wait_for(main, DEADLINE)

    # asyncio's own checks find what touches the loop from another thread.
    return asyncio.run(limited(), debug=True)


async def until_waiting(task: asyncio.Task[Any]) -> None:
    """Let ``task`` run until it waits for a future, or has ended."""
    for _ in range(10):
        await asyncio.sleep(0)
    assert not task.done()


async def events_from(subscription: Subscription) -> list[dict[str, Any]]:
    """Read with `async for`."""
    return [event async for event in subscription]


async def frames_from(subscription: Subscription) -> list[dict[str, Any]]:
    """Read with `async for` what SSE sends."""
    return events_of(b"".join([chunk async for chunk in subscription.sse(heartbeat=None)]))


async def batches_from(subscription: Subscription) -> list[dict[str, Any]]:
    """Read with `aread`."""
    events = []
    while not subscription.ended:
        events += await subscription.aread(50, timeout=DEADLINE)
    return events


READERS: dict[str, Callable[[Subscription], Coroutine[Any, Any, list[dict[str, Any]]]]] = {
    "events": events_from,
    "frames": frames_from,
    "batches": batches_from,
}


@pytest.fixture(params=READERS.values(), ids=READERS.keys())
def read(request: pytest.FixtureRequest) -> Callable[[Subscription], Awaitable[Any]]:
    """Read to the end, in one of three ways."""
    return request.param


def emit_to_the_end(run: Run, number: int = 1_000) -> None:
    """Emit tokens, and end the run."""
    for _ in range(number):
        say(run)
    run.complete()


# --- Reading ---


def test_a_coroutine_reads_all(read: Callable[[Subscription], Awaitable[Any]]) -> None:
    """A coroutine that reads while a thread emits gets every event, once and in order, to the last."""
    run = open_run()

    async def main() -> list[dict[str, Any]]:
        reader = asyncio.ensure_future(read(run.subscribe("start")))
        await asyncio.sleep(0)
        await asyncio.to_thread(emit_to_the_end, run)
        return await reader

    events = run_loop(main())
    assert numbers(events) == list(range(1, 1_003))
    assert kind(events[-1]) == "lifecycle.completed"


def test_a_finished_run_is_read_at_once(read: Callable[[Subscription], Awaitable[Any]]) -> None:
    """A coroutine that comes after the end reads to the end, and does not wait."""
    run = open_run()
    emit_to_the_end(run, 10)

    async def main() -> None:
        assert numbers(await read(run.subscribe("start"))) == list(range(1, 13))
        assert await read(run.subscribe(run.last_event_id)) == []

    run_loop(main())


def test_many_readers_in_one_loop() -> None:
    """A hundred readers of one run in one loop, of all three kinds, get all of its events each."""
    run = open_run()

    async def main() -> list[list[dict[str, Any]]]:
        ways = [*READERS.values()] * 34
        subscriptions = [run.subscribe("start") for _ in range(100)]
        reading = [way(one) for way, one in zip(ways, subscriptions, strict=False)]
        emitting = asyncio.to_thread(emit_to_the_end, run, 200)
        return (await asyncio.gather(*reading, emitting))[:-1]

    results = run_loop(main())
    assert len(results) == 100
    assert all(numbers(events) == list(range(1, 203)) for events in results)


def test_readers_in_loops_of_their_own_threads() -> None:
    """Loops in several threads read several runs at once; each gets its own runs' events, whoever emits."""
    runs = [open_run() for _ in range(3)]

    async def main() -> list[list[dict[str, Any]]]:
        return await asyncio.gather(*(events_from(run.subscribe("start")) for run in runs))

    loops = [lambda: run_loop(main())] * 3
    *results, _, _, _ = together([*loops, *(lambda run=run: emit_to_the_end(run) for run in runs)])
    for result in results:
        for run, events in zip(runs, result, strict=True):
            assert numbers(events) == list(range(1, 1_003))
            assert {event["run_id"] for event in events} == {run.run_id}


def test_one_subscription_in_one_loop_after_another() -> None:
    """A subscription belongs to no loop: what one has not read, the next one does."""
    run = open_run()
    subscription = run.subscribe("start")

    async def some() -> list[dict[str, Any]]:
        return await subscription.aread(3)

    emit_to_the_end(run, 7)
    events = [event for _ in range(3) for event in run_loop(some())]
    assert numbers(events) == list(range(1, 10))


def test_aread_waits_so_long() -> None:
    """`aread` gives what is there, else waits for it, for its timeout at most; then the list is empty."""
    run = open_run()

    async def main() -> None:
        subscription = run.subscribe()
        assert await subscription.aread(timeout=0) == []
        assert await subscription.aread(timeout=-1) == []
        assert await subscription.aread(5, 0.001) == []
        reading = asyncio.create_task(subscription.aread(timeout=None))
        await until_waiting(reading)
        say(run)
        assert numbers(await reading) == [2]
        reading = asyncio.create_task(subscription.aread(timeout=DEADLINE))
        await until_waiting(reading)
        run.complete()
        assert numbers(await reading) == [3]
        assert subscription.ended
        assert await subscription.aread() == []

    run_loop(main())


@pytest.mark.parametrize(("timeout", "error"), [("x", TypeError), (float("nan"), ValueError)])
def test_aread_refuses_what_is_no_time(timeout: Any, error: type[Exception]) -> None:
    """A timeout that is no number raises, and the subscription goes on."""
    run = open_run()

    async def main() -> None:
        subscription = run.subscribe()
        with pytest.raises(error):
            await asyncio.wait_for(subscription.aread(timeout=timeout), 0.1)
        assert await subscription.aread(timeout=0) == []

    try:
        run_loop(main())
    finally:
        run.complete()


def test_a_quiet_stream_has_heartbeats() -> None:
    """In a coroutine too, a quiet stream gives comments, and the retry line first."""
    run = open_run()

    async def main() -> None:
        stream = run.subscribe().sse(heartbeat=0.001, retry=5)
        assert await anext(stream) == b"retry: 5\n"
        assert [await anext(stream) for _ in range(3)] == [b": heartbeat\n"] * 3
        run.complete()
        rest = b"".join([chunk async for chunk in stream])
        assert [kind(event) for event in events_of(rest)] == ["lifecycle.completed"]

    run_loop(main())


def test_a_slow_coroutine_is_disconnected() -> None:
    """A coroutine that is too slow gets SubscriberLagged, in each way to read."""
    run = open_run()

    async def main() -> None:
        for read in READERS.values():
            subscription = run.subscribe()
            overrun_by_size(run)
            with pytest.raises(SubscriberLagged):
                await read(subscription)
            assert await read(subscription) == []

    run_loop(main())
    run.complete()


# --- What it does not do ---


def test_the_loop_goes_on() -> None:
    """While coroutines wait for events and for a cancel, other tasks of the loop run."""
    run = open_run()

    async def main() -> None:
        waiting = [asyncio.ensure_future(read(run.subscribe())) for read in READERS.values()]
        waiting.append(asyncio.ensure_future(run.token.cancelled()))
        for _ in range(1_000):
            await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        run.cancel("enough")
        run.complete()
        await asyncio.gather(*waiting)

    run_loop(main())


@pytest.mark.parametrize("way", ["events", "batches"])
def test_a_backlog_does_not_hold_up_the_loop(way: str) -> None:
    """A coroutine that reads thousands of events that are there lets other tasks run meanwhile."""
    run = open_run()
    emit_to_the_end(run, 9_000)
    turns = 0

    async def main() -> None:
        async def beat() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        beating = asyncio.create_task(beat())
        await asyncio.sleep(0)
        before = turns
        assert len(await READERS[way](run.subscribe("start"))) == 9_002
        beating.cancel()
        assert turns - before >= 10

    run_loop(main())


@pytest.mark.thread_unsafe(reason="counts the process's threads")
def test_no_thread_waits() -> None:
    """Waiting coroutines start no thread, of Python or of anybody else."""
    run, token = open_run(), CancelToken()

    def threads() -> int:
        with open("/proc/self/status") as status:  # noqa: PTH123
            return next(int(line.split()[1]) for line in status if line.startswith("Threads"))

    async def main() -> None:
        before = (threading.enumerate(), threads())
        waiting = [
            asyncio.ensure_future(read(run.subscribe())) for read in [*READERS.values()] * 10
        ]
        waiting += [asyncio.ensure_future(token.cancelled()) for _ in range(10)]
        await until_waiting(waiting[-1])
        assert (threading.enumerate(), threads()) == before
        token.cancel()
        run.complete()
        await asyncio.gather(*waiting)
        assert (threading.enumerate(), threads()) == before

    run_loop(main())


# --- Cancelled, dropped, closed ---


def test_cancelling_a_reader_loses_nothing() -> None:
    """A task that is cancelled while it waits, or just as an event comes, loses no event of its subscription."""
    run = open_run()

    async def main() -> None:
        subscription, events = run.subscribe("start"), []
        for number in range(300):
            reading = asyncio.create_task(
                [subscription.aread, subscription.__anext__][number % 2]()
            )
            for _ in range(number % 4):
                await asyncio.sleep(0)
            say(run)
            for _ in range(number % 3):
                await asyncio.sleep(0)
            reading.cancel()
            try:
                got = await reading
                events += got if isinstance(got, list) else [got]
            except asyncio.CancelledError:
                pass
        run.complete()
        events += await events_from(subscription)
        assert numbers(events) == list(range(1, 303))

    run_loop(main())


def test_a_cancel_that_meets_an_event_loses_nothing() -> None:
    """Cancelled from the loop while another thread emits, readers lose nothing, however the two meet."""
    run = open_run()

    async def main() -> None:
        subscription, events = run.subscribe("start"), []
        emitting = asyncio.ensure_future(asyncio.to_thread(emit_to_the_end, run, 5_000))
        while not subscription.ended:
            # Not `wait_for`, which may itself lose a result that comes together with its timeout.
            reading = asyncio.ensure_future(subscription.aread(7))
            await asyncio.wait([reading], timeout=0.0005)
            reading.cancel()
            await asyncio.wait([reading])
            if not reading.cancelled():
                events += reading.result()
        await emitting
        assert numbers(events) == list(range(1, 5_003))

    run_loop(main())


def test_a_cancelled_wait_leaves_nothing() -> None:
    """After a cancelled or timed-out wait neither the subscription nor the token keeps what belonged to it."""
    run, token = open_run(), CancelToken()

    class Mark:
        """What only the waiting coroutine holds."""

    async def waits(wait: Callable[[], Awaitable[Any]], mark: Mark) -> None:
        await wait()
        del mark

    async def main() -> None:
        subscription = run.subscribe()
        stream = subscription.sse()
        ways = [subscription.aread, subscription.__anext__, stream.__anext__, token.cancelled]
        for wait in ways * 3:
            mark = Mark()
            gone = [weakref.ref(mark)]
            task = asyncio.create_task(waits(wait, mark))
            await until_waiting(task)
            gone += [weakref.ref(task), weakref.ref(task._fut_waiter)]
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            del task, mark
            gc.collect()
            assert [reference() for reference in gone] == [None, None, None]
        for wait in ways[:1] + ways[3:]:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(wait(), 0.001)
        say(run)
        assert numbers(await subscription.aread()) == [2]

    run_loop(main())
    run.complete()


def test_what_was_never_awaited_leaves_nothing() -> None:
    """Coroutines that are made and closed without a start keep nobody, and the subscription goes on."""
    run = open_run()
    subscription = run.subscribe("start")
    stream = subscription.sse()
    for coroutine in (subscription.aread(), anext(subscription), anext(stream), stream.aclose()):
        coroutine.close()
    token = CancelToken()
    token.cancelled().close()
    gone = [weakref.ref(one) for one in (subscription, stream, token)]
    assert len(subscription.read()) == 1
    del subscription, stream, token, coroutine
    assert [reference() for reference in gone] == [None, None, None]
    run.complete()


def test_a_loop_that_is_gone_is_not_woken() -> None:
    """An event, or a cancel, that comes when the waiting loop is closed says and raises nothing."""
    run, token = open_run(), CancelToken()
    subscription = run.subscribe()
    waiting: list[Any] = []

    def abandon() -> None:
        loop = asyncio.new_event_loop()
        coroutines = [subscription.aread(), token.cancelled()]
        for coroutine in coroutines:
            waiting.append((coroutine, loop.create_task(coroutine)))  # noqa: PERF401
        for _ in range(3):
            loop.call_soon(loop.stop)
            loop.run_forever()
        loop.close()

    abandon()
    say(run)
    token.cancel()
    assert numbers(subscription.read()) == [2]
    for coroutine, task in waiting:
        coroutine.close()
        task._log_destroy_pending = False
    run.complete()
    assert len(subscription.read()) == 1


def test_a_loop_that_is_gone_says_nothing_at_exit() -> None:
    """A process that leaves coroutines waiting ends without a word."""
    code = """
        import asyncio
        from llm_callback import CancelToken, open_run

        async def main():
            # In development mode the loop tells of each slow step, which a busy machine makes of any step.
            asyncio.get_running_loop().slow_callback_duration = 60
            run, token = open_run(), CancelToken()
            tasks = [asyncio.create_task(one) for one in (run.subscribe().aread(), token.cancelled())]
            await asyncio.sleep(0.01)

        asyncio.run(main())
        print("done")
    """
    assert printed(code, "-X", "dev") == "done\n"


def test_one_coroutine_reads_at_a_time(read: Callable[[Subscription], Awaitable[Any]]) -> None:
    """Of two tasks that wait for one subscription the second gets RuntimeError, the first every event."""
    run = open_run()

    async def main() -> list[dict[str, Any]]:
        subscription = run.subscribe()
        first = asyncio.ensure_future(read(subscription))
        await until_waiting(first)
        for other in READERS.values():
            with pytest.raises(RuntimeError, match="reading this subscription"):
                await other(subscription)
        assert not first.done()
        await asyncio.to_thread(emit_to_the_end, run, 10)
        return await first

    assert numbers(run_loop(main())) == list(range(2, 13))


def test_a_coroutine_and_a_thread() -> None:
    """While a thread reads, a coroutine gets RuntimeError, and may read after it."""
    run = open_run()
    subscription = run.subscribe()
    reader = Running(subscription.read)
    being_read(subscription)

    async def main() -> None:
        with pytest.raises(RuntimeError, match="another thread is reading"):
            await subscription.aread(timeout=0.001)
        say(run)
        while not reader.is_done:  # noqa: ASYNC110 - a thread's
            await asyncio.sleep(0)
        say(run)
        assert numbers(await subscription.aread()) == [3]

    run_loop(main())
    assert numbers(reader.result()) == [2]
    run.complete()


def test_close_ends_a_coroutine_that_waits(read: Callable[[Subscription], Awaitable[Any]]) -> None:
    """Closed from another thread, a subscription ends the coroutine that waits for it, without an event."""
    run = open_run()

    async def main() -> None:
        subscription = run.subscribe()
        reading = asyncio.ensure_future(read(subscription))
        await until_waiting(reading)
        await asyncio.to_thread(subscription.close)
        assert await reading == []

    run_loop(main())
    run.complete()


def test_aclosing_closes_the_subscription() -> None:
    """`aclosing` over a stream closes its subscription, also when its body is left early."""
    run = open_run()

    async def main() -> None:
        subscription = run.subscribe("start")
        async with aclosing(subscription.sse()) as stream:
            async for chunk in stream:
                assert len(parse(chunk)) == 1
                break
        assert subscription.ended
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    run_loop(main())
    run.complete()


def test_a_dropped_stream_leaves_nothing() -> None:
    """A client that goes before or after the first byte leaves neither the stream nor the subscription."""
    run = open_run()

    async def serve(stream: SseStream, number: int) -> None:
        async for _ in stream:
            number -= 1
            if number == 0:
                return

    async def main() -> None:
        for number in (1, 5):
            subscription = run.subscribe("start")
            gone = [weakref.ref(subscription)]
            task = asyncio.create_task(serve(subscription.sse(heartbeat=0.001), number))
            del subscription
            await asyncio.wait([task])
            del task
            gc.collect()
            assert [reference() for reference in gone] == [None]
        run.subscribe("start").sse()

    run_loop(main())
    run.complete()


# --- Tokens ---


def test_a_token_is_awaited() -> None:
    """`await token` and `await token.cancelled()` end when it is cancelled, from whichever thread, and at once then."""
    token = CancelToken()

    async def wait_for_it() -> None:
        await token

    async def main() -> None:
        waiting = [asyncio.create_task(wait_for_it()) for _ in range(50)]
        waiting += [asyncio.create_task(token.child().cancelled()) for _ in range(50)]
        await until_waiting(waiting[-1])
        assert await asyncio.to_thread(token.cancel, "enough")
        assert await asyncio.gather(*waiting) == [None] * 100
        await token
        await token.cancelled()
        await token.child()

    run_loop(main())


def test_a_deadline_wakes_a_coroutine() -> None:
    """A coroutine that waits for a token wakes at its deadline."""

    async def main() -> None:
        token = CancelToken(deadline=0.01)
        await token
        assert token.kind == "deadline"

    run_loop(main())


def test_an_awaited_token_leaves_nothing() -> None:
    """A wait for a token that times out takes its registration back: a cancel later calls nobody."""

    async def main() -> None:
        token = CancelToken()
        for _ in range(100):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(token.cancelled(), 0)
        task = asyncio.create_task(token.cancelled())
        await until_waiting(task)
        gone = weakref.ref(task._fut_waiter)
        task.cancel()
        await asyncio.wait([task])
        del task
        gc.collect()
        assert gone() is None
        token.cancel()

    run_loop(main())


def test_the_token_of_a_finished_run_still_wakes() -> None:
    """A coroutine that waits for a token wakes when that is cancelled, also after the end of its run."""

    async def main() -> None:
        run = open_run()
        token = run.token
        waiting = asyncio.create_task(token.cancelled())
        await until_waiting(waiting)
        run.complete()
        token.cancel()
        assert token.is_set()
        await asyncio.wait_for(waiting, DEADLINE)

    run_loop(main())


def test_a_cancel_wakes_readers_and_waiters_at_once() -> None:
    """One cancel of a run reaches the coroutine that waits for its token; its end reaches those that read."""

    async def main() -> None:
        run = open_run()
        child = open_run(parent=run)
        waiting = asyncio.gather(run.token.cancelled(), child.token.cancelled())
        reading = asyncio.gather(*(events_from(one.subscribe()) for one in (run, child)))
        await asyncio.sleep(0)
        await asyncio.to_thread(run.cancel, "enough")
        await waiting
        child.complete()
        run.complete()
        assert [kinds(events) for events in await reading] == [["lifecycle.cancelled"]] * 2

    run_loop(main())


def test_a_wake_at_the_end_of_the_stack_is_heard() -> None:
    """An emit, or a cancel, near the limit of recursion wakes the coroutines of other threads all the same."""
    run, token = open_run(), CancelToken()
    reading, waiting = threading.Event(), threading.Event()

    async def read() -> list[str]:
        subscription = run.subscribe()
        asyncio.get_running_loop().call_soon(reading.set)
        return [event["event"]["action"] async for event in subscription]

    async def wait() -> None:
        asyncio.get_running_loop().call_soon(waiting.set)
        await token

    reader, waiter = Running(lambda: asyncio.run(read())), Running(lambda: asyncio.run(wait()))
    assert reading.wait(DEADLINE)
    assert waiting.wait(DEADLINE)
    said = []

    def deep() -> None:
        try:
            deep()
        except RecursionError:
            # Here there is room for a call, and not for what a wake does.
            if not said:
                said.append(run.emit("llm", "stream", {}))
            if not token.is_set():
                token.cancel()

    deep()
    run.complete()
    assert reader.result() == ["stream", "completed"]
    waiter.result()


def test_a_wake_with_little_room_on_the_stack_is_heard() -> None:
    """A reader hears the last event of another thread, however few calls that thread's stack has room for."""

    async def read(run: Run, reading: threading.Event) -> str:
        subscription = run.subscribe()
        asyncio.get_running_loop().call_soon(reading.set)
        return [event["event"]["action"] async for event in subscription][-1]

    def deepest(depth: int = 1) -> int:
        try:
            return deepest(depth + 1)
        except RecursionError:
            return depth

    def complete(run: Run, depth: int) -> bool:
        return complete(run, depth - 1) if depth else run.complete()

    bottom, ended = deepest(), 0
    for room in range(30):
        run, reading = open_run(), threading.Event()
        reader = Running(partial(asyncio.run, read(run, reading)))
        assert reading.wait(DEADLINE)
        try:
            ended += complete(run, bottom - room)
        except RecursionError:
            # Too little room for the call itself.
            run.complete()
        assert reader.result() == "completed"
    assert ended > 20
