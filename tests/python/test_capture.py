"""Captured output: whose line it is, what the streams stay, and what is left when it ends."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import threading
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from llm_callback import (
    bind,
    capture,
    capture_output,
    open_run,
    register_event_callback,
    set_current_run_id,
    stats,
)
from support import Running, events, new_id, printed, said, together, waited

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from llm_callback import Run

pytestmark = pytest.mark.thread_unsafe(reason="sys.stdout is the whole process's")


@pytest.fixture(autouse=True)
def out(request: pytest.FixtureRequest) -> io.StringIO:
    """Give the test streams of its own; after it they are in place as before, and nothing is kept."""
    out, err = io.StringIO(), io.StringIO()
    test = request.function

    # Around the call alone: pytest puts streams in place before and after it.
    def run(**arguments: Any) -> None:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            test(**arguments)
            set_current_run_id(None)
            assert capture._active == 0
            assert capture._lines == {}
            assert (sys.stdout, sys.stderr) == (out, err)

    request.node.obj = run
    return out


def lines(run: Run, stream: str = "stdout") -> list[str]:
    """Return the lines that the run is told to have printed."""
    return [
        data["text"]
        for name, data in said(run)
        if name == "system.output" and data["stream"] == stream
    ]


def write(run: Run, text: str, stream: str = "stdout") -> None:
    """Write under the run."""
    run.bind(lambda: getattr(sys, stream).write(text))()


# --- Whose a line is ---


def test_a_line_is_an_event_of_the_current_run(out: io.StringIO) -> None:
    """Every line goes to its stream as ever, and is an event with the stream's name and the text without its end."""
    with capture_output(), open_run(new_id()) as run:
        set_current_run_id(run.run_id)
        print("one", 2, sep="; ")
        print("first\nsecond\n\nlast")
        print("wrong", file=sys.stderr)
        sys.stdout.writelines(["a\n", "b", "c\n"])
        assert sys.stdout.write("four\n") == 5
    assert out.getvalue() == "one; 2\nfirst\nsecond\n\nlast\na\nbc\nfour\n"
    assert sys.stderr.getvalue() == "wrong\n"  # type: ignore[attr-defined]
    assert lines(run) == ["one; 2", "first", "second", "", "last", "a", "bc", "four"]
    assert lines(run, "stderr") == ["wrong"]
    assert events(run)[1]["source"] is None


def test_without_an_open_run_a_line_goes_to_the_stream_only(out: io.StringIO) -> None:
    """So it is without a current run, and with one that is not open, not begun, has ended, or cannot be one."""
    pending, ended = open_run(new_id(), pending=True), open_run(new_id())
    ended.complete()
    late = stats()["runs"]["late"]
    with capture_output():
        for run_id in [
            None,
            new_id(),
            pending.run_id,
            ended.run_id,
            [],
            2.5,
            True,
            2**80,
            object(),
        ]:
            set_current_run_id(run_id)
            print("line")
            print("piece", end="")
    assert out.getvalue() == "line\npiece" * 9
    assert pending.state == "pending"
    assert len(events(ended)) == 2
    assert stats()["runs"]["late"] == late


def test_each_run_hears_its_own_lines_and_each_thread_writes_whole_ones(out: io.StringIO) -> None:
    """Of eight runs with two threads each, every run has all lines of its threads, each whole, and no other's."""
    runs = [open_run(new_id()) for _ in range(8)]

    def job(number: int, thread: int) -> None:
        for count in range(50):
            # print() writes the text and its end apart.
            print(f"run {number} thread {thread}", "line", count, file=sys.stdout)

    with capture_output():
        together([run.bind(partial(job, n, t)) for n, run in enumerate(runs) for t in range(2)])
    for number, run in enumerate(runs):
        run.complete()
        for thread in range(2):
            mine = [line for line in lines(run) if f"thread {thread}" in line]
            assert mine == [f"run {number} thread {thread} line {count}" for count in range(50)]
        assert len(lines(run)) == 100
    assert out.getvalue().count("line") == 800


# --- What is no whole line ---

