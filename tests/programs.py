"""Programs that end while everything is going on, under load: each one's log file has the end of each run, once.

`make programs PROGRAMS=200` runs 200 programs, three at a time, beside two busy loops. The programs differ in how they
end (at the last line, by `sys.exit`, by Ctrl-C, by an exception) and in what goes on meanwhile (threads that open,
speak, cancel and read; a RunManager; a Python sink; coroutines). The file of a program that fails is kept, and named.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

# A program that takes this long hangs. It is no measure of speed.
DEADLINE = 120.0
# So many problems of one program are printed.
SHOWN = 5

TERMINAL = ("completed", "failed", "cancelled")

HEAD = """
import atexit, json, os, sys

path, moment = os.environ["LOG"], float(os.environ["MOMENT"])
opened, heard = [], {}

def say_what_was():
    said = {"opened": list(opened), "heard": heard, "sinks": stats()["sinks"]}
    with open(path + ".said", "w") as file:
        json.dump(said, file)

# Before the library is imported: so it is called after the library's own end.
atexit.register(say_what_was)

import asyncio, signal, threading, time
from llm_callback import CallerContext, RunCancelled, RunManager, log_to_file, open_run, stats

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.setswitchinterval(1e-5)
context = CallerContext.worker("w", "Worker", "Team")
log_to_file(path)

def new(**options):
    run = open_run(**options)
    opened.append(run.run_id)
    return run

def forever(job):
    arrived = threading.Event()
    def run():
        arrived.set()
        while True:
            try:
                job()
            except (RuntimeError, RunCancelled, StopIteration):
                # The end of what the job uses.
                pass
    threading.Thread(target=run, daemon=True).start()
    arrived.wait()

def life():
    with new(deadline=100) as run:
        handler = run.handler(context)
        for _ in range(5):
            handler(data="x", reasoningText="y")

def short():
    new().complete()

def stopped():
    run = new(deadline=0.001)
    run.token.wait()
    run.complete()

def family():
    parent = new()
    for _ in range(3):
        new(parent=parent).emit("llm", "stream", {})
    parent.fail("broken")
"""

SCENES = {
    "threads": """
shared = new()
forever(life)
forever(short)
forever(stopped)
forever(family)
forever(lambda: shared.emit("llm", "stream", {}))
forever(lambda: shared.subscribe().read(10, 0.001))
""",
    "ends": """
for _ in range(4):
    forever(short)
""",
    "manager": """
def execute(config):
    run = open_run(parent=config["run_id"])
    opened.append(run.run_id)
    with run:
        run.handler(context)(data="x")

manager = RunManager(execute, max_workers=4, max_queued=10_000, capture=False)
def start():
    run = manager.start_run()
    opened.append(run.run_id)
    run.wait(0.001)
forever(start)
forever(start)
forever(life)
""",
    "sink": """
import llm_callback

def hear(events):
    for event in events:
        if event["event"]["category"] == "lifecycle" and event["event"]["action"] != "started":
            heard.setdefault(event["run_id"], []).append(event["event"]["action"])

if hasattr(llm_callback, "add_sink"):
    llm_callback.add_sink(hear, name="hear")
forever(short)
forever(life)
""",
    "coroutines": """
async def read(run):
    async for _ in run.subscribe("start"):
        pass

async def serve():
    while True:
        with new() as run:
            task = asyncio.ensure_future(read(run))
            run.emit("llm", "stream", {})
            await asyncio.sleep(0)
        await task

forever(lambda: asyncio.run(serve()))
forever(short)
forever(stopped)
""",
}

# How a program ends, with which status, and what is the last that it says.
ENDS = {
    "last line": ("time.sleep(moment)\n", 0, ""),
    "sys.exit": ("with new() as run:\n    time.sleep(moment)\n    sys.exit(3)\n", 3, ""),
    "interrupt": (
        """
def interrupt():
    time.sleep(moment)
    os.kill(os.getpid(), signal.SIGINT)

with new() as run:
    threading.Thread(target=interrupt, daemon=True).start()
    run.wait()
