"""Runs of their own beside the same written in Python: one table, the targets included.

    python benches/python/bench_runs.py [--quick] [--json FILE]

The baseline is ``plain_runs.py``, in the same process: a lock, a number, a bounded deque, a ``queue.Queue`` for each
reader, ``json.dumps`` in each. All sides of a line take turns (A, B, C, A, B, C …), so that whatever else the machine
does falls on all of them alike. Each round gives one ratio. A line shows the medians of the times, the ratio of these
medians, and the least favourable ratio of any round. Times are in nanoseconds. The cyclic garbage collector is off
meanwhile, as in ``timeit``.

*net* is after the empty call was taken off each side, in each round, as ``bench_dropin.py`` does: a Python object with
``__call__(self, **kwargs)`` that does nothing, called with the same 12 keyword arguments from the same loop. Ours takes
less than that, so that nothing may be left of it. *net of a C call* takes off ours what a slot of a type in C costs
that does nothing: what is left is what we do.

Readers are threads: ours iterate ``subscription.sse()``, those of the baseline take an event from their queue and
encode it. Each keeps the bytes. A delivered frame is timed from the first call of the producer until the last reader
has the last frame, by the number of all. After that the frames of each reader are counted, and the bench fails if one
is missing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import queue
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, NamedTuple

import llm_callback
import plain_runs
from llm_callback import CallerContext, Run, open_run
from measuring import (
    Empty,
    Sample,
    environment,
    framework_kwargs,
    interleaved,
    interpreter,
    percentiles,
    print_table,
    single,
    threaded,
    timed_calls,
)
from plain_runs import PlainRun

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

THREADS = 4
READERS = 100
# Longer than any line takes: a producer that waits for a reader does so until it has read.
PATIENCE = 600.0
CONTEXT = CallerContext.worker("w1", "Researcher", "Team A")
SOURCE = CONTEXT.to_source_dict()


class Scale(NamedTuple):
    """How often: rounds of a line, operations in one."""

    rounds: int = 101
    calls: int = 1_000
    streams: int = 15
    streamed: int = 20_000
    crowds: int = 7
    crowded: int = 500
    wakes: int = 300
    wake_rounds: int = 15
    open_runs: int = 10_000
    spins: int = 1_000_000
    spin_rounds: int = 15
    processes: int = 3


QUICK = Scale(3, 100, 2, 200, 2, 10, 10, 2, 100, 10_000, 2, 1)


@dataclass
class Line:
    """One line of the table: what was measured in each round, and the ratio that must be reached."""

    what: str
    reference: list[float]
    ours: list[float]
    # How many times faster than the reference at least, or
    at_least: float | None = None
    # how many times slower at most.
    at_most: float | None = None

    def ratio(self, reference: float, ours: float) -> float:
        """Return how these compare, as the target is meant."""
        if self.at_most is not None:
            return ours / reference
        return reference / ours if ours > 0 else math.inf

    @property
    def medians(self) -> tuple[float, float]:
        """The reference's and ours."""
        return statistics.median(self.reference), statistics.median(self.ours)

    @property
    def median(self) -> float:
        """The ratio of the medians."""
        return self.ratio(*self.medians)

    @property
    def worst(self) -> float:
        """The least favourable ratio of any round."""
        ratios = map(self.ratio, self.reference, self.ours)
        return min(ratios) if self.at_most is None else max(ratios)

    def is_reached_by(self, ratio: float) -> bool:
        """Whether this ratio is good enough."""
        if self.at_most is not None:
            return ratio <= self.at_most
        return self.at_least is None or ratio >= self.at_least

    @property
    def target(self) -> str:
        """The target in words."""
        if self.at_most is not None:
            return f"at most {self.at_most:g}"
        return "" if self.at_least is None else f"{self.at_least:g}"

    @property
    def verdict(self) -> str:
        """Whether the target is reached, and how surely."""
        if not self.target:
            return ""
        if not self.is_reached_by(self.median):
            return "**no**"
        return "yes" if self.is_reached_by(self.worst) else "by the median"

    def cells(self) -> list[str]:
        """Return the line as the table shows it."""
        numbers = [f"{number:,.0f}" for number in self.medians]
        ratios = ["none left" if math.isinf(x) else f"{x:.2f}" for x in (self.median, self.worst)]
        return [self.what, *numbers, *ratios, self.target, self.verdict]

    def as_json(self) -> dict[str, Any]:
        """Return the line with all its samples; a ratio that is infinite is null."""
        finite = [None if math.isinf(x) else x for x in (self.median, self.worst)]
        return {
            "what": self.what,
            "ratio": {"median": finite[0], "least_favourable": finite[1]},
            "at_least": self.at_least,
            "at_most": self.at_most,
            "reached": self.is_reached_by(self.median),
            "samples": {"reference": self.reference, "ours": self.ours},
        }