ENDS: dict[str, Callable[[Run], Any]] = {
    "complete": lambda run: run.complete(),
    "fail": lambda run: run.fail("x"),
    "emit": lambda run: run.emit("lifecycle", "completed", {}),
    "cancel": lambda run: (run.cancel(), run.complete()),
    "block": lambda run: run.__exit__(None, None, None),
    "error": lambda run: run.__exit__(LookupError, LookupError(), None),
    "stopped": lambda run: run.__exit__(SystemExit, SystemExit(), None),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
def test_what_is_no_whole_line_is_an_event_before_the_end(end: Callable[[Run], Any]) -> None:
    """Whichever way a run ends, the last it has printed is the event before its last one; nothing is kept."""
    with capture_output():
        run, other = open_run(new_id()), open_run(new_id())
        write(run, "a\nrest")
        write(run, "warning", "stderr")
        write(other, "else")
        end(run)
        assert lines(run) == ["a", "rest"]
        assert lines(run, "stderr") == ["warning"]
        assert said(run)[-1][0].startswith("lifecycle.")
        assert len(said(run)) == 5
        assert lines(other) == []
        assert len(capture._lines) == 1
        other.complete()


def test_the_last_capture_takes_what_is_no_whole_line() -> None:
    """It is one event then; the end of another capture leaves the line under way."""
    first, second = capture_output(), capture_output()
    with open_run(new_id()) as run:
        write(run, "a")
        first.stop()
        write(run, "b")
        assert lines(run) == []
        second.stop()
        assert lines(run) == ["ab"]
        write(run, "unheard\n")
    assert lines(run) == ["ab"]


def test_a_line_that_never_ends_comes_in_pieces(out: io.StringIO) -> None:
    """No event has more than 65 536 characters, together they are what was written, and one of that length is whole."""
    with capture_output(), open_run(new_id()) as run:
        text = "".join(str(number) for number in range(50_000))
        for start in range(0, len(text), 1_000):
            write(run, text[start : start + 1_000])
            assert sum(line.length for line in capture._lines.values()) <= 65_536
        write(run, "\n" + "x" * 65_536 + "\n" + text)
    heard = lines(run)
    assert max(map(len, heard)) == 65_536
    assert heard.count("x" * 65_536) == 1
    assert "".join(heard) == out.getvalue().replace("\n", "")


def test_lines_under_way_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many of them become events as they are, and those of runs that nobody can end any more go."""
    monkeypatch.setattr(capture, "_MOST", 10)
    with capture_output():
        run = open_run(new_id())
        write(run, "open")
        for _ in range(50):
            write(open_run(new_id()), "dropped")
            assert len(capture._lines) <= 10
        assert lines(run) == ["open"]
        run.complete()


def test_a_thread_that_prints_while_its_run_ends_leaves_nothing() -> None:
    """Pieces of lines that come before, at and after the end of a run are events or dropped, and none is kept."""
    with capture_output():
        for _ in range(100):
            run = open_run(new_id())
            together([partial(write, run, "piece"), run.complete])
            assert said(run)[-1][0] == "lifecycle.completed"
            assert lines(run) in ([], ["piece"])
            assert capture._lines == {}


# --- The streams ---


def test_captures_end_in_any_order(out: io.StringIO) -> None:
    """Output is captured until the last has ended, whichever that is; ending one twice ends no other."""
    captures = [capture_output() for _ in range(3)]
    proxy = sys.stdout
    for order in [(0, 0, 2), (1,)]:
        with open_run(new_id()) as run:
            write(run, "line\n")
            assert sys.stdout is proxy
            assert lines(run) == ["line"]
        for number in order:
            captures[number].stop()
    assert sys.stdout is out
    with capture_output() as again:
        again.stop()
        assert sys.stdout is out


def test_a_stream_that_others_put_in_place_stays(out: io.StringIO) -> None:
    """The end of the last capture leaves another's stream alone, and our proxy below it passes all on."""
    taken = capture_output()
    proxy = sys.stdout
    with contextlib.redirect_stdout(io.StringIO()) as other, open_run(new_id()) as run:
        write(run, "other\n")
        taken.stop()
        assert sys.stdout is other
    assert sys.stdout is proxy
    print("passed on")
    assert out.getvalue() == "passed on\n"
    assert other.getvalue() == "other\n"
    assert lines(run) == []
    # The next one finds it there.
    with capture_output():
        assert sys.stdout is proxy
    assert sys.stdout is out


class Wrapper:
    """A stream around a stream, as programs put there that colour their output."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        return self.stream.write(f"<{text}>")


def test_a_wrapped_proxy_and_another_on_top_tell_a_line_once(out: io.StringIO) -> None:
    """Where somebody has wrapped ours, a later capture sees what is written first, and no line comes twice."""
    first = capture_output()
    wrapper = Wrapper(sys.stdout)
    sys.stdout = wrapper  # type: ignore[assignment]
    with capture_output(), open_run(new_id()) as run:
        write(run, "line\n")
        assert lines(run) == ["line"]
    first.stop()
    assert sys.stdout is wrapper
    assert out.getvalue() == "<line\n>"
    sys.stdout = out


def test_a_proxy_is_otherwise_the_stream(tmp_path: Path) -> None:
    """Its attributes, its class to isinstance(), its iterator and its `with` are those of the stream, to write too."""
    path = tmp_path / "out.txt"
    with (
        path.open("w+", encoding="latin-1", errors="replace", newline="\n") as file,
        contextlib.redirect_stdout(file),
        capture_output(),
    ):
        proxy: Any = sys.stdout
        assert proxy is not file
        for name in ["encoding", "errors", "buffer", "closed", "mode", "name", "newlines"]:
            assert getattr(proxy, name) == getattr(file, name)
        assert (proxy.fileno(), proxy.isatty()) == (file.fileno(), False)
        assert isinstance(proxy, io.TextIOWrapper)
        assert proxy.flush() is None
        assert dir(proxy) == dir(file)
        with pytest.raises(AttributeError, match=r"TextIOWrapper.*missing"):
            _ = proxy.missing
        proxy.mark = 1
        assert file.mark == 1  # type: ignore[attr-defined]
        del proxy.mark
        assert not hasattr(file, "mark")
        proxy.reconfigure(line_buffering=True)
        assert file.line_buffering
        proxy.buffer.write(b"bytes\n")
        print("text", flush=True)
        proxy.seek(0)
        assert next(proxy) == "bytes\n"
        assert list(proxy) == ["text\n"]
        assert "latin-1" in repr(proxy)
        with proxy as entered:
            assert entered is proxy
        assert file.closed


def test_a_proxy_can_be_referred_to_weakly() -> None:
    """Who holds the stream weakly, as some loggers do, holds the proxy."""
    with capture_output():
        assert weakref.ref(sys.stdout)() is sys.stdout


def test_a_stream_that_fails_fails_as_without_us() -> None:
    """What it raises reaches who prints, and is no event; a stream that is None stays None."""
    closed = io.StringIO()
    closed.close()
    with (
        contextlib.redirect_stdout(None),
        contextlib.redirect_stderr(closed),
        capture_output(),
        open_run(new_id()) as run,
    ):
        assert sys.stdout is None
        run.bind(lambda: print("nowhere"))()
        with pytest.raises(ValueError, match="closed"):
            write(run, "line\n", "stderr")
    with capture_output(), open_run(new_id()) as other, pytest.raises(TypeError):
        write(other, 5)  # type: ignore[arg-type]
    assert lines(run) == lines(run, "stderr") == lines(other) == []


# --- Other code ---


def test_an_event_callback_may_print(out: io.StringIO) -> None:
    """What it prints about a line goes to the stream, and does not become another line."""
    with capture_output(), open_run(new_id()) as run:
        register_event_callback(run.run_id, lambda event: print("heard", event["data"]["text"]))
        write(run, "one\ntwo\nthree")
        register_event_callback(run.run_id, run.bind(lambda event: print(event["data"], end="")))
        write(run, "\n")
        register_event_callback(run.run_id, None)
    assert lines(run) == ["one", "two", "three"]
    assert out.getvalue().count("heard") == 2


def test_a_print_raises_nothing_of_a_callback(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an event callback raises goes to the hook for that, and the lines after it are events all the same."""
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)

    def fail(_event: object) -> None:
        raise LookupError

    with capture_output(), open_run(new_id()) as run:
        register_event_callback(run.run_id, fail)
        write(run, "one\ntwo\nrest")
        assert [type(each.exc_value) for each in told] == [LookupError] * 2
        assert told[0].object == run
    register_event_callback(run.run_id, None)
    assert len(told) == 3
    assert lines(run) == ["one", "two", "rest"]