""",
        -signal.SIGINT,
        "KeyboardInterrupt",
    ),
    "exception": (
        "with new() as run:\n    time.sleep(moment)\n    raise LookupError('on purpose')\n",
        1,
        "LookupError: on purpose",
    ),
}


@dataclass
class Done:
    """What became of one program."""

    title: str
    path: Path
    runs: int
    problems: list[str]


def main() -> int:
    """Run the programs; return the status to exit with."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("programs", type=int, nargs="?", default=200)
    parser.add_argument("--at-once", type=int, default=3)
    parser.add_argument("--busy", type=int, default=2, help="busy loops beside the programs")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="llm-callback-programs-"))
    runs = passed = failed = 0
    with busy(options.busy), ThreadPoolExecutor(options.at_once) as pool:
        programs = [pool.submit(program, folder, n) for n in range(1, options.programs + 1)]
        for future in as_completed(programs):
            done = future.result()
            runs += done.runs
            passed += not done.problems
            if done.problems:
                failed += 1
                print(f"FAILED {done.title}; {passed} passed before: {done.path}")
                for problem in done.problems[:SHOWN]:
                    print(f"  {problem}")
                if len(done.problems) > SHOWN:
                    print(f"  … and {len(done.problems) - SHOWN} more")
                sys.stdout.flush()
    if not failed:
        shutil.rmtree(folder)
    print(f"{passed} passed, {failed} failed, {runs} runs seen")
    return 1 if failed else 0


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """Keep the processors busy."""
    command = [sys.executable, "-c", "while True: pass"]
    started = [subprocess.Popen(command) for _ in range(loops)]  # noqa: S603 - our own interpreter
    try:
        yield
    finally:
        for each in started:
            each.kill()
            each.wait()


def program(folder: Path, number: int) -> Done:
    """Run one program, and look at what it has left; keep the files if there is a problem."""
    kinds = list(product(SCENES, ENDS))
    scene, end = kinds[number % len(kinds)]
    code, status, last_line = ENDS[end]
    path = folder / f"{number}.ndjson"
    moment = random.Random(number).uniform(0.0, 0.3)  # noqa: S311 - no secret
    env = {**os.environ, "LOG": str(path), "MOMENT": str(moment)}
    command = [sys.executable, "-c", HEAD + SCENES[scene] + code]
    began = time.monotonic()
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter
            command, env=env, capture_output=True, text=True, timeout=DEADLINE, check=False
        )
    except subprocess.TimeoutExpired:
        title = f"program {number} ({scene}, {end})"
        return Done(title, path, 0, [f"has not ended after {DEADLINE} seconds"])
    title = f"program {number} ({scene}, {end}, {time.monotonic() - began:.1f} s)"
    problems = []
    if done.returncode != status:
        problems.append(f"the status is {done.returncode}, not {status}")
    if (done.stderr.splitlines() or [""])[-1] != last_line or done.stdout:
        problems.append(f"it says: {done.stdout[-500:]}{done.stderr[-2_000:]}")
    runs = 0
    try:
        said = json.loads(Path(f"{path}.said").read_bytes())
        told = [json.loads(line) for line in path.read_bytes().splitlines()]
    except (OSError, ValueError) as error:
        problems.append(f"its files cannot be read: {error!r}")
    else:
        runs = len({event["run_id"] for event in told})
        problems += checked(told, said)
        if problems:
            problems.insert(0, f"the sinks: {said['sinks']}")
    if not problems:
        path.unlink()
        Path(f"{path}.said").unlink()
    return Done(title, path, runs, problems)


def checked(told: list[dict[str, Any]], said: dict[str, Any]) -> list[str]:
    """Return what is wrong with the events of a file, beside what the program itself knows."""
    problems = []
    words: dict[str, list[str]] = {}
    last: Counter[str] = Counter()
    for event in told:
        run_id, sequence = event["run_id"], event["sequence"]
        words.setdefault(run_id, []).append(word(event))
        if sequence <= last[run_id]:
            problems.append(f"run {run_id}: event {sequence} comes after {last[run_id]}")
        last[run_id] = sequence
    for run_id, its in words.items():
        ends = [place for place, each in enumerate(its) if each in TERMINAL]
        if not ends:
            problems.append(f"run {run_id} has no end: {its[-3:]}")
        elif ends != [len(its) - 1]:
            problems.append(f"run {run_id}: ends at {ends} of {len(its)} events: {its[-5:]}")
        if its[0] != "started" and its != ["cancelled"]:
            problems.append(f"run {run_id} does not begin with its start: {its[:3]}")
    problems += [f"run {run_id} is not there" for run_id in said["opened"] if run_id not in words]
    problems += misheard(words, said)
    return problems


def misheard(words: dict[str, list[str]], said: dict[str, Any]) -> list[str]:
    """Return what is wrong with what a Python sink has heard, if there was one."""
    sink = said["sinks"].get("hear")
    if sink is None:
        return []
    if sink["errors"] or sink["waiting"]:
        return [f"the Python sink: {sink}"]
    if sink["dropped"]:
        # Its patience was over, and it says so.
        return []
    heard = said["heard"]
    return [
        f"run {run_id}: the Python sink heard {heard.get(run_id)}, the file has {its[-1]}"
        for run_id, its in words.items()
        if heard.get(run_id) != its[-1:]
    ]


def word(event: dict[str, Any]) -> str:
    """Return what a lifecycle event says; of another event its category and action."""
    category, action = event["event"]["category"], event["event"]["action"]
    return action if category == "lifecycle" else f"{category}.{action}"


if __name__ == "__main__":
    sys.exit(main())
