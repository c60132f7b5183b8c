"""Subscriptions: each reader sees its run's events once, in order, to the last one, or is told what it has missed."""

from __future__ import annotations

import json
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from llm_callback import AgentType, CallerContext, SubscriberLagged, open_run
from readers import (
    HELD,
    MEBIBYTE,
    SseParser,
    being_read,
    checked,
    events_of,
    kind,
    kinds,
    numbers,
    overrun_by_number,
    overrun_by_size,
    parse,
    parse_with_httpx,
    say,
    text,
)
from support import DEADLINE, Running, new_id, printed, together, waited, worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_callback import Run, Subscription

OVERRUNS = {"number": overrun_by_number, "size": overrun_by_size}

A = worker("a")
B = worker("b")


@pytest.fixture(params=OVERRUNS.values(), ids=OVERRUNS.keys())
def overrun(request: pytest.FixtureRequest) -> Callable[[Run], None]:
    """Say more than a log holds, in one of two ways."""
    return request.param


def read_to_the_end(subscription: Subscription) -> list[dict[str, Any]]:
    """Return all events until the run's last one."""
    return list(subscription)


# --- Where a reader begins ---


@pytest.mark.parametrize("start", ["start", "live", "id", "sequence"])
def test_replay_then_live_misses_nothing(start: str) -> None:
    """Readers that come while another thread emits all the while see every event after their start, once."""
    run, enough, all_here = open_run(), threading.Event(), threading.Event()
    ids, here = [run.last_event_id], threading.Semaphore(0)

    def emit() -> int:
        while not all_here.is_set() and len(ids) < 9_000:
            ids.append(say(run, str(len(ids))))
            if len(ids) == 200:
                enough.set()
        waited(all_here)
        ids.extend(say(run) for _ in range(100))
        run.complete()
        return len(ids) + 1

    def count() -> None:
        for _ in range(6):
            assert here.acquire(timeout=DEADLINE)
        all_here.set()

    def read() -> tuple[int, list[dict[str, Any]]]:
        waited(enough)
        after = {"start": "start", "live": None, "id": ids[150], "sequence": 150}[start]
        first = {"start": 1, "live": None, "id": 152, "sequence": 151}[start]
        subscription = run.subscribe(after)
        here.release()
        events = read_to_the_end(subscription)
        return first or events[0]["sequence"], events

    last, _, *readers = together([emit, count, *[read] * 6])
    for first, events in readers:
        assert numbers(events) == list(range(first, last + 1))
        assert [event["id"] for event in events[:-1]] == ids[first - 1 :]
        assert kind(events[-1]) == "lifecycle.completed"


@pytest.mark.parametrize(
    ("after", "error"),
    [
        ("", ValueError),
        ("beginning", ValueError),
        ("5", ValueError),
        ("1-", ValueError),
        ("-1", ValueError),
        ("+1-1", ValueError),
        ("1-1-1", ValueError),
        (" 1-1", ValueError),
        ("1-\ud800", ValueError),
        (f"1-{2**64}", ValueError),
        (-1, ValueError),
        (2**64, ValueError),
        (True, TypeError),
        (1.0, TypeError),
        (b"1-1", TypeError),
        (["start"], TypeError),
    ],
)
def test_a_start_that_cannot_be_is_refused(after: Any, error: type[Exception]) -> None:
    """What is no start raises, with a word for it, and leaves the run as it was."""
    run = open_run()
    with pytest.raises(error, match="after must be None, 'start', an event's id"):
        run.subscribe(after)
    run.complete()
    assert kinds(run.subscribe("start")) == ["lifecycle.started", "lifecycle.completed"]


@pytest.mark.parametrize(
    ("after", "requested"),
    [
        ("0-0", "0-0"),
        ("1-2", "1-2"),
        (f"{2**64 - 1}-{2**64 - 1}", f"{2**64 - 1}-{2**64 - 1}"),
        (4, "4"),
        (2**64 - 1, str(2**64 - 1)),
    ],
)
def test_a_start_that_never_was_is_told_as_one_gap(after: str | int, requested: str) -> None:
    """After an id or a number that the run never gave out comes one gap with nothing lost, then all that is held."""
    run = open_run()
    say(run)
    subscription = run.subscribe(after)
    say(run)
    run.complete()
    gap, *events = read_to_the_end(subscription)
    assert kind(gap) == "stream.gap"
    assert gap["data"] == {"requested": requested, "oldest": events[0]["id"], "lost": 0}
    assert (gap["run_id"], gap["source"]) == (run.run_id, None)
    assert numbers(events) == [1, 2, 3, 4]
    assert subscription.lost == 0


