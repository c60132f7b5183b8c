"""Settings of the process and what they bound: logs, ended runs, readers, live runs, annotations, children."""

from __future__ import annotations

import gc
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from llm_callback import ParentNotLive, RunCancelled, configure, get_run, open_run, stats
from readers import checked, events_of, kinds, numbers, say
from scripts import forks, needs_fork, script
from support import DEADLINE, events, new_id, raised_by, said, together

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llm_callback import Run

pytestmark = pytest.mark.thread_unsafe(reason="settings and stats() are the whole process's")

# As the signature of configure() shows them.
DEFAULTS: dict[str, Any] = {
    "route": "handler",
    "log_events": 10_000,
    "log_bytes": 16 << 20,
    "keep_seconds": 300.0,
    "keep_runs": 1_000,
    "keep_bytes": 256 << 20,
    "max_live": None,
}


@pytest.fixture(scope="module", autouse=True)
def _no_reader_of_an_earlier_test() -> None:
    """Collect the readers that tests of other files left in cycles: what they have still to read counts in stats()."""
    gc.collect()


@pytest.fixture(autouse=True)
def _settings_are_restored() -> Iterator[None]:
    yield
    configure(**DEFAULTS)


def finished(number: int = 10, content: str = "x") -> Run:
    """Return a run that has said so much and is completed."""
    with open_run() as run:
        for _ in range(number):
            say(run, content)
    return run


# --- Each setting ---


def test_log_events_bounds_the_logs_of_later_runs() -> None:
    """A log holds so many events besides its first and its last; logs of runs that were open stay as they were."""
    before = open_run()
    configure(log_events=5)
    run = open_run()
    for each in (before, run):
        for number in range(20):
            say(each, str(number))
    held = [event for event in events(run) if event["event"]["action"] == "stream"]
    assert numbers(held) == [17, 18, 19, 20, 21]
    assert len(events(before)) == 21
    assert run.complete()
    told = events(run)
    assert kinds(told)[0] == "lifecycle.started"
    assert kinds(told)[-1] == "lifecycle.completed"
    assert checked(told, after=0) == 15
    before.complete()


def test_log_bytes_bounds_the_logs_of_later_runs() -> None:
    """A log holds so many bytes of encoded events, and the newest event whatever its size."""
    configure(log_bytes=10_000)
    run = open_run()
    for _ in range(100):
        say(run, "x" * 1_000)
    held = [event for event in events(run) if event["event"]["action"] == "stream"]
    assert 1 <= len(held) <= 10
    say(run, "x" * 100_000)
    assert len(events(run)[-1]["data"]["content"]) == 100_000
    assert run.complete()
    assert checked(events(run), after=0) == 100


@pytest.mark.parametrize("seconds", [0, 0.0, -1, -(10**400), 1e-9])
def test_keep_seconds_is_how_long_a_run_is_found(seconds: float) -> None:
    """Of a run that is kept no longer nothing is found, its bytes neither, though its object lives."""
    kept = finished()
    configure(keep_seconds=seconds)
    run = finished()
    assert get_run(kept.run_id) is None
    assert get_run(run.run_id) is None
    assert (stats()["runs"]["finished"], stats()["runs"]["finished_bytes"]) == (0, 0)
    assert run.state == kept.state == "completed"


@pytest.mark.parametrize("seconds", [60, 1e300, float("inf"), 10**400])
def test_keep_seconds_may_be_without_end(seconds: float) -> None:
    """A run is found, and read, until another bound is reached."""
    configure(keep_seconds=seconds)
    run = finished()
    assert get_run(run.run_id) == run
    configure(keep_runs=0)
    assert get_run(run.run_id) is None


