"""Runs and their process: its exit, its forks, its Ctrl-C, and its other threads."""

from __future__ import annotations

import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from llm_callback import open_run
from scripts import COMMON, forks, lines, needs_fork, needs_signals, script
from support import DEADLINE, Running, interpreter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


# --- Exit ---

# Gives up the GIL while the interpreter is going down: whoever waits for it comes back then.
LONG_END = """
class LongEnd:
    def __del__(self, sleep=time.sleep):
        sleep(0.1)

sys.long_end = LongEnd()
"""

WAITING = {
    "read": "run.subscribe().read()",
    "read for a time": "run.subscribe().read(10, 3600.0)",
    "iteration": "list(run.subscribe())",
    "sse": "list(run.subscribe().sse())",
    "heartbeats": "list(run.subscribe().sse(heartbeat=0.001))",
    "token": "run.token.wait()",
    "run": "run.wait()",
    "block emit": "full(run) and run.emit('llm', 'stream', {})",
    "block handler": "full(run) and run.handler(context)(data='x')",
    "async": "asyncio.run(reads(run))",
    "cancelled": "asyncio.run(awaits(run))",
    "deadline": "open_run(deadline=0.01).token.on_cancel(forever) and time.sleep(3600)",
    "emit": "[run.emit('llm', 'stream', {}) for _ in iter(int, 1)]",
    "stats": "[(stats(), active_runs(), run.finished_at, repr(run)) for _ in iter(int, 1)]",
    "open": "[open_run(parent=run).complete() for _ in iter(int, 1)]",
}


@pytest.mark.parametrize("end", ["", LONG_END], ids=["short", "long"])
@pytest.mark.parametrize("waiting", WAITING.values(), ids=WAITING.keys())
def test_the_exit_ends_open_runs_and_whoever_waits(waiting: str, end: str, tmp_path: Path) -> None:
    """A program with open runs and daemon threads inside our calls ends at once, well, with the runs' last words."""
    code = (
        f"""
log_to_file(path)
arrived = threading.Barrier(4)

async def reads(run):
    async def one(reader):
        async for event in reader:
            pass
    async def other(reader):
        async for chunk in reader.sse():
            pass
    await asyncio.gather(one(run.subscribe()), other(run.subscribe()), run.subscribe().aread())

async def awaits(run):
    await run.token

def forever():
    while True:
        time.sleep(0.0001)

def job(run):
    arrived.wait(DEADLINE)
    try:
        {waiting}
    except (RuntimeError, RunCancelled):
        # What the end makes of it.
        pass
    while True:
        # Who was woken by the end asks for more.
        run.wait()

runs = [open_run(f"run {{number}}") for number in range(3)]
for run in runs:
    daemon(lambda run=run: job(run))
arrived.wait(DEADLINE)
time.sleep(0.05)
"""
        + end
    )
    for number in range(2):
        path = tmp_path / f"{number}.ndjson"
        script(code, path)
        ends = {
            event["run_id"]: (event["event"]["action"], event["data"]["kind"])
            for event in lines(path)
            if event["event"]["action"] == "cancelled"
        }
        for run in range(3):
            assert ends[f"run {run}"] == ("cancelled", "shutdown")


def test_the_last_words_of_open_runs(tmp_path: Path) -> None:
    """At the exit a run, its child and a pending one end as cancelled by shutdown; ended ones stay as they are."""
    path = tmp_path / "events.ndjson"
    script(
        """
log_to_file(path)
run = open_run("run", task="t")
child = open_run("child", parent=run)
pending = open_run("pending", pending=True)
asked = open_run("asked")
asked.cancel("enough")
open_run("done").complete(result=1)
seen = []
child.token.on_cancel(lambda: seen.append(child.token.kind))
import atexit
atexit.register(run.emit, "llm", "stream", {"content": "atexit"})
""",
        path,
    )
    told: dict[str, list[Any]] = {}
    for event in lines(path):
        told.setdefault(event["run_id"], []).append((event["event"]["action"], event["data"]))
    shutdown = {"kind": "shutdown", "reason": "the interpreter exits"}
    assert told == {
        "run": [
            ("started", {"task": "t"}),
            ("stream", {"content": "atexit"}),
            ("cancelled", shutdown),
        ],
        "child": [
            ("started", {"parent_run_id": "run"}),
            ("cancelled", {**shutdown, "parent_run_id": "run"}),
        ],
        "pending": [("cancelled", shutdown)],
        "asked": [("started", {}), ("cancelled", {"kind": "user", "reason": "enough"})],
        "done": [("started", {}), ("completed", {"result": 1})],
    }