def test_an_id_of_another_generation_is_told_as_a_gap() -> None:
    """An id of the run before, of the same name, is no place in this one, whichever numbers both have."""
    run_id = new_id()
    with open_run(run_id) as before:
        old = [say(before) for _ in range(5)]
    run = open_run(run_id)
    new = [say(run) for _ in range(5)]
    run.complete()
    for after in [*old, before.last_event_id]:
        gap, *events = read_to_the_end(run.subscribe(after))
        assert gap["data"] == {"requested": after, "oldest": events[0]["id"], "lost": 0}
        assert numbers(events) == [1, 2, 3, 4, 5, 6, 7]
    assert numbers(run.subscribe(new[2])) == [5, 6, 7]


@pytest.mark.parametrize("overflow", ["disconnect", "gap", "coalesce", "block"])
def test_a_start_that_was_let_go_of_is_told_as_one_gap(
    overrun: Callable[[Run], None], overflow: str
) -> None:
    """A start that the log has let go of gives one gap with the exact number lost, then what is held."""
    run = open_run()
    ids = [run.last_event_id, *(say(run) for _ in range(9))]
    overrun(run)
    run.complete()
    for place in (1, 5, 10):
        for after, requested in ((ids[place - 1], ids[place - 1]), (place, str(place))):
            subscription = run.subscribe(after, overflow=overflow, patience=None)
            events = subscription.read(10**6)
            assert kinds(events).count("stream.gap") == 1
            assert kind(events[0]) == "stream.gap"
            assert events[0]["data"]["requested"] == requested
            if overflow != "coalesce":
                assert checked(events, after=place) == subscription.lost > 0
            assert kind(events[-1]) == "lifecycle.completed"


def test_the_end_of_the_run_is_a_place(overrun: Callable[[Run], None]) -> None:
    """After the last event of a run that has ended there is nothing, and no wait; after the one before it, the last."""
    run = open_run()
    overrun(run)
    before = run.last_event_id
    run.complete()
    subscription = run.subscribe(run.last_event_id)
    assert subscription.read() == []
    assert subscription.ended
    assert kinds(run.subscribe(before)) == ["lifecycle.completed"]
    assert read_to_the_end(run.subscribe()) == []


def test_the_latest_event_is_a_place_in_a_live_run() -> None:
    """After the latest event a reader waits for the next, without a gap."""
    run = open_run()
    latest = say(run)
    subscriptions = [run.subscribe(latest), run.subscribe(2), run.subscribe()]
    assert [subscription.read(timeout=0) for subscription in subscriptions] == [[], [], []]
    say(run)
    run.complete()
    assert [numbers(subscription) for subscription in subscriptions] == [[3, 4]] * 3


def test_a_run_that_has_not_started_is_read_from_its_first_event() -> None:
    """Readers of a pending run see its first event, wherever they begin."""
    run = open_run(pending=True)
    subscriptions = [run.subscribe(after) for after in (None, "start", 0)]
    assert [subscription.read(timeout=0) for subscription in subscriptions] == [[], [], []]
    run.start()
    run.complete()
    for subscription in subscriptions:
        assert kinds(subscription) == ["lifecycle.started", "lifecycle.completed"]


# --- Readers that are too slow ---


def test_a_slow_reader_is_disconnected(overrun: Callable[[Run], None]) -> None:
    """By default a reader whose next event was let go of gets SubscriberLagged, once; then it has ended."""
    run = open_run()
    subscription = run.subscribe("start")
    assert next(subscription)["sequence"] == 1
    overrun(run)
    oldest = checked_oldest(run)
    with pytest.raises(SubscriberLagged) as lagged:
        next(subscription)
    assert (lagged.value.next, lagged.value.oldest) == (2, oldest)
    assert str(oldest) in str(lagged.value)
    assert subscription.ended
    assert subscription.read() == list(subscription) == list(subscription.sse()) == []
    assert subscription.lost == 0
    run.complete()


def checked_oldest(run: Run) -> int:
    """Return the number of the oldest event that a run's log holds, its first one aside."""
    first, gap, *events = run.subscribe("start").read(10**6)
    assert (first["sequence"], kind(gap)) == (1, "stream.gap")
    assert events[0]["id"] == gap["data"]["oldest"]
    return events[0]["sequence"]


def test_resuming_by_id_loses_nothing_that_is_held() -> None:
    """A reader that was disconnected and resumes after what it has read misses only what the gap tells."""
    run = open_run()
    subscription = run.subscribe("start")
    seen = [next(subscription)]
    overrun_by_number(run)
    # The reader had taken nothing yet but its first event.
    with pytest.raises(SubscriberLagged):
        subscription.read()
    resumed = run.subscribe(seen[-1]["id"])
    seen += resumed.read(10**6)
    again = run.subscribe(seen[-1]["id"])
    say(run, "the next")
    run.complete()
    seen += read_to_the_end(again)
    assert checked(seen, after=0) == resumed.lost == 500
    assert kind(seen[-1]) == "lifecycle.completed"