def test_keep_runs_is_how_many_runs_are_found() -> None:
    """The latest so many are found; a smaller number forgets at once, the oldest first."""
    configure(keep_runs=5)
    runs = [finished(1) for _ in range(10)]
    assert [get_run(run.run_id) for run in runs] == [None] * 5 + runs[5:]
    configure(keep_runs=2)
    assert [get_run(run.run_id) for run in runs] == [None] * 8 + runs[8:]
    configure(keep_runs=0)
    assert stats()["runs"]["finished"] == 0


def test_keep_bytes_bounds_the_events_of_ended_runs() -> None:
    """All runs that are found hold at most so many bytes, which stats() shows; the oldest are forgotten first."""
    configure(keep_bytes=100_000)
    runs = []
    for _ in range(30):
        runs.append(finished(10, "x" * 1_000))
        assert stats()["runs"]["finished_bytes"] <= 100_000
    found = [get_run(run.run_id) for run in runs]
    kept = [run for run in found if run is not None]
    assert 0 < len(kept) < 10
    assert found == [None] * (30 - len(kept)) + runs[-len(kept) :]
    assert stats()["runs"]["finished"] == len(kept)
    before = stats()["runs"]["finished_bytes"]
    assert before > 10_000 * len(kept)
    configure(keep_bytes=before - 1)
    assert stats()["runs"]["finished"] == len(kept) - 1
    configure(keep_bytes=0)
    assert (stats()["runs"]["finished"], stats()["runs"]["finished_bytes"]) == (0, 0)
    assert get_run(finished().run_id) is None


def test_max_live_is_how_many_runs_are_live() -> None:
    """One more is a RuntimeError that says how many; when one has ended, or without the bound, it opens."""
    script(
        """
m.configure(max_live=3)
parent = open_run("1")
runs = [parent, open_run("2", parent=parent), open_run("3", pending=True)]
for options in ({}, {"parent": parent}, {"pending": True}, {"deadline": 0}):
    opened = stats()["runs"]["opened"]
    try:
        open_run("4", **options)
    except RuntimeError as error:
        assert str(error) == (
            "3 runs are live, and max_live allows no more: open this one when another has ended"), error
    else:
        raise AssertionError(options)
    assert stats()["runs"]["opened"] == opened
    assert m.get_run("4") is None
runs[2].cancel()
again = open_run("4")
m.configure(max_live=1)
assert len(active_runs()) == 3
m.configure(max_live=None)
more = [open_run() for _ in range(100)]
m.configure(max_live=2**64 - 1)
open_run()
"""
    )


def test_max_live_holds_against_many_threads() -> None:
    """However many threads open runs at once, no more than so many are live, and each that ends makes room for one."""
    live = stats()["runs"]["live"]
    configure(max_live=live + 3)

    def opens() -> int:
        opened = 0
        for _ in range(200):
            try:
                run = open_run()
            except RuntimeError:
                continue
            assert stats()["runs"]["live"] <= live + 3
            run.complete()
            opened += 1
        return opened

    assert sum(together([opens] * 8)) > 0
    runs = [open_run() for _ in range(3)]
    with pytest.raises(RuntimeError, match="max_live allows no more"):
        open_run()
    for run in runs:
        run.complete()


INVALID: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"route": "x"}, ValueError, 'not "x"'),
    ({"route": None}, TypeError, "not None"),
    *[
        ({name: value}, error, told)
        for name in ("log_events", "log_bytes", "keep_runs", "keep_bytes", "max_live")
        for value, error, told in (
            (-1, ValueError, "-1"),
            (2**64, ValueError, str(2**64)),
            (1.5, TypeError, "1.5"),
            ("5", TypeError, "'5'"),
        )
    ],
    ({"log_events": 0}, ValueError, "not 0"),
    ({"log_bytes": 0}, ValueError, "not 0"),
    ({"max_live": 0}, ValueError, "not 0"),
    ({"log_events": None}, TypeError, "not None"),
    ({"keep_runs": None}, TypeError, "not None"),
    ({"keep_seconds": None}, ValueError, "not None"),
    ({"keep_seconds": "5"}, TypeError, "not '5'"),
    ({"keep_seconds": float("nan")}, ValueError, "not nan"),
]


