"""The end of all runs before the interpreter's: by hand, by SIGTERM, and under the servers that people deploy."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest

from support import DEADLINE, printed
from test_run_process import COMMON

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Self

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="its signals are others")

ENDS = ("completed", "failed", "cancelled")


def script(code: str, path: Path | None = None, *options: str) -> str:
    """Run ``code`` after COMMON in a fresh interpreter that must end well and say nothing else."""
    return printed(COMMON + code, *options, env={} if path is None else {"LOG": str(path)})


def told(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the events in a file, by run."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_bytes().splitlines():
        event = json.loads(line)
        runs.setdefault(event["run_id"], []).append(event)
    return runs


def all_ended(path: Path, runs: set[str]) -> bool:
    """Fail unless these are the runs of a file, each with one terminal event, as the last; whether by a shutdown."""
    events = told(path)
    assert set(events) == runs
    for each in events.values():
        actions = [event["event"]["action"] for event in each]
        assert [action for action in actions if action in ENDS] == actions[-1:]
    return all(each[-1]["data"].get("kind") == "shutdown" for each in events.values())


# --- By hand ---


def test_a_shutdown_ends_every_run(tmp_path: Path) -> None:
    """It ends runs, children, pending ones and those of managers as cancelled, for good, and the file has it all."""
    path = tmp_path / "events.ndjson"
    script(
        """
log_to_file(path)
started = threading.Event()
def work(config):
    started.set()
    run = get_run(config["run_id"])
    assert run.token.wait(DEADLINE)
    run.emit("llm", "stream", {"content": "last words"})

manager = RunManager(work, max_workers=1)
managed = [manager.start_run(run_id=name) for name in ("executed", "queued")]
assert started.wait(DEADLINE)
runs = [open_run("run"), open_run("child", parent="run"), open_run("pending", pending=True)]
seen = []
runs[0].token.on_cancel(lambda: seen.append((runs[0].token.kind, runs[0].token.reason)))
assert shutdown("a new version", timeout=DEADLINE) is True
assert seen == [("shutdown", "a new version")]
assert {run.state for run in runs + managed} == {"cancelled"}
assert contents(managed[0]) == [None, "last words", None]
for job in (open_run, lambda: manager.start_run(), lambda: RunManager(work).start_run()):
    try:
        job()
        raise AssertionError("it was started")
    except RuntimeError:
        pass
assert shutdown() is True
# What is written is written before the exit.
assert len(open(path).readlines()) == 9
""",
        path,
    )
    assert all_ended(path, {"run", "child", "pending", "executed", "queued"})
    assert {each[-1]["data"]["reason"] for each in told(path).values()} == {"a new version"}


def test_a_shutdown_can_be_called_anywhere(tmp_path: Path) -> None:
    """In a callback of a cancel, in a run of a manager, on many threads, in a signal handler: it returns True."""
    for number, call in enumerate(
        (
            # The first reason stays.
            "open_run('run').token.on_cancel(lambda: end()); cancel_run('run')",
            "RunManager(lambda _: end()).start_run(run_id='run').wait(DEADLINE)",
            "open_run('run'); threads = [daemon(end) for _ in range(8)]; [t.join(DEADLINE) for t in threads]",
            "open_run('run'); signal.signal(signal.SIGUSR1, lambda *_: end()); signal.raise_signal(signal.SIGUSR1)",
            "open_run('run'); asyncio.run(asyncio.to_thread(end))",
        )
    ):
        path = tmp_path / str(number)
        script(
            f"""
log_to_file(path)
ended = threading.Event()
got = []
def end():
    got.append((shutdown(timeout=DEADLINE), active_runs()))
    ended.set()
{call}
assert ended.wait(DEADLINE)
assert set(map(str, got)) == {{"(True, [])"}}, got
""",
            path,
        )
        assert all_ended(path, {"run"}) is (number > 0)


# A file that takes little until somebody reads it.
PIPE = """
reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
log_to_file(path)
run = open_run("run")
for _ in range(2_000):
    run.emit("llm", "stream", {"content": "x" * 1_000})
"""


def test_a_shutdown_does_not_wait_for_a_hung_sink(tmp_path: Path) -> None:
    """It returns False once its time is over, and again when it is called again; the run has ended."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    script(
        PIPE
        + """
assert shutdown(timeout=0.01) is False
assert shutdown(timeout=0) is False
assert run.state == "cancelled"
""",
        path,
    )