@pytest.mark.parametrize("how", ["sys.exit(3)", "raise SystemExit(3)", "exit(3)"])
def test_an_exit_inside_a_block(how: str, tmp_path: Path) -> None:
    """The process ends with its status, and the run as cancelled by shutdown, once."""
    path = tmp_path / "events.ndjson"
    code = COMMON + f"log_to_file(path)\nwith open_run('run') as run:\n    {how}\n"
    done = interpreter(code, env={"LOG": str(path)})
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")
    assert [event["event"]["action"] for event in lines(path)] == ["started", "cancelled"]
    assert lines(path)[1]["data"]["kind"] == "shutdown"


def test_nothing_opens_while_the_interpreter_ends() -> None:
    """After the runs were ended, opening one raises RuntimeError; what was there can still be asked."""
    out = script(
        """
run = open_run("run")
class Late:
    def __del__(self, open_run=open_run, run=run, write=os.write, Error=RuntimeError):
        try:
            open_run("late")
        except Error as error:
            told = f"refused {run.state} {run.emit('llm', 'stream', {})} {run.wait(1)}"
            write(1, told.encode())
sys.late = Late()
"""
    )
    assert out == "refused cancelled None True"


def test_a_loop_of_the_main_thread_with_readers(tmp_path: Path) -> None:
    """A program whose coroutines still read when its main one returns ends well."""
    path = tmp_path / "events.ndjson"
    script(
        """
log_to_file(path)
async def read(run):
    async for event in run.subscribe("start"):
        pass

async def main():
    run = open_run("run")
    tasks = [asyncio.create_task(read(run)) for _ in range(5)]
    tasks.append(asyncio.create_task(run.token.cancelled()))
    await asyncio.sleep(0.01)
    globals()["kept"] = tasks

asyncio.run(main())
loop = asyncio.new_event_loop()
loop.run_until_complete(asyncio.sleep(0))
waiting = open_run("other").subscribe().aread()
try:
    loop.run_until_complete(asyncio.wait_for(waiting, 0.01))
except asyncio.TimeoutError:
    pass
loop.close()
""",
        path,
    )
    assert lines(path)[-1]["event"]["action"] == "cancelled"


def test_exits_while_everything_is_going_on(tmp_path: Path) -> None:
    """Many programs that end while threads open, speak, cancel, end and read: none crashes, no run lacks its end."""
    code = """
log_to_file(path)
sys.setswitchinterval(1e-5)
arrived = threading.Barrier(7)

def forever(job):
    def run():
        arrived.wait(DEADLINE)
        while True:
            try:
                job()
            except (RuntimeError, RunCancelled, StopIteration):
                # The end of what they use.
                pass
    daemon(run)

def life():
    with open_run(deadline=100) as run:
        run.token.on_cancel(lambda: None)
        handler = run.handler(context)
        for _ in range(5):
            handler(data="x", reasoningText="y")

def stopped():
    run = open_run(deadline=0.001)
    run.token.wait()
    run.complete()

shared = open_run("shared")
forever(life)
forever(stopped)
forever(lambda: shared.emit("llm", "stream", {}))
forever(lambda: shared.subscribe().read(10, 0.001))
forever(lambda: next(iter(shared.subscribe().sse(heartbeat=0.001))))
forever(lambda: asyncio.run(asyncio.wait_for(shared.subscribe().aread(), 1)))
arrived.wait(DEADLINE)
time.sleep(0.03)
"""
    for number in range(12):
        path = tmp_path / f"{number}.ndjson"
        script(code + (LONG_END if number % 2 else ""), path)
        last = {event["run_id"]: event["event"]["action"] for event in lines(path)}
        assert set(last.values()) <= {"completed", "cancelled", "failed"}
        assert last["shared"] == "cancelled"


