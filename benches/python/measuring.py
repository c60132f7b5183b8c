"""What the benches share: samples that take turns, the framework's call, and how figures are printed."""

from __future__ import annotations

import gc
import itertools
import os
import platform
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

# One call of what is measured: how often to do it, and the nanoseconds that took.
Sample = Callable[[int], float]


class Empty:
    """A handler that does nothing: what Python takes for the call alone."""

    def __call__(self, **kwargs: Any) -> None:
        """Ignore what the framework sent."""


def framework_kwargs(context: object) -> dict[str, Any]:
    """Return what strands 1.62 sends with a text delta from its second request on: 12 arguments, in its order."""
    return {
        "data": "hello ",
        "delta": {"text": "hello "},
        "agent": context,
        "event_loop_cycle_id": uuid.UUID(int=1),
        "request_state": {},
        "event_loop_cycle_trace": context,
        "event_loop_cycle_span": context,
        "model": context,
        "messages": [],
        "system_prompt": None,
        "tool_config": {},
        "event_loop_parent_cycle_id": uuid.UUID(int=2),
    }


def timed_calls(handler: Callable[..., object], kwargs: dict[str, Any], calls: int) -> float:
    """Return the nanoseconds of ``calls`` calls, the loop included."""
    turns = itertools.repeat(None, calls)
    start = perf_counter_ns()
    for _ in turns:
        handler(**kwargs)
    return perf_counter_ns() - start


def single(make: Callable[[], Any], kwargs: dict[str, Any]) -> Sample:
    """Call a fresh handler on this thread."""
    return lambda calls: timed_calls(make(), kwargs, calls) / calls


def threaded(makers: list[Callable[[], Any]], kwargs: dict[str, Any]) -> Sample:
    """Call one fresh handler per thread, all threads at once: wall time by number of all calls."""

    def sample(calls: int) -> float:
        barrier = threading.Barrier(len(makers))
        spans: list[tuple[int, int]] = []

        def work(handler: Callable[..., object]) -> None:
            barrier.wait()
            start = perf_counter_ns()
            timed_calls(handler, kwargs, calls)
            spans.append((start, perf_counter_ns()))

        threads = [threading.Thread(target=work, args=(make(),)) for make in makers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wall = max(end for _, end in spans) - min(start for start, _ in spans)
        return wall / (calls * len(makers))

    return sample


def interleaved(samples: list[Sample], repeats: int, calls: int) -> list[list[float]]:
    """Take the samples in turns; return the figures of each."""
    for sample in samples:
        sample(max(calls // 10, 1))
    gc.collect()
    gc.disable()
    try:
        rounds = [[sample(calls) for sample in samples] for _ in range(repeats)]
    finally:
        gc.enable()
    return [list(figures) for figures in zip(*rounds, strict=True)]


def interpreter(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter, without the user's environment."""
    return subprocess.run(  # noqa: S603
        [sys.executable, "-I", *arguments], capture_output=True, text=True, check=True
    )


def percentiles(ordered: list[int]) -> dict[str, int]:
    """Return the middle, and the ends that users notice."""
    last = len(ordered) - 1
    return {f"p{share:g}": ordered[round(last * share / 100)] for share in (50, 99, 99.9)}


def environment() -> dict[str, str]:
    """Describe where the figures are from."""
    cpu = "unknown CPU"
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    commit = output_of("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    changed = output_of("git", "-C", str(ROOT), "status", "--porcelain", "--", "src", "python")
    return {
        "cpu": f"{cpu}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "rustc": output_of("rustc", "--version"),
        "commit": commit + (" with changes" if changed else ""),
    }


def output_of(*command: str) -> str:
    """Return the first line that a command prints, or nothing where there is no such command."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError:
        return ""
    return done.stdout.strip().partition("\n")[0]


def print_table(rows: list[list[str]]) -> None:
    """Print Markdown, with its columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    for row in rows:
        print("| " + " | ".join(map(str.ljust, row, widths)) + " |")