def test_a_gap_is_a_place_to_resume_from(overrun: Callable[[Run], None]) -> None:
    """A reader that resumes with the id in a gap's JSON goes on right behind the gap."""
    run = open_run()
    overrun(run)
    _, gap, following, *_ = run.subscribe("start").read(10**6)
    assert run.subscribe(gap["id"]).read()[0] == following
    unknown = run.subscribe("1-1").read(1)[0]
    overrun(run)
    resumed = run.subscribe(unknown["id"])
    assert checked(resumed.read(10**6), after=unknown["sequence"]) == resumed.lost
    run.complete()


@pytest.mark.parametrize("overflow", ["gap", "block"])
def test_a_slow_reader_skips_and_is_told(overrun: Callable[[Run], None], overflow: str) -> None:
    """With `gap`, and with `block` after its patience, a reader goes on with the oldest behind a gap that is exact."""
    run = open_run()
    patience = 0 if overflow == "block" else None
    subscription = run.subscribe("start", overflow=overflow, patience=patience)
    events = subscription.read(1)
    for _ in range(3):
        overrun(run)
        events += subscription.read(10**6)
    run.complete()
    events += read_to_the_end(subscription)
    assert kinds(events).count("stream.gap") == 3
    assert checked(events, after=0) == subscription.lost > 0
    assert kind(events[-1]) == "lifecycle.completed"


@pytest.mark.parametrize("overflow", ["gap", "coalesce", "block"])
def test_the_first_and_the_last_event_are_never_lost(
    overrun: Callable[[Run], None], overflow: str
) -> None:
    """However far behind a reader is, it reads how its run began and how it ended."""
    run = open_run(task="tides")
    patience = 0 if overflow == "block" else None
    subscription = run.subscribe("start", overflow=overflow, patience=patience)
    overrun(run)
    overrun(run)
    run.complete(result="high water")
    first, gap, *_, last = read_to_the_end(subscription)
    assert (first["sequence"], first["data"]) == (1, {"task": "tides"})
    assert kind(gap) == "stream.gap"
    assert (kind(last), last["data"]) == ("lifecycle.completed", {"result": "high water"})


def test_coalesce_merges_consecutive_tokens_of_one_source() -> None:
    """Rows of tokens of one source become one event each, with the last one's id; all else stays as it is."""
    run = open_run()
    subscription = run.subscribe("start", overflow="coalesce")
    for content, source in [("a", A), ("b", A), ("c", B), ("d", B), ("e", A), ("f", None)]:
        say(run, content, source)
    run.emit("llm", "reasoning", {"content": "not text"})
    last = say(run, "g")
    run.emit("llm", "stream", {"content": "h", "more": 1})
    run.emit("llm", "stream", {"content": 5})
    say(run, "i")
    say(run, "j")
    run.emit("llm", "tool_call", {"name": "search"})
    run.complete()
    events = read_to_the_end(subscription)
    assert [
        (event["sequence"], event["source"] and event["source"]["agent_id"], event["data"])
        for event in events[1:-1]
    ] == [
        (3, "a", {"content": "ab"}),
        (5, "b", {"content": "cd"}),
        (6, "a", {"content": "e"}),
        (7, None, {"content": "f"}),
        (8, None, {"content": "not text"}),
        (9, None, {"content": "g"}),
        (10, None, {"content": "h", "more": 1}),
        (11, None, {"content": 5}),
        (13, None, {"content": "ij"}),
        (14, None, {"name": "search"}),
    ]
    assert events[6]["id"] == last
    assert kinds([events[0], events[-1]]) == ["lifecycle.started", "lifecycle.completed"]


def test_coalesced_text_is_whole() -> None:
    """Merging keeps every character; a reader that resumes after a merged event has missed none and sees none twice."""
    run = open_run()
    subscription = run.subscribe(overflow="coalesce")
    pieces = ["é", "\n", '"', "\\", "😀", "\u2028", "\0", " ", "</script>", "\ud83d", "\ude00"] * 40
    for piece in pieces:
        say(run, piece)
    first = subscription.read(100)
    run.complete()
    rest = read_to_the_end(run.subscribe(first[-1]["id"], overflow="coalesce"))
    whole = "".join(pieces).encode("utf-16", "surrogatepass").decode("utf-16")
    assert text(first + rest).encode("utf-16", "surrogatepass").decode("utf-16") == whole
    assert len(first) == 1


def test_a_producer_waits_for_a_reader_that_blocks(overrun: Callable[[Run], None]) -> None:
    """With `block` nothing is lost to a reader that reads at all; while the producer waits, other threads run."""
    run = open_run()
    subscription = run.subscribe("start", overflow="block", patience=DEADLINE)

    def emit() -> None:
        for _ in range(3):
            overrun(run)
        run.complete()

    producer = Running(emit)
    events = read_to_the_end(subscription)
    producer.result()
    assert checked(events, after=0) == subscription.lost == 0
    assert kind(events[-1]) == "lifecycle.completed"