@pytest.mark.parametrize(("invalid", "error", "told"), INVALID, ids=str)
def test_what_cannot_be_set_changes_nothing(
    invalid: dict[str, Any], error: type[Exception], told: str
) -> None:
    """It is an error with the setting's name and its value, and no setting beside it is changed."""
    others = {"route": "strict", "log_events": 1, "keep_runs": 0, "keep_bytes": 0, "max_live": 1}
    for options in ({**others, **invalid}, {**invalid, **others, **invalid}):
        with pytest.raises(error) as caught:
            configure(**options)
        assert told in str(caught.value)
        assert next(iter(invalid)) in str(caught.value)
        runs = [open_run() for _ in range(2)]
        for run in runs:
            for _ in range(5):
                say(run)
            assert run.complete()
        assert [len(events(run)) for run in runs] == [7, 7]
        assert [get_run(run.run_id) for run in runs] == runs


def test_what_is_not_given_stays() -> None:
    """Each call changes what it names, and nothing by position or of another name."""
    configure(keep_runs=3)
    configure(log_events=2)
    configure()
    runs = [finished(1) for _ in range(5)]
    assert [get_run(run.run_id) is None for run in runs] == [True, True, False, False, False]
    with pytest.raises(TypeError):
        configure("handler")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        configure(keep=1)  # type: ignore[call-arg]


class Interfering:
    """A number that changes another setting while it is looked at, as another thread may."""

    def __float__(self) -> float:
        configure(keep_runs=0)
        return 300.0


def test_settings_that_change_at_once_are_both_changed() -> None:
    """A call that comes while another is under way, as from another thread, is not undone by it."""
    configure(keep_seconds=Interfering())  # type: ignore[arg-type]
    assert get_run(finished().run_id) is None


def test_threads_that_change_settings_at_once_change_them_all() -> None:
    """Each thread's own setting holds when its call has returned."""
    for number in range(200):
        configure(**DEFAULTS)
        together([partial(configure, keep_runs=number % 2), partial(configure, log_events=1)])
        run = finished(5)
        assert len(events(run)) < 7
        assert (get_run(run.run_id) is None) is (number % 2 == 0)


@needs_fork
def test_a_child_keeps_the_settings() -> None:
    """The child of a fork has what the parent has set, and what it sets itself is its own."""
    forks(
        """
m.configure(log_events=3, keep_runs=1, max_live=2)
def child():
    runs = [open_run(), open_run()]
    raises(RuntimeError, open_run)
    for run in runs:
        for _ in range(20):
            run.emit("llm", "stream", {})
        assert len(contents(run)) <= 5, contents(run)
        run.complete()
    assert stats()["runs"]["finished"] == 1
    m.configure(max_live=None, log_events=100, keep_runs=100)
    more = [open_run() for _ in range(50)]
in_child(child)
runs = [open_run(), open_run()]
raises(RuntimeError, open_run)
"""
    )


# --- What stats() shows ---


def test_stats_show_the_oldest_live_run() -> None:
    """``oldest`` names the live run that was opened first, and when; without a live run it is None."""
    script(
        """
assert stats()["runs"]["oldest"] is None
before = time.time()
runs = [open_run(7), open_run("second", pending=True), open_run("third")]
oldest = stats()["runs"]["oldest"]
assert oldest["run_id"] == 7 and set(oldest) == {"run_id", "opened_at"}
assert before - 0.01 <= oldest["opened_at"] <= time.time()
runs[0].complete()
assert stats()["runs"]["oldest"]["run_id"] == "second"
assert stats()["runs"]["oldest"]["opened_at"] >= oldest["opened_at"]
runs[2].complete()
assert stats()["runs"]["oldest"]["run_id"] == "second"
runs[1].cancel()
assert stats()["runs"]["oldest"] is None
"""
    )