class _Made:
    """A class that has a ``__new__`` of its own has an ``__init__`` that takes any arguments and does nothing."""

    def __new__(cls) -> _Made:  # noqa: PYI034 - 3.10 has no Self
        return object.__new__(cls)


def empty_slot() -> Callable[..., None]:
    """Return a slot of a type in C that does nothing."""
    return _Made().__init__


def less(samples: list[float], empty: list[float]) -> list[float]:
    """Take the empty call off, round by round."""
    return [sample - nothing for sample, nothing in zip(samples, empty, strict=True)]


@contextmanager
def opened(number: int) -> Iterator[list[Run]]:
    """Open so many runs, and end them."""
    runs = [open_run() for _ in range(number)]
    try:
        yield runs
    finally:
        for run in runs:
            run.complete()


def ours_single(kwargs: dict[str, Any]) -> Sample:
    """Call the handler of a fresh run on this thread."""

    def sample(calls: int) -> float:
        with open_run() as run:
            return timed_calls(run.handler(CONTEXT), kwargs, calls) / calls

    return sample


def token_lines(scale: Scale) -> Iterator[Line]:
    """Measure a token into the log, which nobody reads: of a fresh run, and of one whose log is full."""
    kwargs = framework_kwargs(object())
    with opened(1) as [run]:
        ours, plain = run.handler(CONTEXT), PlainRun(1).handler(SOURCE)
        timed_calls(ours, kwargs, plain_runs.LOG_LENGTH)
        timed_calls(plain, kwargs, plain_runs.LOG_LENGTH)
        samples = [
            single(lambda: PlainRun(1).handler(SOURCE), kwargs),
            ours_single(kwargs),
            single(lambda: plain, kwargs),
            single(lambda: ours, kwargs),
            single(Empty, kwargs),
            single(empty_slot, kwargs),
        ]
        found = interleaved(samples, scale.rounds, scale.calls)
    *pairs, plain_empty, ours_empty = found
    for log, plain_ns, ours_ns in [("fresh", *pairs[:2]), ("full", *pairs[2:])]:
        what = f"token into a {log} log"
        net_plain = less(plain_ns, plain_empty)
        yield Line(f"{what}, net", net_plain, less(ours_ns, plain_empty), 20)
        yield Line(f"{what}, net of a C call", net_plain, less(ours_ns, ours_empty))
        yield Line(f"{what}, gross", plain_ns, ours_ns, 8)


def streamed(readers: int, make: Callable[[], tuple[Any, list[Iterable[bytes]]]]) -> Sample:
    """Call the handler of a fresh run, while so many threads read what becomes of it."""
    kwargs = framework_kwargs(object())

    def sample(calls: int) -> float:
        run, streams = make()
        barrier = threading.Barrier(readers + 1)
        found: list[tuple[list[bytes], int]] = []

        def read(stream: Iterable[bytes]) -> None:
            barrier.wait()
            chunks = list(stream)
            found.append((chunks, perf_counter_ns()))

        threads = [threading.Thread(target=read, args=(stream,)) for stream in streams]
        for thread in threads:
            thread.start()
        handler = run.handler(SOURCE)
        barrier.wait()
        start = perf_counter_ns()
        timed_calls(handler, kwargs, calls)
        run.complete()
        for thread in threads:
            thread.join()
        # The last frame is the run's end.
        numbers = [sum(chunk.count(b"\n\n") for chunk in chunks) for chunks, _ in found]
        assert numbers == [calls + 1] * readers, "a frame was lost"
        return (max(end for _, end in found) - start) / (calls * readers)

    return sample