def blocked_producer(run: Run) -> Running[list[str | None]]:
    """Return a thread that overruns the log for a reader with `block`, once it has come to where it has to wait."""
    ids: list[str | None] = []

    def emit() -> list[str | None]:
        for _ in range(40):
            # One by one: who waits for the producer looks at how many there are.
            ids.append(run.emit("llm", "stream", {"content": MEBIBYTE}))  # noqa: PERF401
        return ids

    producer = Running(emit)
    end = time.monotonic() + DEADLINE
    # The log holds fifteen of them, and the first event.
    while len(ids) < 15:
        assert time.monotonic() < end
        time.sleep(0)
    assert not producer.is_done
    return producer


@pytest.mark.parametrize("way", ["read", "close", "drop", "end", "sse"])
def test_what_releases_a_producer(way: str) -> None:
    """A producer that waits goes on as soon as the reader reads, is closed or is dropped, or the run ends."""
    run = open_run()
    subscription = run.subscribe("start", overflow="block", patience=10 * DEADLINE)
    producer = blocked_producer(run)
    if way == "read":
        events: list[dict[str, Any]] = []
        while len(events) < 41:
            more = subscription.read(timeout=DEADLINE)
            assert more, "nothing comes"
            events += more
        assert checked(events, after=0) == 0
    elif way == "sse":
        stream = subscription.sse()
        assert sum(len(parse(next(stream))) for _ in range(2)) > 0
        subscription.close()
    elif way == "close":
        subscription.close()
    elif way == "drop":
        del subscription
    else:
        run.complete()
    ids = producer.result()
    assert (None in ids) == (way == "end")
    run.complete()


def test_a_producer_has_patience_once(overrun: Callable[[Run], None]) -> None:
    """After its patience the producer goes on, and does not wait again for a reader that still has not read."""
    run = open_run()
    subscription = run.subscribe("start", overflow="block", patience=0.01)
    events: list[dict[str, Any]] = []
    for _ in range(2):
        overrun(run)
        events += subscription.read(10**6)
    run.complete()
    events += read_to_the_end(subscription)
    assert checked(events, after=0) == subscription.lost > 0


def test_an_end_waits_for_nobody() -> None:
    """A run's last event does not wait for a reader with `block`, though the log is full."""
    run = open_run()
    subscription = run.subscribe("start", overflow="block", patience=10 * DEADLINE)
    for _ in range(15):
        say(run, MEBIBYTE)
    assert run.complete(result=MEBIBYTE)
    assert checked(read_to_the_end(subscription), after=0) == 0


@pytest.mark.parametrize("patience", [float("inf"), 1e300])
def test_patience_may_be_without_end(patience: float) -> None:
    """A patience that no clock can hold never ends."""
    run = open_run()
    subscription = run.subscribe("start", overflow="block", patience=patience)
    producer = blocked_producer(run)
    # Longer than the default.
    assert not threading.Event().wait(1.5)
    try:
        assert not producer.is_done
    finally:
        subscription.close()
        producer.result()
        run.complete()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"overflow": "drop"}, ValueError, "overflow must be 'disconnect', 'gap', "),
        ({"overflow": "Gap"}, ValueError, "overflow must be"),
        ({"overflow": None}, TypeError, "str"),
        ({"patience": 1.0}, ValueError, "patience is how long producers wait"),
        ({"overflow": "gap", "patience": 0}, ValueError, "patience is how long producers wait"),
        ({"overflow": "block", "patience": float("nan")}, ValueError, "patience must be a number"),
        ({"overflow": "block", "patience": "1"}, TypeError, "patience must be a number"),
    ],
)
def test_options_that_cannot_be_are_refused(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    """What is no overflow or no patience raises, and says what is."""
    with open_run() as run, pytest.raises(error, match=words):
        run.subscribe(**options)


# --- Reading ---


def test_readers_after_the_end_read_to_the_end() -> None:
    """Whoever comes after the end reads all of it, as often as they like, and does not wait."""
    with open_run() as run:
        ids = [say(run) for _ in range(10)]
    for _ in range(3):
        events = read_to_the_end(run.subscribe("start"))
        assert numbers(events) == list(range(1, 13))
        assert [event["id"] for event in events[1:-1]] == ids
        assert events_of(b"".join(run.subscribe("start").sse())) == events


def test_read_returns_what_is_there() -> None:
    """`read` gives at most `max` events, waits only if there are none, and says with `ended` whether any will come."""
    run = open_run()
    subscription = run.subscribe("start")
    for _ in range(9):
        say(run)
    assert numbers(subscription.read(4)) == [1, 2, 3, 4]
    assert numbers(subscription.read(4, timeout=None)) == [5, 6, 7, 8]
    assert numbers(subscription.read(max=4)) == [9, 10]
    assert subscription.read(timeout=0) == subscription.read(4, 0.01) == []
    assert subscription.read(timeout=-1) == []
    assert not subscription.ended
    run.complete()
    assert not subscription.ended
    assert numbers(subscription.read()) == [11]
    assert subscription.ended
    assert subscription.read() == subscription.read(timeout=DEADLINE) == []


def test_read_returns_no_more_than_asked_for() -> None:
    """Behind the oldest event too `read` gives at most `max` events."""
    run = open_run()
    overrun_by_size(run)
    assert len(run.subscribe("start").read(1)) == 1
    run.complete()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"timeout": float("nan")}, ValueError),
        ({"timeout": "1"}, TypeError),
        ({"max": "1"}, TypeError),
        ({"max": 1.5}, TypeError),
        ({"max": 0}, ValueError),
        pytest.param(
            {"max": -1},
            ValueError,
        ),
    ],
)
def test_read_refuses_what_cannot_be(arguments: dict[str, Any], error: type[Exception]) -> None:
    """A wrong argument of `read` raises, and nothing is lost by it."""
    with open_run() as run:
        subscription = run.subscribe("start")
        with pytest.raises(error):
            subscription.read(**arguments)
    assert len(read_to_the_end(subscription)) == 2