def test_a_shutdown_waits_without_the_gil(tmp_path: Path) -> None:
    """While it waits for a sink other threads run, and it returns True once the sink has everything."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    script(
        PIPE
        + """
got = []
thread = daemon(lambda: got.append(shutdown(timeout=None)))
os.set_blocking(reader, True)
text = b""
while b'"cancelled"' not in text[-1_000:]:
    text += os.read(reader, 1 << 16)
thread.join(DEADLINE)
assert got == [True]
""",
        path,
    )


def test_a_shutdown_ends_a_run_whose_code_does_not_return() -> None:
    """A run of a manager has half of the time, and is ended then; the sinks have the rest."""
    script(
        """
started = threading.Event()
def work(_):
    started.set()
    time.sleep(3600)
manager = RunManager(work, cancel_timeout=3600)
run = manager.start_run()
assert started.wait(DEADLINE)
assert shutdown(timeout=0.1) is True
assert run.state == "cancelled"
assert run.token.kind == "shutdown"
"""
    )


def test_a_shutdown_with_arguments_that_cannot_be() -> None:
    """They raise, with their value, before anything is ended."""
    script(
        """
run = open_run()
for arguments, error in [
    ({"reason": None}, TypeError), ({"timeout": "5"}, TypeError), ({"timeout": True}, TypeError),
    ({"timeout": float("nan")}, ValueError),
]:
    try:
        shutdown(**arguments)
        raise AssertionError("it was taken")
    except error as told:
        assert repr(*arguments.values()) in str(told), told
assert run.state == "running"
assert shutdown("x", timeout=10**400) is True
"""
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_the_child_of_a_fork_opens_runs_after_a_shutdown() -> None:
    """A shutdown of the parent is not the child's."""
    script(
        """
shutdown()
pid = os.fork()
if pid == 0:
    with open_run() as run:
        pass
    os._exit(0 if run.state == "completed" and shutdown() else 1)
assert os.waitpid(pid, 0)[1] == 0
""",
        None,
        "-W",
        "ignore::DeprecationWarning",
    )


# --- By SIGTERM ---


class Process:
    """A program that runs, of which each line is heard."""

    def __init__(self, *arguments: str, cwd: Path, env: dict[str, str] | None = None) -> None:
        self.started = subprocess.Popen(  # noqa: S603 - our own interpreter
            [sys.executable, *arguments],
            cwd=cwd,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.said: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with self.started.stdout as lines:  # type: ignore[union-attr]
            for line in lines:
                self._lines.put(line)
        self._lines.put(None)

    def hear(self, pattern: str) -> re.Match[str]:
        """Wait for a line with this in it."""
        end = time.monotonic() + DEADLINE
        while (line := self._lines.get(timeout=max(0.0, end - time.monotonic()))) is not None:
            self.said.append(line)
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"it ended: {''.join(self.said)}")

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until this is so."""
        end = time.monotonic() + DEADLINE
        while not condition():
            assert self.started.poll() is None, "it ended"
            assert time.monotonic() < end, "it did not come about"
            time.sleep(0.01)

    def ends_by(self, number: int) -> int:
        """Send a signal, SIGINT to all its processes as a terminal does, and wait for the end; return the status."""
        if number == signal.SIGINT:
            os.killpg(self.started.pid, number)
        else:
            self.started.send_signal(number)
        return self.started.wait(DEADLINE)


@contextmanager
def process(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> Iterator[Process]:
    """Run a program; kill it, and all that it has started, where it does not end."""
    one = Process(*arguments, cwd=cwd, env=env)
    try:
        yield one
    except BaseException:
        if one.started.poll() is None:
            os.killpg(one.started.pid, signal.SIGKILL)
        raise
    finally:
        if one.started.poll() is None:
            os.killpg(one.started.pid, signal.SIGKILL)
        one.started.wait(DEADLINE)


WAITS = {
    "sleep": "time.sleep(3600)",
    "run": "runs[0].wait()",
    "token": "runs[0].token.wait(); time.sleep(3600)",
    "read": "runs[0].subscribe().read(); time.sleep(3600)",
    "manager": "manager.wait(); time.sleep(3600)",
    "manager's end": "manager.shutdown(); time.sleep(3600)",
    "loop": "asyncio.run(asyncio.sleep(3600))",
    "thread": "threading.Thread(target=time.sleep, args=[3600], daemon=False).start(); time.sleep(3600)",
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS.keys())
def test_sigterm_ends_a_script(wait: str, tmp_path: Path) -> None:
    """With the default action the process ends by the signal, after every run has its last event in the file."""
    path = tmp_path / "events.ndjson"
    code = f"""