# --- Fork ---


@needs_fork
def test_a_child_has_no_run_of_its_parent(tmp_path: Path) -> None:
    """It opens its own under the same ids, with files of its own; the parent's logs and files are untouched."""
    path = tmp_path / "events.ndjson"
    forks(
        """
log_to_file(path)
run = open_run("run")
pending = open_run("pending", pending=True)
done = open_run("done")
done.complete()
register_event_callback("run", lambda event: None)

def child():
    assert active_runs() == []
    assert [get_run(name) for name in ("run", "pending", "done")] == [None] * 3
    assert cancel_run("run") is False
    now = stats()
    assert (now["runs"]["live"], now["runs"]["finished"], now["sinks"]) == (0, 0, {})
    assert get_event_callback("run") is None
    raises(RuntimeError, lambda: open_run(parent="run"))
    works()
    log_to_file(path + ".child")
    with open_run("run") as mine:
        assert mine.generation == 2
        mine.emit("llm", "stream", {"content": "child"})
    until(lambda: stats()["sinks"][path + ".child"]["written"] == 3)

for _ in range(3):
    in_child(child)
    assert [run.state, pending.state, done.state] == ["running", "pending", "completed"]
    assert contents(run) == [None]
run.emit("llm", "stream", {"content": "parent"})
assert pending.start()
assert {run, pending} == set(active_runs())
""",
        path,
    )
    assert {event["run_id"] for event in lines(path)} == {"run", "pending", "done"}
    told = [event["event"]["action"] for event in lines(path) if event["run_id"] == "run"]
    assert told == ["started", "stream", "cancelled"]
    theirs = lines(path.with_name("events.ndjson.child"))
    assert [event["data"].get("content") for event in theirs] == [None, "child", None] * 3


@needs_fork
def test_what_a_child_inherits_does_no_harm() -> None:
    """Handlers of the parent's runs do nothing; runs, tokens and readers raise; dropping them is safe."""
    forks(
        """
run, stopped, done = open_run("run"), open_run("stopped"), open_run("done")
stopped.cancel("enough")
done.complete()
handlers = [each.handler(context) for each in (run, stopped, done)]
readers = [run.subscribe("start"), run.subscribe(overflow="block", patience=60)]
stream = readers[0].sse()
callback, checker = get_event_callback("run"), get_cancellation_checker("run")
registration = run.token.on_cancel(print)
token, below, was_set = run.token, run.token.child(), stopped.token

def child():
    for handler in handlers:
        handler(data="x", reasoningText="y", current_tool_use={"name": "t"}, complete=True)
        handler(message={"role": "assistant", "content": []})
    callback({"source": None, "event": {"category": "llm", "action": "stream"}, "data": {}})
    assert checker() is False
    for each in (run, done):
        for use in (
            lambda: each.emit("llm", "stream", {}), lambda: each.complete(), lambda: each.fail("x"),
            lambda: each.cancel(), lambda: each.start(), lambda: each.wait(), lambda: each.wait(0),
            lambda: each.subscribe(), lambda: each.handler(context), lambda: each.state,
            lambda: each.last_event_id, lambda: each.finished_at, lambda: each.cancel_requested_at,
            lambda: each.__enter__(), lambda: each.annotate(x=1),
            lambda: open_run(parent=each), lambda: cancel_run(each),
        ):
            raises(RuntimeError, use)
        assert each.run_id in repr(each)
        assert each.generation == 1
        assert each == each and hash(each) == hash(each) and run != stopped
    assert (token.is_set(), below.is_set(), was_set.is_set()) == (False, False, True)
    for use in (token.wait, token.cancel, token.set, token.child, token.shield, below.cancel,
                lambda: token.on_cancel(print), registration.stop):
        raises(RuntimeError, use)
    for reader in readers:
        raises(RuntimeError, reader.read)
        raises(RuntimeError, lambda: next(reader))
        repr(reader)
    raises(RuntimeError, lambda: next(stream))
    repr(token)
    for name in ("run", "stopped", "done", "handlers", "readers", "reader", "stream", "callback",
                 "checker", "registration", "token", "below", "was_set"):
        globals().pop(name, None)
    each = use = None
    gc.collect()
    works()

for _ in range(3):
    in_child(child)
assert contents(run) == contents(done)[:1] == [None]
assert run.emit("llm", "stream", {"content": "on"}) and readers[0].read()[-1]["data"]["content"] == "on"
run.cancel()
"""
    )