def test_each_event_is_read_once_in_whichever_way() -> None:
    """Iteration, `read` and `sse` go on where the others stopped."""
    run = open_run()
    subscription = run.subscribe("start")
    for _ in range(1_000):
        say(run)
    run.complete()
    stream, events = subscription.sse(), []
    while not subscription.ended:
        events += [event for _, event in zip(range(3), subscription, strict=False)]
        events += subscription.read(5)
        events += [event for chunk in [next(stream, b"")] for event in events_of(chunk)]
        events += [event for event in [next(subscription, None)] if event]
    assert numbers(events) == list(range(1, 1_003))


def test_a_subscription_sees_its_own_run_only() -> None:
    """Readers of runs that emit at once see no event of another run."""
    runs = [open_run() for _ in range(8)]
    subscriptions = [run.subscribe("start") for run in runs]

    def emit(run: Run) -> None:
        handler = run.handler(worker(str(run.run_id)))
        for number in range(300):
            handler(data=f"{run.run_id} {number}")
        run.complete()

    together([lambda run=run: emit(run) for run in runs])
    for run, subscription in zip(runs, subscriptions, strict=True):
        events = read_to_the_end(subscription)
        assert {event["run_id"] for event in events} == {run.run_id}
        contents = [event["data"]["content"] for event in events[1:-1]]
        assert contents == [f"{run.run_id} {number}" for number in range(300)]
        assert {event["source"]["agent_id"] for event in events[1:-1]} == {run.run_id}


READS: dict[str, Callable[[Subscription], list[Any]]] = {
    "read": lambda subscription: subscription.read(),
    "iteration": list,
    "sse": lambda subscription: list(subscription.sse()),
    "heartbeats": lambda subscription: [
        chunk for chunk in subscription.sse(0.001) if chunk[:1] != b":"
    ],
}


@pytest.mark.parametrize("read", READS.values(), ids=READS.keys())
def test_close_ends_a_read_that_waits(read: Callable[[Subscription], list[Any]]) -> None:
    """A read that waits in another thread ends when the subscription is closed, and finds nothing more."""
    run = open_run()
    subscription = run.subscribe()
    reader = Running(lambda: read(subscription))
    being_read(subscription)
    subscription.close()
    assert reader.result() == []
    assert subscription.ended
    say(run)
    assert subscription.read() == list(subscription) == []
    subscription.close()
    run.complete()


def test_a_closed_subscription_drops_what_it_had() -> None:
    """After `close`, also by `with`, nothing is handed out, though events had been taken for it."""
    run = open_run()
    with run.subscribe("start") as subscription:
        for _ in range(20):
            say(run)
        next(subscription)
    assert subscription.ended
    assert list(subscription) == []
    stream = run.subscribe("start").sse()
    next(stream)
    stream.close()
    assert list(stream) == []
    run.complete()
    assert len(read_to_the_end(run.subscribe("start"))) == 22


def test_one_thread_reads_at_a_time() -> None:
    """Of two threads that read one subscription one gets RuntimeError, and the other one every event."""
    run = open_run()
    subscription = run.subscribe("start")
    reader = Running(lambda: read_to_the_end(subscription))
    for number in range(20):
        being_read(subscription)
        for read in READS.values():
            with pytest.raises(RuntimeError, match="another thread is reading this subscription"):
                read(subscription)
        assert not reader.is_done
        say(run, str(number))
    run.complete()
    assert numbers(reader.result()) == list(range(1, 23))


def test_readers_that_compete_lose_nothing() -> None:
    """Threads that fight for one subscription together get every event once, and RuntimeError now and then."""
    run = open_run()
    subscription = run.subscribe("start")

    def emit() -> list[int]:
        for _ in range(3_000):
            say(run)
        run.complete()
        return []

    def reading() -> list[int]:
        got: list[int] = []
        while True:
            try:
                got += numbers(subscription.read(7, timeout=0.01))
                got += [event["sequence"] for event in [next(subscription, None)] if event]
                if subscription.ended:
                    return got
            except RuntimeError:  # noqa: PERF203 - it comes at any time
                time.sleep(0)

    got = together([emit, *[reading] * 3])
    assert sorted(number for part in got for number in part) == list(range(1, 3_003))