log_to_file(path)
shutdown_on_sigterm()
runs = [open_run(f"run {{number}}") for number in range(5)]
manager = RunManager(lambda config: get_run(config["run_id"]).token.wait())
manager.start_run(run_id="managed")
print("ready")
{wait}
time.sleep(3600)
"""
    with process("-c", COMMON + code, cwd=tmp_path, env={"LOG": str(path)}) as one:
        one.hear("ready")
        assert one.ends_by(signal.SIGTERM) == -signal.SIGTERM
    assert all_ended(path, {*(f"run {number}" for number in range(5)), "managed"})


@pytest.mark.skipif(sys.platform != "linux", reason="the masks are read from /proc")
def test_threads_of_the_library_leave_signals_to_the_main_thread(tmp_path: Path) -> None:
    """SIGTERM goes to no thread of ours that is just starting: a main thread that sleeps would not be woken.

    The thread of a Python sink has the signals, since programs that the sink starts inherit its mask.
    """
    out = script(
        """
called = threading.Event()
add_sink(lambda events: called.set(), name="function")
log_to_file(path)
run = open_run(deadline=60.0)
assert called.wait(DEADLINE)
def tasks():
    return {task: open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task")}

# A thread gives itself its name, once it runs.
end = time.monotonic() + DEADLINE
while sum(name.startswith("llm-") for name in tasks().values()) < 3:
    assert time.monotonic() < end
for task, name in tasks().items():
    (mask,) = [line for line in open(f"/proc/self/task/{task}/status") if line.startswith("SigBlk")]
    mask = int(mask.split()[1], 16)
    print(f"{name}:", *(number for number in (2, 11, 15) if mask >> number - 1 & 1))
""",
        tmp_path / "events.ndjson",
    )
    assert sorted(line for line in out.splitlines() if line.startswith("llm-")) == [
        "llm-callback /t: 2 15",
        "llm-callback fu:",
        "llm-deadlines: 2 15",
    ]


def test_sigterm_calls_the_handler_before() -> None:
    """A handler of Python's that was there is called once, after the runs have ended, and is in place again."""
    out = script(
        """
def handler(number, frame):
    print(number == signal.SIGTERM, frame is not None, run.state, signal.getsignal(number) is handler)

signal.signal(signal.SIGTERM, handler)
shutdown_on_sigterm(timeout=None)
run = open_run()
signal.raise_signal(signal.SIGTERM)
signal.raise_signal(signal.SIGTERM)
"""
    )
    assert out.splitlines() == ["True True cancelled True"] * 2


def test_a_signal_of_choice_ends_a_script(tmp_path: Path) -> None:
    """SIGINT is KeyboardInterrupt as before, any other ends the process, after all runs have their last event."""
    signals: dict[str, int] = {"SIGINT": signal.SIGINT, "SIGUSR1": signal.SIGUSR1}
    if sys.platform == "linux":
        signals[f"signal {signal.SIGRTMIN + 1}"] = signal.SIGRTMIN + 1
    for name, number in signals.items():
        path = tmp_path / name
        code = f"""
log_to_file(path)
signal.signal(signal.SIGINT, signal.default_int_handler)
shutdown_on_signal({int(number)})
open_run("run")
try:
    print("ready")
    # Not one long sleep: a signal that comes just before a sleep is handled after it.
    while True:
        time.sleep(0.01)
except KeyboardInterrupt:
    print("KeyboardInterrupt", active_runs())
"""
        with process("-c", COMMON + code, cwd=tmp_path, env={"LOG": str(path)}) as one:
            one.hear("ready")
            ended = one.ends_by(number)
            if number == signal.SIGINT:
                one.hear(r"KeyboardInterrupt \[\]")
                assert ended == 0
            else:
                assert ended == -number
        assert all_ended(path, {"run"})
        assert told(path)["run"][-1]["data"]["reason"] == f"the process was asked to end by {name}"


def test_a_sigterm_that_is_ignored_stays_ignored() -> None:
    """Where the process ignores the signal nothing is installed, and runs go on."""
    script(
        """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
shutdown_on_sigterm()
run = open_run()
signal.raise_signal(signal.SIGTERM)
assert run.state == "running"
assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
"""
    )


def test_a_sigterm_handler_that_cannot_be_installed() -> None:
    """On another thread it is a ValueError, as of `signal.signal`; a timeout that cannot be changes nothing either."""
    script(
        """
errors = []
def job(*arguments):
    try:
        shutdown_on_sigterm(*arguments)
    except (TypeError, ValueError) as error:
        errors.append(type(error))
daemon(job).join(DEADLINE)
job("5")
job(float("nan"))
assert errors == [ValueError, TypeError, ValueError]
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
for number, error in [(0, ValueError), (10_000, ValueError), ("TERM", TypeError), (signal.SIGKILL, OSError)]:
    try:
        shutdown_on_signal(number)
        raise AssertionError("it was taken")
    except error:
        pass
"""
    )


# --- Under servers ---

APP = """
import asyncio
import os
from contextlib import asynccontextmanager

import llm_callback
from llm_callback import web
from starlette.applications import Starlette
from starlette.routing import Route


def work(config):
    llm_callback.get_run(config["run_id"]).token.wait()


@asynccontextmanager
async def lifespan(app):
    llm_callback.log_to_file(f"{os.getpid()}.ndjson")
    manager = llm_callback.RunManager(work)
    for number in range(5):
        llm_callback.open_run(f"run {number}")
    manager.start_run(run_id="managed")
    yield
    await asyncio.to_thread(llm_callback.shutdown)


async def events(request):
    return web.starlette_response(request.path_params["run_id"], request, heartbeat=None)


app = Starlette(routes=[Route("/runs/{run_id}", events, methods=["GET", "HEAD"])], lifespan=lifespan)
"""
RUNS = {*(f"run {number}" for number in range(5)), "managed"}

WSGI = """
import llm_callback
from llm_callback import web


def app(environ, start_response):
    name = environ["PATH_INFO"].rpartition("/")[2]
    if environ["PATH_INFO"].startswith("/open/"):
        llm_callback.open_run(name)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"open"]
    answer = web.sse_answer(name, heartbeat=None)
    start_response(f"{answer.status:d} {answer.status.phrase}", [*answer.headers.items()])
    return answer.body
"""

PAGE = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text(encoding="utf-8")


def sample(name: str) -> str:
    """Return the file of this name that the page about deployment shows."""
    (text,) = re.findall(
        rf"^```python\n(# {re.escape(name)}\n.*?)^```", PAGE, re.MULTILINE | re.DOTALL
    )
    return text


def files(where: Path) -> list[Path]:
    """Return the log files that are there."""
    return sorted(where.glob("*.ndjson"))


def has_begun(path: Path) -> bool:
    """Whether all runs of a worker are in its file."""
    return path.read_bytes().count(b'"started"') == len(RUNS)


class Viewer:
    """A client of one run."""

    def __init__(self, url: str, path: str) -> None:
        address = urlsplit(url)
        self._socket = socket.create_connection((address.hostname, address.port), DEADLINE)  # type: ignore[arg-type]
        self._socket.sendall(f"GET {path} HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode())
        self._file = self._socket.makefile("rb")

    def hear(self, word: bytes) -> None:
        """Wait for a line with this in it."""
        assert any(word in line for line in self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()


def view(url: str, run: str) -> Viewer:
    """Return a client that has seen the first event."""
    viewer = Viewer(url, f"/runs/{run}")
    try:
        viewer.hear(b'"started"')
    except BaseException:
        viewer.__exit__()
        raise
    return viewer


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
@pytest.mark.parametrize("viewers", [0, 1], ids=["alone", "viewed"])
def test_uvicorn_ends_with_every_run_in_the_file(number: int, viewers: int, tmp_path: Path) -> None:
    """With `shutdown` in the lifespan each run has one last event in the file, also while a client follows one."""
    (tmp_path / "app.py").write_text(APP)
    with process("-m", "uvicorn", "app:app", "--port", "0", cwd=tmp_path) as one:
        url = one.hear(r"running on (http://\S+)")[1]
        one.until(lambda: len(files(tmp_path)) == 1 and has_begun(files(tmp_path)[0]))
        with ExitStack() as followers:
            for _ in range(viewers):
                followers.enter_context(view(url, "run%200"))
            one.ends_by(number)
    assert all_ended(files(tmp_path)[0], RUNS)


def test_uvicorn_with_workers_ends_with_every_run_in_the_files(tmp_path: Path) -> None:
    """Each of two workers has all last events in its file, also while clients follow its runs."""
    (tmp_path / "app.py").write_text(APP)
    arguments = ("-m", "uvicorn", "app:app", "--port", "0", "--workers", "2")
    with process(*arguments, cwd=tmp_path) as one:
        url = one.hear(r"running on (http://\S+)")[1]
        one.until(lambda: len(files(tmp_path)) == 2 and all(map(has_begun, files(tmp_path))))
        with view(url, "run%200"), view(url, "run%201"):
            one.ends_by(signal.SIGTERM)
    for path in files(tmp_path):
        assert all_ended(path, RUNS)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_gunicorn_with_uvicorn_ends_with_every_run_in_the_files(
    number: int, tmp_path: Path
) -> None:
    """Under gunicorn, with uvicorn's workers, `shutdown` in the lifespan does the same."""
    (tmp_path / "app.py").write_text(APP)
    worker = "uvicorn_worker.UvicornWorker"
    arguments = ("-m", "gunicorn", "-k", worker, "-w", "2", "-b", "127.0.0.1:0", "app:app")
    with process(*arguments, cwd=tmp_path) as one:
        url = one.hear(r"Listening at: (http://\S+)")[1]
        one.until(lambda: len(files(tmp_path)) == 2 and all(map(has_begun, files(tmp_path))))
        with view(url, "run%200"), view(url, "run%201"):
            one.ends_by(number)
    for path in files(tmp_path):
        assert all_ended(path, RUNS)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
@pytest.mark.parametrize("kind", ["sync", "gthread"])
def test_gunicorn_ends_with_every_run_in_the_file(kind: str, number: int, tmp_path: Path) -> None:
    """With the hooks of docs/deployment.md each run has its last event, and a client that follows one keeps nobody."""
    (tmp_path / "app.py").write_text(WSGI)
    (tmp_path / "gunicorn.conf.py").write_text(sample("gunicorn.conf.py"))
    arguments = ("-m", "gunicorn", "-k", kind, "--threads", "4", "-b", "127.0.0.1:0", "app:app")
    # Two threads would be `gthread` in any case.
    arguments = tuple(a for a in arguments if kind == "gthread" or a not in ("--threads", "4"))
    with process(*arguments, cwd=tmp_path) as one:
        url = one.hear(r"Listening at: (http://\S+)")[1]
        for run in ("a", "b"):
            with Viewer(url, f"/open/{run}") as opening:
                opening.hear(b"open")
        with view(url, "a"):
            one.ends_by(number)
    assert all_ended(files(tmp_path)[0], {"a", "b"})


def test_a_gunicorn_that_hangs_in_its_own_handler_has_every_last_event(tmp_path: Path) -> None:
    """Our handler of SIGINT ends the runs before gunicorn's handler, which may wait for a lock of its own thread."""
    (tmp_path / "app.py").write_text(WSGI)
    (tmp_path / "gunicorn.conf.py").write_text(
        sample("gunicorn.conf.py")
        + """
    # Where the main thread is while it hands a request to the pool; it may be just there.
    def interrupted(*_):
        worker.tpool._shutdown_lock.acquire(blocking=False)
        signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGUSR2, interrupted)
"""
    )
    with process(
        "-m", "gunicorn", "-k", "gthread", "-b", "127.0.0.1:0", "app:app", cwd=tmp_path
    ) as one:
        url = one.hear(r"Listening at: (http://\S+)")[1]
        with Viewer(url, "/open/a") as opening:
            opening.hear(b"open")
        (path,) = files(tmp_path)
        os.kill(int(path.stem.removeprefix("events-")), signal.SIGUSR2)
        one.until(lambda: b'"cancelled"' in path.read_bytes())
    assert all_ended(path, {"a"})


SERVERS = {
    "uvicorn": ("-m", "uvicorn", "app:app", "--port", "0"),
    "uvicorn with workers": ("-m", "uvicorn", "app:app", "--port", "0", "--workers", "2"),
    "gunicorn": (
        *("-m", "gunicorn", "app:app", "-k", "uvicorn_worker.UvicornWorker", "-w", "2"),
        *("-b", "127.0.0.1:0"),
    ),
}


@pytest.mark.parametrize("arguments", SERVERS.values(), ids=SERVERS.keys())
def test_the_application_of_the_page(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """The FastAPI application of docs/deployment.md, as it is printed: SIGTERM ends every run, with its last event."""
    (tmp_path / "app.py").write_text(sample("app.py"))
    with process(*arguments, cwd=tmp_path) as one:
        url = one.hear(r"(?:running on|Listening at:) (http://\S+)")[1]
        number = 2 if len(arguments) > 5 else 1
        one.until(lambda: len(files(tmp_path)) == number)
        runs = [
            httpx.post(f"{url}/runs?task=x", timeout=DEADLINE).json()["run_id"] for _ in range(9)
        ]
        one.ends_by(signal.SIGTERM)
    found = {run: path for path in files(tmp_path) for run in told(path)}
    assert {*found} == {*runs}
    for path in files(tmp_path):
        assert all_ended(path, {run for run in runs if found[run] == path})


def test_a_script_of_the_page_is_ended_by_sigterm(tmp_path: Path) -> None:
    """The script of docs/deployment.md, with more to do, ends by the signal, and its run has its last event."""
    (tmp_path / "script.py").write_text(
        "import llm_callback\nllm_callback.log_to_file('events.ndjson')\n"
        + sample("script.py")
        + "    print('ready')\n    run.wait()\n    import time; time.sleep(3600)\n"
    )
    with process("script.py", cwd=tmp_path) as one:
        one.hear("ready")
        assert one.ends_by(signal.SIGTERM) == -signal.SIGTERM
    (run,) = told(tmp_path / "events.ndjson")
    assert all_ended(tmp_path / "events.ndjson", {run})


def test_a_preloaded_file_is_not_the_workers(tmp_path: Path) -> None:
    """With --preload the workers do not write to the master's file, and do to their own of `post_fork`."""
    log = "import llm_callback\nllm_callback.log_to_file('master.log')\n"
    (tmp_path / "app.py").write_text(log + WSGI)
    (tmp_path / "gunicorn.conf.py").write_text(sample("gunicorn.conf.py"))
    arguments = ("-m", "gunicorn", "-k", "gthread", "--preload", "-b", "127.0.0.1:0", "app:app")
    with process("-W", "ignore::DeprecationWarning", *arguments, cwd=tmp_path) as one:
        url = one.hear(r"Listening at: (http://\S+)")[1]
        with Viewer(url, "/open/a") as opening:
            opening.hear(b"open")
        one.ends_by(signal.SIGTERM)
    assert all_ended(files(tmp_path)[0], {"a"})
    assert (tmp_path / "master.log").read_bytes() == b""


def test_another_worker_does_not_know_a_run(tmp_path: Path) -> None:
    """Of two workers the one that has a run answers with its events, and the other one that there is no such run."""
    (tmp_path / "app.py").write_text(APP.replace("run {number}", "run {number} of {os.getpid()}"))
    arguments = ("-m", "uvicorn", "app:app", "--port", "0", "--workers", "2")
    with process(*arguments, cwd=tmp_path) as one:
        url = one.hear(r"running on (http://\S+)")[1]
        one.until(lambda: len(files(tmp_path)) == 2 and all(map(has_begun, files(tmp_path))))
        run = f"run%200%20of%20{files(tmp_path)[0].stem}"
        seen = set()

        def both() -> bool:
            with suppress(httpx.TransportError):
                seen.add(httpx.head(f"{url}/runs/{run}", timeout=DEADLINE).status_code)
            return len(seen) == 2

        one.until(both)
        one.ends_by(signal.SIGTERM)
    assert seen == {200, 404}