@needs_fork
def test_a_fork_while_threads_are_in_the_middle_of_everything(tmp_path: Path) -> None:
    """Whatever lock a thread holds at the fork, the child works, and the parent's file misses nothing untold."""
    path = tmp_path / "events.ndjson"
    forks(
        """
# What is imported at first use is another test's.
works()
log_to_file(path)
sys.setswitchinterval(1e-5)
stop = threading.Event()
shared = open_run("shared")
said = []
reader = shared.subscribe(overflow="gap")

def forever(job):
    def run():
        while not stop.is_set():
            job()
    thread = threading.Thread(target=run)
    thread.start()
    return thread

def life():
    run = open_run(deadline=0.001)
    run.token.on_cancel(lambda: None)
    run.emit("llm", "stream", {})
    run.token.wait(0.0005)
    run.complete()

handler = shared.handler(context)
def speak():
    handler(data=str(len(said)))
    said.append(len(said))

threads = [forever(life), forever(life), forever(speak), forever(lambda: reader.read(100, 0.001)),
           forever(lambda: (stats(), active_runs(), shared.last_event_id))]

def child():
    works()
    handler(data="child's")

for _ in range(40):
    in_child(child)
stop.set()
for thread in threads:
    thread.join(DEADLINE)
    assert not thread.is_alive()
shared.complete()
held = [text for text in contents(shared) if text is not None]
assert held == [str(number) for number in said][-len(held):]
assert stats()["runs"]["live"] == 0
""",
        path,
    )
    last: dict[str, int] = {}
    for event in lines(path):
        run_id, sequence = event["run_id"], event["sequence"]
        assert event["data"].get("content") != "child's"
        # One run speaks without a pause: where its log was faster than the disk, the file says how much is missing.
        is_gap = event["event"]["category"] == "stream"
        assert sequence == last.get(run_id, 0) + (event["data"]["lost"] if is_gap else 1)
        last[run_id] = sequence


@needs_fork
def test_a_child_that_ends_as_a_program_does(tmp_path: Path) -> None:
    """Its exit ends its own runs, waits for its own files, and leaves the parent's alone; its status is its own."""
    path = tmp_path / "events.ndjson"
    forks(
        """
log_to_file(path)
run = open_run("run")
run.emit("llm", "stream", {})
until(lambda: stats()["sinks"][path]["written"] == 2)
pid = os.fork()
if pid == 0:
    log_to_file(path + ".child")
    open_run("run", pending=True)
    open_run("child")
    sys.exit(5)
ended(pid, 5)
assert run.state == "running"
assert not run.token.is_set()
assert run.emit("llm", "stream", {})
""",
        path,
    )
    told = [event["event"]["action"] for event in lines(path)]
    assert told == ["started", "stream", "stream", "cancelled"]
    theirs = [
        (event["run_id"], event["event"]["action"], event["data"].get("kind"))
        for event in lines(path.with_name("events.ndjson.child"))
    ]
    assert sorted(theirs) == [
        ("child", "cancelled", "shutdown"),
        ("child", "started", None),
        ("run", "cancelled", "shutdown"),
    ]


@needs_fork
@pytest.mark.parametrize(
    ("end", "told"),
    [("sys.exit(5)", ""), ("os._exit(5)", ""), ("raise LookupError", "LookupError")],
)
def test_a_child_that_leaves_its_parents_block(end: str, told: str) -> None:
    """What leaves the block of a run in a forked child goes on as it is, and the parent's run goes on too."""
    out = forks(
        f"""
sys.excepthook = lambda kind, error, trace: (print(kind.__name__, end="", flush=True), os._exit(5))
with open_run("run") as run:
    pid = os.fork()
    if pid == 0:
        {end}
    ended(pid, 5)
    assert run.state == "running"
assert run.state == "completed"
"""
    )
    assert out == told