def test_asking_does_not_disturb_the_reader() -> None:
    """`ended`, `lost` and `repr` may be asked from any thread at any time: the one that reads does not notice."""
    run = open_run()
    subscription, stop = run.subscribe("start"), threading.Event()

    def ask() -> None:
        while not stop.is_set():
            assert (subscription.ended, subscription.lost) == (False, 0)
            assert "Subscription" in repr(subscription)

    asking = Running(ask)
    try:
        for _ in range(20_000):
            subscription.read(timeout=0)
    finally:
        stop.set()
        asking.result()
        run.complete()


def test_what_is_lost_is_known_while_a_thread_reads() -> None:
    """`lost` says the same whether another thread is reading or not."""
    run = open_run()
    subscription = run.subscribe("start", overflow="gap")
    overrun_by_size(run)
    subscription.read(10**6)
    lost = subscription.lost
    assert lost > 0
    reader = Running(subscription.read)
    being_read(subscription)
    try:
        assert subscription.lost == lost
    finally:
        run.complete()
        reader.result()


def test_dropping_leaves_nothing() -> None:
    """A subscription, or its stream, that is dropped unread or half read is freed at once."""
    run = open_run()
    for _ in range(300):
        say(run)
    for overflow in ("disconnect", "gap", "coalesce", "block"):
        patience = 10 * DEADLINE if overflow == "block" else None
        for use in (
            lambda _: None,
            next,
            lambda one: one.sse(),
            lambda one: next(one.sse(retry=5)),
        ):
            subscription = run.subscribe("start", overflow=overflow, patience=patience)
            stream = subscription.sse()
            use(subscription)
            gone = [weakref.ref(subscription), weakref.ref(stream)]
            del subscription, stream
            assert [reference() for reference in gone] == [None, None]
    # Nobody is waited for.
    overrun_by_number(run)
    run.complete()


def test_a_subscription_keeps_its_log_but_nobody_keeps_a_subscription() -> None:
    """A reader that holds on reads to the end of a run whose name another run has taken since, and no event of that."""
    run_id = new_id()
    first = open_run(run_id)
    subscription = first.subscribe("start")
    say(first, "old")
    first.complete()
    del first
    second = open_run(run_id)
    say(second, "new")
    assert text(subscription) == "old"
    assert text(second.subscribe("start").read()) == "new"
    second.complete()


def start(subscription: Subscription, run: Run) -> None:  # noqa: ARG001 - the others close it
    """Start the run, which wakes its reader."""
    run.start()


def close(subscription: Subscription, run: Run) -> None:  # noqa: ARG001 - the other starts it
    """Close the subscription, which wakes its reader."""
    subscription.close()


def close_stream(subscription: Subscription, run: Run) -> None:  # noqa: ARG001 - the other starts it
    """Close what reads the subscription as SSE."""
    subscription.sse().close()


def leave(subscription: Subscription, run: Run) -> None:  # noqa: ARG001 - the other starts it
    """Leave the subscription's block."""
    with subscription:
        pass


@pytest.mark.thread_unsafe(reason="Ctrl-C is the main thread's")
@pytest.mark.parametrize("waking", [start, close, close_stream, leave])
def test_ctrl_c_in_a_wake_is_raised_by_what_wakes(
    waking: Callable[[Subscription, Run], None],
) -> None:
    """A Ctrl-C that comes while a reader is woken is raised when the waking is done, and the reader is woken again."""
    run, again = open_run(pending=True), threading.Event()
    subscription, wakes = run.subscribe("start"), iter([KeyboardInterrupt])

    def wake() -> None:
        for interrupt in wakes:
            raise interrupt
        again.set()

    assert subscription._wake_when_readable(wake)
    with pytest.raises(KeyboardInterrupt):
        waking(subscription, run)
    waited(again)
    assert (run.state == "running") is (waking is start)
    assert subscription.ended is (waking is not start)
    # Raised once.
    subscription.close()
    run.complete()


def test_ctrl_c_reaches_a_reader_that_waits() -> None:
    """Ctrl-C interrupts a wait for events, in each way to read, and loses no event."""
    code = """
        import _thread, signal, threading, time
        from llm_callback import open_run

        # A shell that runs the tests in the background has the signal ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        run = open_run()
        subscription = run.subscribe("start")
        subscription.read()
        for read in (subscription.read, lambda: next(subscription), lambda: next(subscription.sse())):
            def interrupt():
                time.sleep(0.002)
                while "being read" not in repr(subscription):
                    time.sleep(0.002)
                _thread.interrupt_main()
            thread = threading.Thread(target=interrupt)
            thread.start()
            try:
                read()
            except KeyboardInterrupt:
                print("interrupted")
            thread.join()
            run.emit("llm", "stream", {"content": "x"})
            assert len(subscription.read()) == 1
        run.complete()
    """
    assert printed(code).split() == ["interrupted"] * 3


