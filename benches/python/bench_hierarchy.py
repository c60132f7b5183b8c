"""Ten concurrent runs of the demo's hierarchy beside the same without our handlers: what ours costs on top of strands.

    python benches/python/bench_hierarchy.py [--quick] [--json FILE]

Both sides are real strands agents on scripted models without pauses, started by a RunManager; on one side each agent's
``callback_handler`` is None, so that no token becomes an event. The sides take turns; the ratio is that of the medians
of the wall times from the first start to the last end. Events are counted in the logs of our side.

After that, when as many finished runs are kept as ever are, a hundred further runs are done, and the bytes that the
allocator has given out are compared: not what the process has, since a heap that runs on many threads go through
keeps more or less of what is free in it. Python's own blocks are counted too.

At last runs are cancelled in the middle of what agents do, one after the other: the milliseconds from the request to
the run's last event.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import json
import statistics
import sys
import threading
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from strands import tool

from llm_callback import RunManager, get_run
from llm_callback.demo._run import DemoRun
from llm_callback.hierarchy import HierarchyExecutor, register_script, register_tool
from llm_callback.testing import Pause, ScriptedModel, Text, ToolCall
from measuring import environment, print_table

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llm_callback import Run

RUNS = 10
AT_MOST = 1.1
# Of a hundred runs, each of which has some 100 KiB of events.
GROWTH_AT_MOST = 64 << 10
BLOCKS_AT_MOST = 1_000
CANCEL_MS_AT_MOST = 100


def executed(demo: list[DemoRun], executor: HierarchyExecutor) -> tuple[float, list[Run]]:
    """Run them all at once; return the seconds, and the runs."""

    def execute(config: dict[str, Any]) -> Any:
        return executor.execute_in(get_run(config["run_id"]), config)

    with RunManager(execute, max_workers=len(demo)) as manager:
        start = perf_counter()
        runs = [manager.start_run(one.config(), f"about {one.topic}") for one in demo]
        manager.wait()
        seconds = perf_counter() - start
    assert {run.state for run in runs} == {"completed"}, "a run has failed"
    return seconds, runs


def in_use() -> int:
    """Return how many bytes the C library's allocator has given out; 0 where it does not say."""
    gc.collect()
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return 0
    mallinfo2.restype = _MallocInfo
    return int(mallinfo2().uordblks)


class _Talking(ScriptedModel):
    """Says words for as long as it is asked for them, and never lets the loop's other tasks run."""

    def __init__(self, began: threading.Event) -> None:
        super().__init__(["unused"])
        self._began = began

    async def stream(self, *_args: Any, **_options: Any) -> AsyncIterator[Any]:
        """Talk."""
        yield {"messageStart": {"role": "assistant"}}
        yield {"contentBlockStart": {"start": {}}}
        for _ in range(1_000_000):
            yield {"contentBlockDelta": {"delta": {"text": "word "}}}
            self._began.set()


def cancel_ms(what: str, count: int) -> list[float]:
    """Cancel so many runs whose worker is at ``what``; return how long each took to end."""
    began, go_on = threading.Event(), threading.Event()

    @tool
    async def wait_async() -> str:
        """Wait in the loop."""
        began.set()
        await asyncio.Event().wait()
        return "never"

    @tool
    def wait_sync() -> str:
        """Wait on a thread."""
        began.set()
        go_on.wait()
        return "late"

    turns: dict[str, list[Any]] = {
        "a silent model": [[Text(("word ",)), Pause(600)]],
        "an async tool": [ToolCall("wait_async", {}), "done"],
        "a synchronous tool": [ToolCall("wait_sync", {}), "done"],
    }
    says = {
        "global-supervisor": [ToolCall("team_t", {"task": "x"}), "done"],
        "team-1-supervisor": [ToolCall("worker_w", {"task": "x"}), "done"],
        "team-1-worker-1": turns.get(what, []),
    }

    def script(request: Any) -> Any:
        is_talking = what == "a talking model" and request.agent_id == "team-1-worker-1"
        return _Talking(began) if is_talking else says[request.agent_id]

    def listen(event: dict[str, Any]) -> None:
        if what == "a silent model" and event["data"].get("content") == "word ":
            began.set()

    register_script("cancelled", script)
    for one in (wait_async, wait_sync):
        register_tool(one.tool_name, one)
    model = {"model_id": "scripted:cancelled"}
    worker = {"name": "W", "tools": ["wait_async", "wait_sync"], **model}
    config = {
        "global_model_id": model["model_id"],
        "teams": [{"name": "T", "workers": [worker], **model}],
    }
    took = []
    with RunManager(capture=False) as manager:
        for _ in range(count):
            began.clear()
            run = manager.start_run(config, on_event=listen)
            assert began.wait(60), "the worker has not begun"
            run.cancel()
            assert run.wait(60), "the run has not ended"
            assert run.finished_at is not None
            assert run.cancel_requested_at is not None
            took.append((run.finished_at - run.cancel_requested_at) * 1e3)
        go_on.set()
    return took