@needs_fork
@pytest.mark.parametrize(
    "use",
    [
        "open_run().complete()",
        "open_run('run', task=1).subscribe('start').read()",
        "fails()",
        "asyncio.run(reads())",
    ],
    ids=["minted", "read", "details", "async"],
)
def test_a_fork_during_the_first_use_of_another_thread(use: str) -> None:
    """What another thread is about to import for its first run is not waited for in the child."""
    forks(
        f"""
under_way, go_on = threading.Event(), threading.Event()

class Slow:
    # Holds the lock of the module that is imported.
    def find_spec(self, name, *rest):
        if threading.current_thread() is not threading.main_thread():
            under_way.set()
            go_on.wait(DEADLINE)

def fails():
    try:
        with open_run("run"):
            raise LookupError
    except LookupError:
        pass

async def reads():
    with open_run("run") as run:
        await run.subscribe("start").aread()

sys.meta_path.insert(0, Slow())
def first():
    {use}
    under_way.set()

thread = threading.Thread(target=first)
thread.start()
assert under_way.wait(DEADLINE)
def child():
    {use}
in_child(child)
go_on.set()
thread.join(DEADLINE)
"""
    )


@needs_fork
def test_a_fork_in_a_callback_and_in_a_thread() -> None:
    """A fork inside a callback of a token or a run, on any thread, gives a child that works."""
    out = forks(
        """
run = open_run("run")
run.token.on_cancel(lambda: in_child(works))
register_event_callback("run", lambda event: in_child(works))
run.emit("llm", "stream", {"content": "a"})
run.handler(context)(data="b")
def job():
    in_child(works)
    run.emit("llm", "stream", {"content": "c"})
    run.cancel("enough")
    print("done")
thread = threading.Thread(target=job)
thread.start()
thread.join(DEADLINE)
assert contents(run) == [None, "a", "b", "c"]
by_deadline = open_run(deadline=0.01)
forked = threading.Event()
by_deadline.token.on_cancel(lambda: (in_child(works), forked.set()))
assert forked.wait(DEADLINE)
"""
    )
    assert out == "done\n"


@needs_fork
def test_a_pool_of_processes() -> None:
    """Multiprocessing's forked workers have runs of their own."""
    forks(
        """
import multiprocessing
run = open_run("run")
def job(number):
    with open_run("run") as mine:
        mine.handler(context)(data=str(number))
    return contents(mine)[1:-1], get_current_run_id()

with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map_async(job, range(20)).get(DEADLINE) == [([str(n)], None) for n in range(20)]
assert contents(run) == [None]
"""
    )


# --- Ctrl-C ---

INTERRUPTED = {
    "read": "reader.read()",
    "read for a time": "reader.read(10, 3600)",
    "iteration": "next(reader)",
    "sse": "next(iter(reader.sse()))",
    "token": "run.token.wait()",
    "run": "run.wait()",
    "run for a time": "run.wait(3600)",
    "block emit": "blocked.emit('llm', 'stream', {'content': 'interrupted'})",
    "block handler": "blocked.handler(context)(data='interrupted')",
    "async": "asyncio.run(reads(reader))",
}


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_deadline_without_a_thread_is_an_error() -> None:
    """Where the system refuses the thread that a deadline needs, it is a RuntimeError, and no run is open."""
    script(
        """
import resource
if os.getuid() == 0:
    # The limit is not root's.
    os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
token, errors = CancelToken(), []
for job in (lambda: open_run(deadline=60.0), lambda: CancelToken(60.0), lambda: token.child(60.0)):
    try:
        job()
    except RuntimeError as error:
        errors.append(str(error))
assert errors == ["the system refuses the thread that watches deadlines"] * 3, errors
assert active_runs() == []
"""
    )