# --- Server-sent events ---

TEXTS = [
    "",
    " ",
    "\n",
    "\r",
    "\r\n",
    "\n\r",
    "\n\n",
    "data: x\n\nid: 1\nevent: y\n",
    ": comment",
    "\0",
    "a\0b",
    "\u2028\u2029\x85\x0b\x0c\x1c",
    "\ufeff",
    "\ud800",
    "\udfff\ud800",
    "a\udcffb",
    "\ud83d\ude00",
    "😀",
    '"\\/\b\f\t',
    "</script>",
    "\x7f\x80\xff",
    "\U0010ffff",
    "\n\r\u2028\ud800" * 10_000,
]


@pytest.mark.parametrize("content", TEXTS, ids=range(len(TEXTS)))
def test_sse_carries_every_text(content: str) -> None:
    """Parsed by two independent parsers, what SSE sends is the event that iteration gives, whatever the text."""
    context = CallerContext("id", AgentType.WORKER, content, None)
    with open_run(note=content) as run:
        say(run, content, context)
        run.handler(context)(data=content or " ")
        run.complete(result=content, **{content: 1})
    events = read_to_the_end(run.subscribe("start"))
    stream = b"".join(run.subscribe("start").sse())
    assert b"\r" not in stream
    messages = parse(stream)
    ids = [message.last_event_id for message in messages]
    assert ids == [event["id"] for event in events]
    assert {message.event for message in messages} == {"message"}
    assert [json.loads(message.data) for message in messages] == events
    assert parse_with_httpx(stream) == messages
    # Two halves of a character are that character, once they were JSON.
    whole = json.loads(json.dumps(content))
    assert events[0]["data"] == {"note": whole}
    assert events[1]["data"] == {"content": whole}
    assert events[1]["source"]["agent_name"] == whole
    assert events[2]["data"] == {"content": whole or " "}
    assert events[3]["data"] == {"result": whole, whole: 1}


@pytest.mark.parametrize("piece", ["x", "é😀", "\n\u2028\ud800"])
def test_sse_carries_long_text(piece: str) -> None:
    """A text of ten megabytes goes through SSE and iteration as it is."""
    content = piece * (10_000_000 // len(json.dumps(piece)))
    run = open_run()
    say(run, content)
    subscription = run.subscribe("start")
    # One frame at a time: each of them is more than a chunk holds, or too much for what is left of it.
    chunks = run.subscribe("start").sse()
    stream = next(chunks) + next(chunks)
    events = subscription.read()
    run.complete()
    # As flags: pytest would print megabytes.
    is_same = [events_of(stream) == events, parse_with_httpx(stream) == parse(stream)]
    assert (len(events), is_same, text(events) == content) == (2, [True, True], True)


@pytest.mark.thread_unsafe(reason="a number is one run's id at a time")
@pytest.mark.parametrize("run_id", ["\n\nid: 5", "\0", "\u2028", "r" * 5_000, "é😀", -(2**60)])
def test_sse_carries_every_run_id(run_id: str | int) -> None:
    """A run's id goes through SSE as it is, whatever it holds."""
    run_id = run_id + new_id() if isinstance(run_id, str) else run_id
    with open_run(run_id) as run:
        say(run)
    stream = b"".join(run.subscribe("start").sse())
    assert [event["run_id"] for event in events_of(stream)] == [run_id] * 3
    assert parse_with_httpx(stream) == parse(stream)


def test_sse_comes_in_whole_frames() -> None:
    """Each piece of a stream is one or more whole frames, so that each can be parsed by itself."""
    run = open_run()
    stream, events = run.subscribe("start").sse(), []
    for number in range(1_000):
        say(run, f"{number}\n")
    run.complete()
    for chunk in stream:
        assert chunk.endswith(b"\n\n")
        events += events_of(chunk)
    assert numbers(events) == list(range(1, 1_003))


def test_sse_is_parsed_however_it_is_cut() -> None:
    """Cut anywhere, also within a character, the stream gives the same messages."""
    with open_run() as run:
        say(run, "é😀\u2028")
    stream = b"".join(run.subscribe("start").sse(retry=5))
    for size in (1, 2, 3, 7):
        parser = SseParser()
        pieces = [stream[place : place + size] for place in range(0, len(stream), size)]
        assert [message for piece in pieces for message in parser.push(piece)] == parse(stream)
        assert parser.retry == 5


def test_a_quiet_stream_has_heartbeats() -> None:
    """Where nothing comes, a stream gives comments, which parsers skip; events come between them."""
    run = open_run()
    stream = run.subscribe().sse(heartbeat=0.001)
    parser, got = SseParser(), []
    for number in range(3):
        assert [next(stream) for _ in range(2)] == [b": heartbeat\n"] * 2
        assert parser.push(b": heartbeat\n") == []
        say(run, str(number))
        while not (messages := parser.push(next(stream))):
            pass
        got += [json.loads(message.data) for message in messages]
    run.complete()
    rest = [message for chunk in stream for message in parser.push(chunk)]
    assert text(got) == "012"
    assert len(rest) == 1
    assert set(parser.comments) == {" heartbeat"}


def test_without_heartbeat_a_stream_waits() -> None:
    """With `heartbeat=None` a stream gives nothing but frames."""
    run = open_run()
    subscription = run.subscribe()
    reader = Running(lambda: list(subscription.sse(heartbeat=None)))
    being_read(subscription)
    run.complete()
    assert [kinds(events_of(chunk)) for chunk in reader.result()] == [["lifecycle.completed"]]


def test_the_retry_line_comes_first() -> None:
    """With `retry`, and only then, the first piece tells the client when to connect again."""
    with open_run() as run:
        pass
    for retry in (0, 1, 3_000, 2**64 - 1):
        stream = run.subscribe("start").sse(retry=retry)
        assert next(stream) == f"retry: {retry}\n".encode()
        parser = SseParser()
        assert len(parser.push(b"".join(run.subscribe("start").sse(retry=retry)))) == 2
        assert parser.retry == retry
    assert b"retry" not in b"".join(run.subscribe("start").sse())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"heartbeat": 0}, ValueError),
        ({"heartbeat": -1}, ValueError),
        ({"heartbeat": float("nan")}, ValueError),
        ({"heartbeat": float("-inf")}, ValueError),
        ({"heartbeat": "15"}, TypeError),
        ({"retry": "5"}, TypeError),
        ({"retry": 1.5}, TypeError),
        *(
            pytest.param(
                {"retry": retry},
                ValueError,
            )
            for retry in (-1, 2**64)
        ),
    ],
)
def test_stream_options_that_cannot_be_are_refused(
    options: dict[str, Any], error: type[Exception]
) -> None:
    """What is no heartbeat or no time to retry raises, and the subscription goes on."""
    with open_run() as run:
        subscription = run.subscribe("start")
        with pytest.raises(error):
            subscription.sse(**options)
    assert len(read_to_the_end(subscription)) == 2


