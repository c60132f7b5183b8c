"""What the tests of threads and of processes share: jobs with a deadline, fresh interpreters, unused run ids."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import pytest

import llm_callback

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

# A test that waits this long has failed. It is no measure of speed.
DEADLINE = 60.0
# How often the stress tests are repeated: `make stress SCALE=10`.
SCALE = int(os.environ.get("STRESS_SCALE", "1"))


class Running(Generic[T]):
    """A job on a thread of its own. A daemon: one that never returns must not keep pytest from ending."""

    def __init__(self, job: Callable[[], T]) -> None:
        self._outcome: Future[T] = Future()
        self._thread = threading.Thread(target=self._run, args=(job,), daemon=True)
        self._thread.start()

    def result(self, deadline: float = DEADLINE) -> T:
        """Wait for the job, and return or raise what it did."""
        result = self._outcome.result(deadline)
        self._thread.join(deadline)
        assert not self._thread.is_alive()
        return result

    @property
    def is_done(self) -> bool:
        """Whether the job has returned or raised."""
        return self._outcome.done()

    def _run(self, job: Callable[[], T]) -> None:
        try:
            self._outcome.set_result(job())
        except BaseException as error:  # noqa: BLE001 - result() raises it
            self._outcome.set_exception(error)


def in_thread(job: Callable[[], T]) -> T:
    """Return or raise what ``job`` does on a fresh thread."""
    return Running(job).result()


def together(jobs: Sequence[Callable[[], T]], deadline: float = DEADLINE) -> list[T]:
    """Return what the jobs return, each on a thread of its own, all let go at once; raise the first error."""
    gate = threading.Barrier(len(jobs))

    def waiting(job: Callable[[], T]) -> Callable[[], T]:
        def run() -> T:
            gate.wait(deadline)
            return job()

        return run

    end = time.monotonic() + deadline
    running = [Running(waiting(job)) for job in jobs]
    return [job.result(max(0.0, end - time.monotonic())) for job in running]


def waited(event: threading.Event) -> None:
    """Wait for the event, and fail if it does not come."""
    assert event.wait(DEADLINE), "the event did not come"


def scaled(size: int, stress: int) -> list[Any]:
    """Return parameters for a test: one of this size, and, for `make stress`, SCALE times the other one."""
    ids = [f"stress {number}" for number in range(1, SCALE + 1)]
    return [size, *(pytest.param(stress, marks=pytest.mark.stress, id=name) for name in ids)]


def new_id(name: str = "run") -> str:
    """Return a run id that no other test uses, nor the same test on another thread."""
    return f"{name}-{uuid.uuid4().hex}"


def worker(name: str = "worker") -> llm_callback.CallerContext:
    """Return the context of an agent whose id is ``name``."""
    return llm_callback.CallerContext.worker(name, name.title(), "Team")


def word(event: dict[str, Any]) -> tuple[Any, ...]:
    """Return the action of an event and the values of its data."""
    return (event["event"]["action"], *event["data"].values())


def events(run: llm_callback.Run) -> list[dict[str, Any]]:
    """Return all events that the log of ``run`` holds now."""
    return run.subscribe("start").read(100_000, 0)


def said(run: llm_callback.Run) -> list[tuple[str, Any]]:
    """Return the words and the data of all events that the log of ``run`` holds now."""
    return [
        (f"{event['event']['category']}.{event['event']['action']}", event["data"])
        for event in events(run)
    ]


def raised_by(job: Callable[[], Any]) -> BaseException | None:
    """Return what ``job`` raises, if it does."""
    try:
        job()
    except BaseException as error:  # noqa: BLE001 - the test looks at it
        return error
    return None


def interpreter(
    code: str, *options: str, env: dict[str, Any] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a fresh interpreter, with ``env`` on top of our environment."""
    return subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, *options, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        env={**os.environ, **(env or {})},
    )


def printed(code: str, *options: str, env: dict[str, Any] | None = None) -> str:
    """Return what ``code`` prints in a fresh interpreter that must end well and say nothing else."""
    done = interpreter(code, *options, env=env)
    told = f"status {done.returncode}\n{done.stdout[-1_000:]}\n{done.stderr[-4_000:]}"
    assert (done.returncode, done.stderr) == (0, ""), told
    return done.stdout