def plain_streams(readers: int) -> Sample:
    """Read the baseline."""

    def make() -> tuple[PlainRun, list[Iterable[bytes]]]:
        run = PlainRun(1)
        return run, [plain_runs.sse(run.subscribe()) for _ in range(readers)]

    return streamed(readers, make)


def our_streams(readers: int) -> Sample:
    """Read ours."""

    def make() -> tuple[Run, list[Iterable[bytes]]]:
        run = open_run()
        follow = [run.subscribe(overflow="block", patience=PATIENCE) for _ in range(readers)]
        return run, [subscription.sse() for subscription in follow]

    return streamed(readers, make)


def stream_lines(scale: Scale) -> Iterator[Line]:
    """Measure tokens until they are bytes in the hands of one reader, and of a hundred."""
    kwargs = framework_kwargs(object())
    samples = [plain_streams(1), our_streams(1), single(Empty, kwargs), single(empty_slot, kwargs)]
    plain, ours, *empty = interleaved(samples, scale.streams, scale.streamed)
    what = "token to SSE at one reader"
    yield Line(f"{what}, net", less(plain, empty[0]), less(ours, empty[0]), 20)
    yield Line(f"{what}, net of a C call", less(plain, empty[0]), less(ours, empty[1]))
    yield Line(f"{what}, gross", plain, ours)
    samples = [plain_streams(READERS), our_streams(READERS)]
    found = interleaved(samples, scale.crowds, scale.crowded)
    yield Line(f"frame to each of {READERS} readers", *found, 30)


def producer_lines(scale: Scale) -> Iterator[Line]:
    """Measure four threads with a run each, beside one."""
    kwargs = framework_kwargs(object())
    with opened(THREADS) as runs:
        handlers = [run.handler(CONTEXT) for run in runs]
        plain_handlers = [PlainRun(number).handler(SOURCE) for number in range(THREADS)]
        for handler in (*handlers, *plain_handlers):
            timed_calls(handler, kwargs, plain_runs.LOG_LENGTH)
        ours = [lambda handler=handler: handler for handler in handlers]
        plain = [lambda handler=handler: handler for handler in plain_handlers]
        samples = [threaded(ours[:1], kwargs), threaded(ours, kwargs), threaded(plain, kwargs)]
        one, four, plain_four = interleaved(samples, scale.rounds, scale.calls)
    yield Line(f"token, {THREADS} producers, beside one of ours", one, four, at_most=1.5)
    yield Line(f"token, {THREADS} producers, gross", plain_four, four)


def repeated(statement: str, **names: Any) -> Sample:
    """Time ``statement``, ten times in each turn of a loop so that the loop hardly counts."""
    body = "\n        ".join([statement] * 10)
    source = f"""def sample(calls):
    turns = repeat(None, calls // 10)
    start = now()
    for _ in turns:
        {body}
    return (now() - start) / (calls // 10 * 10)
"""
    scope = {"now": perf_counter_ns, "repeat": itertools.repeat, **names}
    exec(source, scope)  # noqa: S102 - a loop of our own
    return scope["sample"]