def test_stats_show_the_readers() -> None:
    """They are the open subscriptions, also of forgotten runs, and the events that the slowest has still to read."""
    script(
        """
def readers():
    return stats()["readers"]
assert readers() == {"open": 0, "lag": 0}
run = open_run()
slow, fast = run.subscribe("start"), run.subscribe()
assert readers() == {"open": 2, "lag": 1}
for _ in range(10):
    run.emit("llm", "stream", {})
fast.read(100, 0)
assert readers() == {"open": 2, "lag": 11}
slow.read(4, 0)
assert readers() == {"open": 2, "lag": 7}
run.complete()
assert readers() == {"open": 2, "lag": 8}
m.configure(keep_runs=0)
assert m.get_run(run.run_id) is None
assert readers() == {"open": 2, "lag": 8}
assert len(slow.read(100, 0)) == 8
assert readers()["lag"] == 1
slow.close()
del fast
gc.collect()
assert readers() == {"open": 0, "lag": 0}
"""
    )


# --- What readers hold ---


def test_readers_of_forgotten_runs_hold_bounded_bytes() -> None:
    """Readers that do not read hold at most keep_bytes of runs that are forgotten; each still reads its run's end."""
    configure(keep_runs=0, keep_bytes=200_000)
    readers = []
    for _ in range(40):
        run = open_run()
        readers.append((run.run_id, run.subscribe("start", overflow="gap")))
        for _ in range(20):
            say(run, "x" * 1_000)
        run.complete()
        del run
        assert stats()["runs"]["finished_bytes"] <= 200_000
    assert stats()["runs"]["finished"] == 0
    assert stats()["runs"]["finished_bytes"] > 100_000
    whole = 0
    for run_id, reader in readers:
        told = reader.read(1_000, DEADLINE)
        assert {event["run_id"] for event in told} == {run_id}
        assert (kinds(told)[0], kinds(told)[-1]) == ("lifecycle.started", "lifecycle.completed")
        whole += checked(told, after=0) == 0
        assert reader.ended
    assert 5 <= whole < 12
    assert stats()["runs"]["finished_bytes"] < 1_000 * 40


def test_a_reader_of_a_forgotten_run_lets_go_of_what_it_has_read() -> None:
    """What a reader has still to read of a forgotten run counts, until it is read or the reader is closed."""
    configure(keep_runs=0)
    before = stats()["runs"]["finished_bytes"]
    run = open_run()
    readers = [run.subscribe("start") for _ in range(2)]
    for _ in range(20):
        say(run, "x" * 1_000)
    run.complete()
    held = stats()["runs"]["finished_bytes"] - before
    assert held > 20_000
    assert len(readers[0].read(1_000, DEADLINE)) == 22
    assert stats()["runs"]["finished_bytes"] - before == held
    assert len(readers[1].read(12, DEADLINE)) == 12
    assert stats()["runs"]["finished_bytes"] - before < 0.6 * held
    readers[1].close()
    assert stats()["runs"]["finished_bytes"] - before < 2_000


@pytest.mark.parametrize("size", [10, 1_000, 30_000, 61_000, 70_000])
def test_a_chunk_of_a_stream_is_bounded(size: int) -> None:
    """Server-sent events come in chunks of 64 KiB at most, or of one event; together they are whole."""
    run = open_run()
    for _ in range(50):
        say(run, "x" * size)
    run.complete()
    chunks = list(run.subscribe("start").sse())
    for chunk in chunks:
        assert len(chunk) <= 64 << 10 or len(events_of(chunk)) == 1
    assert events_of(b"".join(chunks)) == events(run)


# --- Annotations ---