@needs_signals
@pytest.mark.parametrize("waiting", INTERRUPTED.values(), ids=INTERRUPTED.keys())
def test_ctrl_c_ends_a_wait(waiting: str) -> None:
    """It raises KeyboardInterrupt; the reader goes on where it was, and nothing is lost or comes twice."""
    out = script(
        f"""
run = open_run()
reader = run.subscribe()
main = threading.get_ident()

async def reads(reader):
    await reader.aread()

blocked = open_run()
{"slow = full(blocked)" if "block" in waiting else ""}

def wait_here():
    {waiting}

def interrupt():
    until(lambda: "wait_here" in [
        frame.f_code.co_name for frame, _ in traceback.walk_stack(sys._current_frames()[main])])
    # In the middle of the wait, not at its beginning.
    time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGINT)

for attempt in range(3):
    thread = daemon(interrupt)
    try:
        wait_here()
        raise AssertionError("it returned")
    except KeyboardInterrupt:
        print("interrupted")
    thread.join(DEADLINE)
    run.emit("llm", "stream", {{"content": attempt}})
    assert [event["data"]["content"] for event in reader.read(10, DEADLINE)] == [attempt]

if "slow" in globals():
    assert "interrupted" not in contents(blocked)
    assert len(slow.read(5_000, 0)) == 5_000
    assert blocked.emit("llm", "stream", {{"content": "on"}})
    rest = [event["data"]["content"] for event in slow.read(100_000, 0)]
    assert rest == [*range(5_000, 10_000), "on"], rest[-3:]
assert run.state == "running"
assert not run.token.is_set()
"""
    )
    assert out.split() == ["interrupted"] * 3


@needs_signals
def test_ctrl_c_in_a_block_cancels_its_run(tmp_path: Path) -> None:
    """A program that is interrupted while it works ends its run as cancelled by its user."""
    path = tmp_path / "events.ndjson"
    done = interpreter(
        COMMON
        + """
log_to_file(path)
with open_run("run") as run:
    daemon(lambda: (time.sleep(0.1), os.kill(os.getpid(), signal.SIGINT)))
    run.wait()
""",
        env={"LOG": str(path)},
    )
    assert done.stderr.endswith("KeyboardInterrupt\n")
    assert lines(path)[-1]["event"]["action"] == "cancelled"
    assert lines(path)[-1]["data"]["kind"] == "user"


# --- Other threads ---

WAITS: dict[str, Callable[[Any], Any]] = {
    "read": lambda run: run.subscribe().read(),
    "iteration": lambda run: list(run.subscribe()),
    "sse": lambda run: list(run.subscribe().sse()),
    "token": lambda run: run.token.wait(),
    "run": lambda run: run.wait(),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS.keys())
def test_others_run_while_a_thread_waits(wait: Callable[[Any], Any]) -> None:
    """A thread that waits inside a call of ours holds nobody up: others compute, and can wake it."""
    run = open_run()
    waiting = Running(partial(wait, run))
    progress = Running(lambda: sum(range(100_000)))
    assert progress.result() == sum(range(100_000))
    assert not waiting.is_done
    run.cancel()
    run.complete()
    waiting.result()


@pytest.mark.parametrize("by", ["emit", "handler"])
def test_others_run_while_a_thread_waits_for_a_reader(by: str) -> None:
    """A thread that emits for a slow reader holds nobody up; it goes on when that one has read, closes, or is gone."""
    for end in ("read", "close", "drop", "end"):
        run = open_run()
        handler = run.handler({"agent_id": "w", "agent_type": "worker", "agent_name": "W"})
        reader: Any = run.subscribe(overflow="block", patience=DEADLINE)
        for number in range(10_000):
            run.emit("llm", "stream", {"content": number})
        arrived = threading.Event()

        def speak(run: Any = run, handler: Any = handler, arrived: Any = arrived) -> Any:
            arrived.set()
            if by == "emit":
                return run.emit("llm", "stream", {"content": "late"})
            return handler(data="late")

        waiting = Running(speak)
        assert arrived.wait(DEADLINE)
        assert Running(lambda: sum(range(100_000))).result() == sum(range(100_000))
        assert not waiting.is_done
        if end == "read":
            assert len(reader.read(10_000, 0)) == 10_000
        elif end == "close":
            reader.close()
        elif end == "drop":
            del reader
        else:
            run.complete()
        said = waiting.result()
        if end != "end":
            assert by == "handler" or said is not None
            assert run.last_event_id.endswith("-10002")
            run.complete()
        else:
            assert said is None
            assert run.state == "completed"