def check_lines(scale: Scale) -> Iterator[Line]:
    """Measure the question whether to stop."""
    with opened(1) as [run]:
        plain = PlainRun(1)
        samples = [
            repeated("is_set()", is_set=plain.cancelled.is_set),
            repeated("is_set()", is_set=run.token.is_set),
            repeated("event.is_set()", event=plain.cancelled),
            repeated("token.is_set()", token=run.token),
            repeated("run.cancelled.is_set()", run=plain),
            repeated("run.token.is_set()", run=run),
        ]
        found = interleaved(samples, scale.rounds, scale.calls * 10)
    for number, what in enumerate(["is_set()", "token.is_set()", "run.token.is_set()"]):
        yield Line(f"`{what}`, beside Event's", *found[2 * number : 2 * number + 2], at_most=1.2)


def nothing() -> None:
    """Do that."""


# What makes a thread wait, what wakes it, what is to be done after that.
Wait = tuple[Callable[[], object], Callable[[], object], Callable[[], object]]


def wakes(make: Callable[[], Wait]) -> Callable[[int], list[int]]:
    """Wake a thread that waits, again and again; return how long each took, in order."""

    def sample(times: int) -> list[int]:
        found = []
        for _ in range(times):
            wait, wake, finish = make()
            ready, woken = threading.Event(), []

            def work(wait=wait, ready=ready, woken=woken) -> None:
                ready.set()
                wait()
                woken.append(perf_counter_ns())

            thread = threading.Thread(target=work)
            thread.start()
            ready.wait()
            # Until it sleeps, and the interpreter is idle.
            time.sleep(0.001)
            start = perf_counter_ns()
            wake()
            thread.join()
            finish()
            found.append(woken[0] - start)
        return sorted(found)

    return sample


def wake_lines(scale: Scale) -> Iterator[Line]:
    """Measure from the cancel until a thread that waits for it runs."""

    def plain() -> Wait:
        event = threading.Event()
        return event.wait, event.set, nothing

    def token() -> Wait:
        token = llm_callback.CancelToken()
        return token.wait, token.cancel, nothing

    def of_run() -> Wait:
        run = open_run()
        return run.token.wait, run.cancel, run.complete

    sides = [wakes(plain), wakes(token), wakes(of_run)]
    rounds = [[side(scale.wakes) for side in sides] for _ in range(scale.wake_rounds)]
    for share in ("p50", "p99"):
        found = [[percentiles(side)[share] for side in turn] for turn in rounds]
        event, token_ns, run_ns = (list(map(float, side)) for side in zip(*found, strict=True))
        yield Line(f"cancel to wake, token, {share}", event, token_ns, at_most=1)
        yield Line(f"cancel to wake, run, {share}", event, run_ns, at_most=1)


def opening_lines(scale: Scale) -> Iterator[Line]:
    """Measure a run without a word, beside three objects."""
    ids = itertools.count(1)
    samples = [
        repeated(
            "Queue(); Event(); Lock()",
            Queue=queue.Queue,
            Event=threading.Event,
            Lock=threading.Lock,
        ),
        repeated("open_run(next(ids)).complete()", open_run=open_run, ids=ids),
        repeated("open_run().complete()", open_run=open_run),
    ]
    # So many are kept: from then on each that ends takes one away.
    for _ in range(1_000):
        open_run(next(ids)).complete()
    plain, with_id, without = interleaved(samples, scale.rounds, scale.calls)
    yield Line("open and finish a run", plain, with_id, 2)
    yield Line("open and finish a run, id made for it", plain, without)


# Opens runs in a fresh interpreter; prints by how much the process, the collector's list and the allocator have grown.
MEMORY = """
import gc, os, sys
sys.path.insert(0, {path!r})
from llm_callback import open_run
from plain_runs import PlainRun

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

runs = [None] * {number}
kept = [{make} for number in range(100)]
gc.collect()
before = resident(), len(gc.get_objects()), sys.getallocatedblocks()
for number in range(100, 100 + {number}):
    runs[number - 100] = {make}
gc.collect()
after = resident(), len(gc.get_objects()), sys.getallocatedblocks()
print(*((much - little) / {number} for little, much in zip(before, after)))
"""