def test_annotations_are_bounded() -> None:
    """They hold 64 KiB of JSON; more is a ValueError that says so, and leaves those that are there."""
    run = open_run()
    assert run.annotate(kept="x" * 60_000)
    for size in (10_000, 70_000, 10_000_000):
        with pytest.raises(ValueError, match="the annotations of a run hold at most 65536 bytes"):
            run.annotate(more="y" * size)
    assert run.annotate(small=1)
    assert run.annotate(kept="z" * 60_000)
    run.complete()
    assert events(run)[-1]["data"] == {"kept": "z" * 60_000, "small": 1}
    exact = open_run()
    over = 64 * 1_024 - len(json.dumps({"a": ""}, separators=(",", ":")))
    with pytest.raises(ValueError, match="not 65537"):
        exact.annotate(a="x" * (over + 1))
    assert exact.annotate(a="x" * over)
    exact.complete()
    assert len(events(exact)[-1]["data"]["a"]) == over


# --- Children ---

ENDS: dict[str, Callable[[Run], object]] = {
    "completed": lambda run: run.complete(),
    "failed": lambda run: run.fail("on purpose"),
    "cancelled": lambda run: (run.cancel("enough"), run.complete()),
    "emitted": lambda run: run.emit("lifecycle", "completed", {}),
    "block": lambda run: run.__exit__(None, None, None),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
def test_the_end_of_a_run_cancels_what_is_below(end: Callable[[Run], object]) -> None:
    """However a run ends, its children are cancelled in its name, and theirs, but those that are detached."""
    parent = open_run()
    child = open_run(parent=parent)
    below = open_run(parent=child)
    pending = open_run(parent=parent, pending=True)
    detached = open_run(parent=parent.run_id, detached=True)
    under = open_run(parent=detached)
    end(parent)
    was_cancelled = parent.state == "cancelled"
    for run in (child, below, pending):
        assert run.token.is_set()
        assert run.token.kind == "parent"
    assert pending.state == "cancelled"
    assert kinds(events(pending)) == ["lifecycle.cancelled"]
    # A cancel of the live parent reaches it; the end of the parent does not.
    assert detached.token.is_set() is was_cancelled
    assert under.token.is_set() is was_cancelled
    for run in (below, child, under, detached):
        assert run.state == "running"
        run.complete()
    assert said(child)[-1][0] == "lifecycle.cancelled"
    assert said(child)[-1][1]["kind"] == "parent"
    assert detached.state == ("cancelled" if was_cancelled else "completed")
    assert detached.parent_run_id == parent.run_id


def test_children_of_a_run_that_has_ended_do_not_open() -> None:
    """Nothing opens below an ended run, detached or not; below a cancelled one that lives RunCancelled says why."""
    run = finished()
    for options in ({}, {"detached": True}, {"pending": True}):
        error = raised_by(lambda options=options: open_run(parent=run, **options))
        assert type(error) is ParentNotLive
        assert str(run.run_id) in str(error)
    live = open_run()
    live.cancel("enough")
    for detached in (False, True):
        with pytest.raises(RunCancelled) as caught:
            open_run(parent=live, detached=detached)
        assert caught.value.reason == "enough"
    live.complete()


def test_parents_that_end_while_children_open() -> None:
    """Of children that many threads open below a run that ends, each was refused, or is cancelled in its name."""
    for _ in range(100):
        parent = open_run()
        opened: list[Run] = []

        def opens(parent: Run = parent, opened: list[Run] = opened) -> None:
            for _ in range(20):
                try:
                    opened.append(open_run(parent=parent))
                except (RuntimeError, RunCancelled):  # noqa: PERF203 - each may be refused
                    return

        together([opens, opens, opens, parent.complete])
        for child in opened:
            assert child.token.wait(DEADLINE)
            assert child.token.kind == "parent"
            child.complete()


def test_a_child_that_ends_with_its_parent_is_let_go_of() -> None:
    """Children that end before their parent, or are detached, leave nothing behind in it."""
    live = stats()["runs"]["live"]
    with open_run(new_id()) as parent:
        for number in range(100):
            open_run(parent=parent, detached=number % 2 == 0).complete()
        assert stats()["runs"]["live"] == live + 1
    assert stats()["runs"]["live"] == live