@pytest.mark.parametrize("where", ["stream", "callback"])
def test_a_write_that_blocks_holds_up_nobody_else(where: str) -> None:
    """While a stream or a callback blocks, others print, start and end captures, and runs end."""
    arrived, go_on = threading.Event(), threading.Event()

    def block() -> None:
        arrived.set()
        waited(go_on)

    class Slow(io.StringIO):
        def write(self, text: str) -> int:
            if text == "slow\n":
                block()
            return super().write(text)

    def heard(event: dict[str, Any]) -> None:
        if event["data"]["text"] == "slow":
            block()

    stream = Slow() if where == "stream" else sys.stdout
    with contextlib.redirect_stdout(stream), capture_output():
        run, other = open_run(new_id()), open_run(new_id())
        if where == "callback":
            register_event_callback(run.run_id, heard)
        writing = Running(partial(write, run, "slow\n"))
        waited(arrived)

        def rest() -> None:
            with capture_output():
                write(other, "fast\npiece")
                write(run, "beside\n")
                other.complete()

        Running(rest).result()
        assert not writing.is_done
        go_on.set()
        writing.result()
        register_event_callback(run.run_id, None)
        run.complete()
    assert lines(other) == ["fast", "piece"]
    assert sorted(lines(run)) == ["beside", "slow"]