def memory(make: str, number: int) -> tuple[float, ...]:
    """Return bytes, collected objects and blocks of Python's allocator for each open run."""
    code = MEMORY.format(path=str(Path(__file__).parent), make=make, number=number)
    return tuple(map(float, interpreter("-c", code).stdout.split()))


def memory_lines(scale: Scale) -> Iterator[Line]:
    """Measure the memory of a run that is open and says nothing; in bytes, not nanoseconds."""
    if not Path("/proc/self/statm").exists():
        return
    sides = ["PlainRun(number)", "open_run(number)", "open_run()"]
    rounds = [[memory(side, scale.open_runs) for side in sides] for _ in range(scale.processes)]
    plain, with_id, without = zip(*rounds, strict=True)
    limit = [2048.0] * scale.processes
    for what, side in [("open run", with_id), ("open run, id made for it", without)]:
        resident = [bytes_ for bytes_, _, _ in side]
        yield Line(f"{what}, bytes, beside 2 KiB", limit, resident, at_most=1)
        yield Line(f"{what}, bytes", [bytes_ for bytes_, _, _ in plain], resident)
    for number, what in [(1, "objects that the collector sees"), (2, "blocks of Python's")]:
        sides = [[each[number] for each in side] for side in (plain, without)]
        yield Line(f"open run, {what}", *sides)


def crowd_lines(scale: Scale) -> Iterator[Line]:
    """Measure tokens while one run is open, and while very many are: of one of these, and of all in turns."""
    kwargs, many = framework_kwargs(object()), scale.open_runs

    def turns(handlers: list[Any], calls: int) -> float:
        order = itertools.islice(itertools.cycle(handlers), calls)
        start = perf_counter_ns()
        for handler in order:
            handler(**kwargs)
        return (perf_counter_ns() - start) / calls

    def beside(others: int) -> Sample:
        def sample(calls: int) -> float:
            with opened(others), open_run() as run:
                return timed_calls(run.handler(CONTEXT), kwargs, calls) / calls

        return sample

    def in_turns(number: int) -> Sample:
        def sample(calls: int) -> float:
            with opened(number) as runs:
                return turns([run.handler(CONTEXT) for run in runs], calls)

        return sample

    def plain_in_turns(calls: int) -> float:
        return turns([PlainRun(number).handler(SOURCE) for number in range(many)], calls)

    samples = [beside(0), beside(many - 1), in_turns(1), in_turns(many), plain_in_turns]
    one, of_one, one_in_turns, of_all, plain = interleaved(samples, scale.spin_rounds, 2 * many)
    what = f"token with {many:,} open runs"
    yield Line(f"{what}, of one", one, of_one, at_most=1.3)
    yield Line(f"{what}, of all in turns", one_in_turns, of_all, at_most=1.3)
    yield Line(f"{what}, of all in turns, gross", plain, of_all)


def spin(number: int) -> int:
    """Do so much in Python; return the nanoseconds."""
    turns = itertools.repeat(None, number)
    value = 1
    start = perf_counter_ns()
    for _ in turns:
        value = value * 3 & 0xFFFF
    return perf_counter_ns() - start


def spinning_beside(make: Callable[[], Wait]) -> Sample:
    """Do something in Python while another thread waits."""

    def sample(number: int) -> float:
        wait, wake, finish = make()
        ready = threading.Event()

        def work() -> None:
            ready.set()
            wait()

        thread = threading.Thread(target=work)
        thread.start()
        ready.wait()
        # Until it sleeps.
        time.sleep(0.01)
        took = spin(number)
        assert thread.is_alive(), "nobody waited"
        wake()
        thread.join()
        finish()
        return took / number

    return sample


