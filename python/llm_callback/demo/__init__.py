"""``llm-callback demo``: a hierarchy of real agents, many runs of it at once, and an audit of every event.

Each run is a global supervisor, two teams and four workers, real ``strands`` agents with real tools and a scripted
model. Every text and every tool name carries its run's secret marker, and the events that a run must get are worked
out from its script alone, never from what arrived.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from llm_callback import RunManager
from llm_callback.demo._display import Screen, ending, table
from llm_callback.demo._run import DemoRun
from llm_callback.hierarchy.config import ConfigError, LlmConfig
from llm_callback.hierarchy.providers import ModelRequest, ModelUnavailable, create_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from llm_callback.demo._display import _Colour

    _Show = Callable[[Sequence[DemoRun], float], None]

_DEADLINE_SECONDS = 90.0
_STOP_SECONDS = 5.0
_FRAME_SECONDS = 0.1
_PACE_SECONDS = 0.02
_HEAD = (
    "run",
    "state",
    "expected",
    "delivered",
    "foreign",
    "lost",
    "extra",
    "out of order",
    "cancel",
)
_COLOURS: dict[str, _Colour] = {"completed": "green", "cancelled": "yellow", "failed": "red"}


def main(
    *,
    runs: int = 10,
    as_json: bool = False,
    pace: float = _PACE_SECONDS,
    model: str | None = None,
) -> int:
    """Run the demo, print what happens to standard output, and return the exit status: 0 or 1.

    ``runs`` is the number of runs at the same time, at least 2. ``pace`` is the pause before each chunk in seconds, a
    little different for each run. ``model`` is the model of all agents; None is the script. Blocks until
    the slowest run has ended.
    """
    screen = Screen(sys.stdout)
    demo_runs = plan(runs, pace, model)
    if as_json:
        show: _Show = _show_nothing
    else:
        screen.line(
            f"{runs} runs of one hierarchy at once: a supervisor, 2 teams, 4 workers, real strands agents on "
            f"{model or 'a scripted model'}."
        )
        screen.line(
            "Each run has its own secret marker in every word; "
            f"{_victim(demo_runs).run_id} will be cancelled half-way."
        )
        screen.line()
        show = _show_live(screen) if screen.live else _show_lines(screen)
    with held_log():
        try:
            seconds = execute(demo_runs, show)
        finally:
            screen.end_block()
    ok, sentence = verdict(demo_runs)
    if as_json:
        result = {"ok": ok, "verdict": sentence, "seconds": round(seconds, 3)}
        print(json.dumps({**result, "runs": [_as_dict(run) for run in demo_runs]}, indent=2))
    else:
        _show_table(screen, demo_runs)
        screen.line()
        screen.line(sentence, "green" if ok else "red")
    return 0 if ok else 1


def why_not(model: str) -> str | None:
    """Return why ``model`` cannot be used here, in words; None if it can."""
    try:
        create_model(ModelRequest("demo", "the demo", LlmConfig(model, 0.7, 300)))
    except (ConfigError, ModelUnavailable) as error:
        return str(error)
    return None


def plan(runs: int, pace: float = _PACE_SECONDS, model: str | None = None) -> list[DemoRun]:
    """Make the runs of a demo; the fourth (or last) is the one that will be cancelled."""
    victim = min(4, runs)
    return [
        # Each run has a speed of its own: real runs are not in step, and a step would hide a mix-up.
        DemoRun(
            number, is_cancelled=number == victim, delay=pace * (1 + number % 5 * 0.15), model=model
        )
        for number in range(1, runs + 1)
    ]


def execute(runs: Sequence[DemoRun], show: _Show) -> float:
    """Execute all runs at once, and return how many seconds they took.

    ``show(runs, seconds)`` is called ten times a second on this thread, and once at the end. A run that has not ended
    after 90 s is cancelled, and its ``error`` says so.
    """
    began = time.monotonic()
    manager = RunManager(max_workers=len(runs), cancel_timeout=_STOP_SECONDS)
    try:
        for run in runs:
            run.start(manager)
        while not manager.wait(timeout=_FRAME_SECONDS):
            show(runs, time.monotonic() - began)
            if time.monotonic() - began > _DEADLINE_SECONDS:
                break
    finally:
        # This stops runs only after the deadline or a Ctrl-C.
        for run_id in manager.get_active_runs():
            late = next(run for run in runs if run.run_id == run_id)
            late.error = f"stopped by the demo after {time.monotonic() - began:.1f} s"
        manager.shutdown(timeout=0)
        for run in runs:
            run.close(_STOP_SECONDS)
    seconds = time.monotonic() - began
    show(runs, seconds)
    return seconds


def verdict(runs: Sequence[DemoRun]) -> tuple[bool, str]:
    """Return whether every promise was kept, and one sentence that says so to a person."""
    audits = [run.audit() for run in runs]
    foreign, lost, extra, out_of_order = (
        sum(getattr(audit, name) for audit in audits)
        for name in ("foreign", "lost", "extra", "out_of_order")
    )
    counts = f"{foreign} foreign, {lost} lost, {extra} extra, {out_of_order} out of order"
    faults = [fault for run in runs if (fault := run.fault)]
    if faults or not all(audit.clean for audit in audits):
        return False, "; ".join([f"FAILED: {counts}", *faults]) + "."
    victim = _victim(runs)
    return True, (
        f"OK: all {sum(audit.expected for audit in audits)} events of {len(runs)} concurrent runs "
        f"reached their own run ({counts}); {victim.run_id} ended {victim.cancel_ms or 0:.0f} ms after "
        f"its cancel, after {len(victim.delivered)} events, and no other run noticed."
    )


@contextlib.contextmanager
def held_log() -> Iterator[None]:
    """Hold back the log messages, which would tear the display, and print them afterwards."""
    held = _HeldRecords()
    root = logging.getLogger()
    others = root.handlers[:]
    root.handlers[:] = [held]
    try:
        yield
    finally:
        root.handlers[:] = others
        for record in held.records:
            for handler in others or filter(None, [logging.lastResort]):
                if record.levelno >= handler.level:
                    handler.handle(record)


class _HeldRecords(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def _victim(runs: Sequence[DemoRun]) -> DemoRun:
    return next(run for run in runs if run.is_cancelled)


def _show_nothing(runs: Sequence[DemoRun], seconds: float) -> None:
    """Show no progress."""


def _show_live(screen: Screen) -> _Show:
    def show(runs: Sequence[DemoRun], seconds: float) -> None:
        lines: list[tuple[str, _Colour | None]] = []
        for run in runs:
            done, total = len(run.delivered), len(run.events)
            bar = f"/{total}  {screen.bar(done, total, 16)}" if total else ""
            head = f"{run.run_id}  {run.state:<9}  {done:>3}{bar}  {run.speaking:<18.18}"
            room = max(1, screen.columns - len(head) - 2)
            lines.append((f"{head}  {ending(run.last_words, room)}", _COLOURS.get(run.state)))
        lines.append((f"{seconds:.1f} s", "dim"))
        screen.block(lines)

    return show


def _show_lines(screen: Screen) -> _Show:
    told: dict[str, str] = {}
    next_tick = 1.0

    def show(runs: Sequence[DemoRun], seconds: float) -> None:
        nonlocal next_tick
        for run in runs:
            if run.state in _COLOURS and told.get(run.run_id) != run.state:
                told[run.run_id] = run.state
                screen.line(
                    f"{seconds:5.1f} s  {run.run_id} {run.state}: {len(run.delivered)} events"
                )
        if seconds >= next_tick:
            next_tick = seconds + 1.0
            running = sum(run.state == "running" for run in runs)
            events = sum(len(run.delivered) for run in runs)
            screen.line(f"{seconds:5.1f} s  {running} running, {events} events so far")

    return show


def _show_table(screen: Screen, runs: Sequence[DemoRun]) -> None:
    rows = []
    colours: list[_Colour | None] = ["dim"]
    for run in runs:
        audit = run.audit()
        counts = (audit.expected, audit.delivered, audit.foreign, audit.lost, audit.extra)
        numbers = [str(count) for count in (*counts, audit.out_of_order)]
        cancel = "" if run.cancel_ms is None else f"{run.cancel_ms:.0f} ms"
        rows.append([run.run_id, run.state, *numbers, cancel])
        good = audit.clean and run.fault is None
        colours.append(_COLOURS.get(run.state) if good else "red")
    screen.line()
    for text, colour in zip(table(_HEAD, rows, left=2), colours, strict=True):
        screen.line(text, colour)


def _as_dict(run: DemoRun) -> dict[str, object]:
    return {
        "run_id": run.run_id,
        "state": run.state,
        **asdict(run.audit()),
        "cancel_ms": run.cancel_ms,
        "error": run.error,
    }