def test_a_bound_thread_is_heard() -> None:
    """A thread prints for the run that it was bound to, and for none without."""
    with capture_output(), open_run(new_id()) as run:
        set_current_run_id(run.run_id)
        bound = bind(lambda: print("bound"))
        set_current_run_id(None)
        Running(bound).result()
        Running(lambda: print("lost")).result()
    assert lines(run) == ["bound"]


def test_what_is_bound_to_an_ended_run_is_silent(out: io.StringIO) -> None:
    """It prints into no later run of its id, but where an id was set since, into the run that has that."""
    first = open_run(new_id())
    first.complete()

    def job() -> None:
        print("late")
        set_current_run_id(other.run_id)
        print("other")

    with capture_output(), open_run(first.run_id) as later, open_run(new_id()) as other:
        first.bind(job)()
        later.bind(lambda: print("later"))()
    assert (lines(first), lines(later), lines(other)) == ([], ["later"], ["other"])
    assert out.getvalue() == "late\nother\nlater\n"


# --- The process ---


def test_the_last_of_a_programs_output_is_logged(tmp_path: Path) -> None:
    """At exit what is no whole line is an event before its run is ended; the program prints as ever."""
    path = tmp_path / "events.ndjson"
    out = printed(
        """
        import os
        from llm_callback import capture_output, log_to_file, open_run, set_current_run_id
        log_to_file(os.environ["LOG"])
        capture_output()
        run = open_run("run")
        set_current_run_id("run")
        print("whole")
        print("rest", end="")
        """,
        env={"LOG": str(path)},
    )
    assert out == "whole\nrest"
    logged = [json.loads(line) for line in path.read_text().splitlines()]
    assert [event["data"].get("text") for event in logged] == [None, "whole", "rest", None]
    assert logged[-1]["event"]["action"] == "cancelled"


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="there is no fork")
def test_the_child_of_a_fork_prints() -> None:
    """A fork while another thread holds our lock and has a line under way leaves nothing of it in the child."""
    assert (
        printed(
            """
        import os, sys, threading
        from llm_callback import capture, capture_output, open_run, set_current_run_id
        taken = capture_output()
        run = open_run("run")
        set_current_run_id("run")
        sys.stdout.write("parent")
        sys.stdout.flush()
        held, go_on = threading.Event(), threading.Event()
        def hold():
            with capture._lock:
                held.set()
                go_on.wait(60)
        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(60)
        pid = os.fork()
        if pid == 0:
            print(" child", len(capture._lines))
            with capture_output(), open_run("run") as mine:
                print("heard")
            texts = [event["data"].get("text") for event in mine.subscribe("start").read()]
            os._exit(0 if texts == [None, "heard", None] and not sys.stdout.flush() else 3)
        assert os.waitpid(pid, 0)[1] == 0
        go_on.set()
        thread.join(60)
        taken.stop()
        """,
            "-W",
            "ignore::DeprecationWarning",
        )
        == "parent child 0\nheard\n"
    )