def waits() -> dict[str, Callable[[], Wait]]:
    """Return what a thread can wait in."""

    def emit() -> Wait:
        run = open_run()
        reader = run.subscribe(overflow="block", patience=PATIENCE)
        handler, kwargs = run.handler(CONTEXT), framework_kwargs(object())
        timed_calls(handler, kwargs, plain_runs.LOG_LENGTH - 10)

        def fill() -> None:
            while not reader.ended:
                handler(**kwargs)

        return fill, reader.close, run.complete

    def read(how: str) -> Callable[[], Wait]:
        def make() -> Wait:
            run = open_run()
            reader = run.subscribe()
            stream = reader.sse() if how == "sse" else reader
            waiting = reader.read if how == "read" else lambda: next(stream)
            return waiting, lambda: run.emit("llm", "stream"), run.complete

        return make

    def run_wait() -> Wait:
        run = open_run()
        return run.wait, run.complete, nothing

    def token_wait() -> Wait:
        run = open_run()
        return run.token.wait, run.cancel, run.complete

    def event_wait() -> Wait:
        event = threading.Event()
        return event.wait, event.set, nothing

    return {
        "`threading.Event.wait`": event_wait,
        "`emit` to a full `block` reader": emit,
        "`Subscription.read`": read("read"),
        "`next(Subscription)`": read("next"),
        "`next(sse())`": read("sse"),
        "`Run.wait`": run_wait,
        "`CancelToken.wait`": token_wait,
    }


def wait_lines(scale: Scale) -> Iterator[Line]:
    """Measure what a thread that waits leaves to others, beside one that waits in an Event."""
    names, makers = zip(*waits().items(), strict=True)
    samples = [spinning_beside(make) for make in makers]
    event, *found = interleaved(samples, scale.spin_rounds, scale.spins)
    for name, waiting in zip(names[1:], found, strict=True):
        yield Line(f"a loop while a thread is in {name}", event, waiting, at_most=1.1)


def sink_lines(scale: Scale) -> Iterator[Line]:
    """Measure the same while the thread of a file waits for its disk: the file is a pipe that nobody reads.

    The last, since all runs that are opened after it would be written there too.
    """
    if not hasattr(os, "mkfifo"):
        return
    kwargs = framework_kwargs(object())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events"
        os.mkfifo(path)
        # Also for writing: so that the opening does not wait for a writer.
        reading = os.open(path, os.O_RDWR)
        alone = [spin(scale.spins) / scale.spins for _ in range(2 * scale.spin_rounds)][1::2]
        llm_callback.log_to_file(path)
        with open_run() as run:
            handler = run.handler(CONTEXT)
            # More than a pipe, the writer's buffer and one batch hold, and less than wait for the file at most.
            timed_calls(handler, kwargs, 5_000)
            time.sleep(0.05)
            blocked = [spin(scale.spins) / scale.spins for _ in range(2 * scale.spin_rounds)][1::2]
            written = llm_callback.stats()["sinks"][os.path.realpath(path)]["written"]
            assert written < 5_000, "the pipe took all: nothing waited"

        def drain() -> None:
            while b"the bench is over" not in os.read(reading, 1 << 20):
                pass

        threading.Thread(target=drain).start()
        with open_run() as run:
            run.emit("system", "output", {"text": "the bench is over"})
    what = "a loop while a file's thread is in a write that waits"
    yield Line(what, alone, blocked, at_most=1.1)


LINES = (
    token_lines,
    stream_lines,
    producer_lines,
    check_lines,
    wake_lines,
    opening_lines,
    memory_lines,
    crowd_lines,
    wait_lines,
    sink_lines,
)


def main() -> None:
    """Measure everything, and print it."""
    parser = argparse.ArgumentParser(description="Runs of their own beside plain Python.")
    parser.add_argument("--quick", action="store_true", help="only to see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw numbers there")
    options = parser.parse_args()
    scale = QUICK if options.quick else Scale()

    where = environment()
    print("\n".join(f"{name + ':':<8} {value}" for name, value in where.items()), end="\n\n")
    lines = [line for measure in LINES for line in measure(scale)]
    head = ["what", "reference", "ours", "ratio", "least favourable", "target", "reached"]
    print_table([head, *(line.cells() for line in lines)])
    if options.json:
        report = {"where": where, "lines": [line.as_json() for line in lines]}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