def test_a_heartbeat_may_be_without_end() -> None:
    """A heartbeat that no clock can hold never comes."""
    with open_run() as run:
        pass
    for heartbeat in (float("inf"), 1e300, 1e18, sys.float_info.max):
        assert len(events_of(b"".join(run.subscribe("start").sse(heartbeat)))) == 2


def test_a_gap_has_no_id_line(overrun: Callable[[Run], None]) -> None:
    """A client that loses its connection right behind a gap asks again for what it asked, and is told again."""
    run = open_run()
    ids = [say(run) for _ in range(3)]
    overrun(run)
    run.complete()
    stream = b"".join(run.subscribe(ids[1]).sse())
    first, second, *_ = messages = parse(stream)
    gap = json.loads(first.data)
    assert gap["data"]["requested"] == ids[1]
    assert first.last_event_id == ""
    assert second.last_event_id == gap["data"]["oldest"]
    assert parse_with_httpx(stream) == messages
    again = json.loads(parse(next(run.subscribe(ids[1]).sse()))[0].data)
    assert again["data"] == gap["data"]


def test_a_lagged_stream_raises(overrun: Callable[[Run], None]) -> None:
    """A stream whose reader is too slow raises SubscriberLagged, as iteration does, and then has ended."""
    run = open_run()
    stream = run.subscribe("start").sse(retry=1)
    overrun(run)
    assert next(stream) == b"retry: 1\n"
    with pytest.raises(SubscriberLagged):
        next(stream)
    assert list(stream) == []
    run.complete()


def test_the_log_holds_what_it_says() -> None:
    """A log holds its latest 10 000 events, its first and its last; of large ones 16 MiB, and the newest."""
    run = open_run()
    for number in range(2, HELD + 1):
        say(run, str(number))
    assert numbers(run.subscribe("start").read(10**6)) == list(range(1, HELD + 1))
    say(run)
    assert numbers(run.subscribe("start").read(10**6)) == list(range(1, HELD + 2))
    say(run)
    subscription = run.subscribe("start")
    assert checked(subscription.read(10**6), after=0) == subscription.lost == 1
    run.complete()

    run = open_run()
    say(run, "small")
    say(run, 17 * MEBIBYTE)
    events = run.subscribe("start").read(10**6)
    assert [event["sequence"] for event in events] == [1, 2, 3]
    assert kind(events[1]) == "stream.gap"
    assert text(events[2:]) == 17 * MEBIBYTE
    run.complete()
