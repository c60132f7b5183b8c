"""Programs of tests: what each begins with, how one forks, and what is in the file that one has written."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from support import printed

if TYPE_CHECKING:
    from pathlib import Path

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends the process there")

COMMON = """
import asyncio, gc, json, os, signal, sys, threading, time, traceback
import llm_callback as m
from llm_callback import *

# A shell that runs the tests in the background has the signal ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
context = CallerContext.worker("w", "Worker", "Team")
path = os.environ.get("LOG")
DEADLINE = 30

def until(condition):
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.002)

def contents(run):
    return [event["data"].get("content") for event in run.subscribe("start").read(100_000, 0)]

def full(run):
    # A reader that has not read an event, in a log that has room for none: whoever emits waits.
    reader = run.subscribe(overflow="block", patience=DEADLINE)
    for number in range(10_000):
        run.emit("llm", "stream", {"content": number})
    return reader

def daemon(job):
    thread = threading.Thread(target=job, daemon=True)
    thread.start()
    return thread
"""


def script(code: str, path: Path | None = None, *options: str) -> str:
    """Run ``code`` after COMMON in a fresh interpreter that must end well and say nothing else."""
    env = {} if path is None else {"LOG": str(path)}
    return printed(COMMON + code, *options, env=env)


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the events in a file."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


FORKS = (
    COMMON
    + """
def in_child(job, status=0):
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            job()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    ended(pid, status)

def ended(pid, status):
    end = time.monotonic() + DEADLINE
    while True:
        done, code = os.waitpid(pid, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(code) == status, code
            return
        if time.monotonic() > end:
            os.kill(pid, signal.SIGABRT)
            os.waitpid(pid, 0)
            raise AssertionError("the child did not end")
        time.sleep(0.002)

def raises(error, job):
    try:
        job()
    except error:
        return
    raise AssertionError(f"{error} was not raised")

def works():
    # All that a process does with runs, in the child.
    assert active_runs() == []
    parent = open_run("run")
    assert parent.generation == 1
    with parent:
        with open_run(parent=parent) as run:
            reader = run.subscribe("start")
            heard = []
            thread = threading.Thread(target=lambda: heard.extend(reader))
            thread.start()
            run.handler(context)(data="child's")
            run.cancel("enough")
        thread.join(DEADLINE)
        actions = [event["event"]["action"] for event in heard]
        assert actions == ["started", "stream", "cancelled"], actions
        late = open_run(parent=parent, deadline=0.02)
        assert late.token.wait(DEADLINE)
        assert late.token.kind == "deadline"
        late.complete()
        async def first():
            return await parent.subscribe("start").aread()
        assert len(asyncio.run(first())) == 1
    assert stats()["runs"]["live"] == 0
"""
)


def forks(code: str, path: Path | None = None) -> str:
    """Run ``code`` after FORKS; since 3.12 a fork beside threads warns, which is what is tested here."""
    env = {} if path is None else {"LOG": str(path)}
    return printed(FORKS + code, "-W", "ignore::DeprecationWarning", env=env)