class _MallocInfo(ctypes.Structure):
    # All of them as the C library has them, of which one is looked at.
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def main() -> None:
    """Measure both, and print it."""
    parser = argparse.ArgumentParser(description="The hierarchy beside strands alone.")
    parser.add_argument("--quick", action="store_true", help="only to see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw numbers there")
    options = parser.parse_args()
    rounds, further = (2, 1) if options.quick else (31, 10)

    demo = [DemoRun(number, is_cancelled=False, delay=0) for number in range(1, RUNS + 1)]
    for one in demo:
        register_script(one.marker, one.scripted_model)
        register_tool(f"search_{one.marker}", one.search())
    sides = [
        HierarchyExecutor(agent_options=lambda _: {"callback_handler": None}),
        HierarchyExecutor(),
    ]
    for side in sides:
        executed(demo, side)
    alone, ours = zip(
        *([executed(demo, side)[0] for side in sides] for _ in range(rounds)), strict=True
    )
    _, runs = executed(demo, sides[1])
    events = sum(len(run.subscribe("start").read(100_000, 0)) for run in runs)

    # The table of finished runs is full after a thousand: until then memory grows by what can still be read.
    for _ in range(1 if options.quick else 100):
        executed(demo, sides[1])
    before, blocks_before = in_use(), sys.getallocatedblocks()
    for _ in range(further):
        executed(demo, sides[1])
    growth = in_use() - before
    blocks = sys.getallocatedblocks() - blocks_before

    cancels = {
        what: cancel_ms(what, 2 if options.quick else 20)
        for what in ("a silent model", "an async tool", "a synchronous tool", "a talking model")
    }

    ratio = statistics.median(ours) / statistics.median(alone)
    rows = [
        ["what", "strands alone", "ours", "ratio", "target", "reached"],
        [
            f"{RUNS} runs of seven agents, ms",
            f"{statistics.median(alone) * 1e3:.0f}",
            f"{statistics.median(ours) * 1e3:.0f}",
            f"{ratio:.3f}",
            f"at most {AT_MOST}",
            "yes" if ratio <= AT_MOST else "**no**",
        ],
        ["events a second", "", f"{events / statistics.median(ours):,.0f}", "", "", ""],
        [
            f"memory in use after {further * RUNS} further runs, KiB",
            "",
            f"{growth / 1024:+,.0f}",
            "",
            f"at most {GROWTH_AT_MOST // 1024:,}",
            "yes" if growth <= GROWTH_AT_MOST else "**no**",
        ],
        [
            f"Python's blocks after {further * RUNS} further runs",
            "",
            f"{blocks:+,}",
            "",
            f"at most {BLOCKS_AT_MOST:,}",
            "yes" if blocks <= BLOCKS_AT_MOST else "**no**",
        ],
        *(
            [
                f"cancel of {what}, ms: median, largest of {len(took)}",
                "",
                f"{statistics.median(took):.1f}, {max(took):.1f}",
                "",
                f"at most {CANCEL_MS_AT_MOST}",
                "yes" if max(took) <= CANCEL_MS_AT_MOST else "**no**",
            ]
            for what, took in cancels.items()
        ),
    ]
    where = environment()
    print("\n".join(f"{name + ':':<8} {value}" for name, value in where.items()), end="\n\n")
    print_table(rows)
    if options.json:
        report = {
            "where": where,
            "alone": alone,
            "ours": ours,
            "events": events,
            "growth": growth,
            "blocks": blocks,
            "cancels": cancels,
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
