"""The drop-in module beside a plain-Python model of it: one table, the targets included.

    python benches/python/bench_dropin.py [--quick] [--json FILE]

The baseline is ``tests/python/reference_model.py``, in the same process. Both sides, and the empty call below, take
turns (A, B, C, A, B, C …), so that whatever else the machine does falls on all of them alike; a figure is the least
of its repeats, the repeat that was disturbed least. The cyclic garbage collector is off meanwhile, as in ``timeit``.

Rows with four threads come twice, by the least and by the median repeat. Threads that wait for each other at a lock
do so in most repeats and not in all, which is no disturbance: the least is then the repeat in which they happened not
to meet. The median, in turn, holds whatever else the machine did. Neither figure alone is the truth.

*gross* is the ratio of the two times. *net* is that ratio after the time of an empty Python object with
``__call__(self, **kwargs)`` was taken off both: called with the same arguments from the same loop on as many threads,
it is what Python itself takes for the call, whatever is in the handler. The callback and the checker are Python
functions, so *net* still contains their calls, which are the same on both sides.

Not measured: making the framework's keyword arguments, and the framework itself (strands takes about 9 us a token).
Every repeat has handlers of its own, so that the model's ever growing ``_buffer`` does not count; ours is bounded,
and trims itself every 5 000 tokens after the first 10 000, which does.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import threading
import uuid
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, NamedTuple

import llm_callback
from measuring import (
    ROOT,
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
)

sys.path.insert(0, str(ROOT / "tests" / "python"))

import reference_model

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator
    from types import ModuleType

# What many repeats of a figure are taken as.
Statistic = Callable[[list[float]], float]

INT_RUN, UNREGISTERED_RUN = 1, 7
STR_RUN = str(uuid.UUID(int=0x0B8E_2C1E_6E3A_4B0E_9D6A_3F1F_0F9F_2A77))
THREADS = 4
BASELINE_MODULES = "dataclasses, enum, contextvars, threading"


class Scale(NamedTuple):
    """How often: repeats of each figure, operations in a repeat, fresh interpreters, timed tokens."""

    repeats: int = 60
    calls: int = 5_000
    threaded_repeats: int = 25
    threaded_calls: int = 10_000
    imports: int = 60
    latencies: int = 50_000


QUICK = Scale(3, 200, 3, 200, 3, 500)


class Target(NamedTuple):
    """A ratio that must be reached, and which of a row's ratios it is about."""

    ratio: float
    of: str = "gross"

    def __str__(self) -> str:
        return f"{self.ratio:g} x {self.of}"


@dataclass
class Row:
    """The samples of one line of the table, in nanoseconds per operation."""

    what: str
    plain: list[float]
    ours: list[float]
    empty: list[float] = field(default_factory=list)
    targets: tuple[Target, ...] = ()
    statistic: Statistic = min

    @property
    def ratios(self) -> dict[str, float]:
        """How many times faster ours is; infinite where ours is not above the empty call."""
        plain, ours = self.statistic(self.plain), self.statistic(self.ours)
        ratios = {"gross": plain / ours}
        if self.empty:
            empty = self.statistic(self.empty)
            ratios["net"] = (plain - empty) / (ours - empty) if ours > empty else math.inf
        return ratios

    @property
    def reached(self) -> bool:
        """Whether all targets are."""
        return all(self.ratios[target.of] >= target.ratio for target in self.targets)

    def cells(self) -> list[str]:
        """Return the line as the table shows it."""
        net = self.ratios.get("net")
        return [
            self.what,
            f"{self.statistic(self.plain):,.0f}",
            f"{self.statistic(self.ours):,.0f}",
            f"{self.ratios['gross']:.2f}",
            "" if net is None else "below the empty call" if math.isinf(net) else f"{net:.2f}",
            ", ".join(map(str, self.targets)),
            ("yes" if self.reached else "no") if self.targets else "",
        ]


@dataclass
class Limit:
    """A line that compares ours with itself or with a fixed reference, and must not be above a limit."""

    what: str
    reference: list[float]
    ours: list[float]
    limit: float
    beside: str
    statistic: Statistic = min

    @property
    def ratio(self) -> float:
        """How many times slower ours is than the reference."""
        return self.statistic(self.ours) / self.statistic(self.reference)

    @property
    def reached(self) -> bool:
        """Whether ours is within the limit."""
        return self.ratio <= self.limit

    def cells(self) -> list[str]:
        """Return the line as the table shows it."""
        return [
            self.what,
            f"{self.statistic(self.reference):,.0f}",
            f"{self.statistic(self.ours):,.0f}",
            "",
            "",
            f"{self.ratio:.2f} of at most {self.limit:g} x {self.beside}",
            "yes" if self.reached else "no",
        ]


def caller(module: ModuleType) -> Any:
    """Make the agent that speaks."""
    return module.CallerContext.worker("w1", "Researcher", "Team A")


@contextmanager
def registered(module: ModuleType, run_ids: list[Hashable]) -> Iterator[None]:
    """Give each run a Python callback that does nothing, and a lambda that asks a ``threading.Event``."""

    def callback(event: dict[str, Any]) -> None:
        pass

    for run_id in run_ids:
        cancelled = threading.Event()
        module.register_event_callback(run_id, callback)
        module.register_cancellation_checker(run_id, lambda cancelled=cancelled: cancelled.is_set())
    try:
        yield
    finally:
        for run_id in run_ids:
            module.register_event_callback(run_id, None)
            module.register_cancellation_checker(run_id, None)


def token_row(what: str, run_id: Hashable, targets: tuple[Target, ...], scale: Scale) -> Row:
    """Measure tokens of one run on this thread."""
    kwargs = framework_kwargs(object())

    def handler(module: ModuleType) -> Sample:
        context = caller(module)
        return single(lambda: module.create_callback_handler(context, run_id=run_id), kwargs)

    samples = [handler(reference_model), handler(llm_callback), single(Empty, kwargs)]
    return Row(what, *interleaved(samples, scale.repeats, scale.calls), targets)


def threaded_token_rows(
    what: str, run_ids: list[Hashable], target: Target, limit: float | None, scale: Scale
) -> Iterator[Row | Limit]:
    """Measure tokens of as many runs as there are threads, one run on each, and ours on one thread meanwhile."""
    kwargs = framework_kwargs(object())

    def handlers(module: ModuleType, run_ids: list[Hashable]) -> Sample:
        context = caller(module)
        makers = [
            lambda run_id=run_id: module.create_callback_handler(context, run_id=run_id)
            for run_id in run_ids
        ]
        return threaded(makers, kwargs)

    samples = [
        handlers(reference_model, run_ids),
        handlers(llm_callback, run_ids),
        threaded([Empty] * len(run_ids), kwargs),
        handlers(llm_callback, run_ids[:1]),
    ]
    plain, ours, empty, alone = interleaved(samples, scale.threaded_repeats, scale.threaded_calls)
    for name, statistic in [("least", min), ("median", statistics.median)]:
        yield Row(f"{what}, {name}", plain, ours, empty, (target,), statistic)
        if limit is not None:
            what_slower = f"ours on 1 and {len(run_ids)} threads, {name}"
            yield Limit(what_slower, alone, ours, limit, "1 thread", statistic)


def token_rows(scale: Scale) -> Iterator[Row | Limit]:
    """Measure a token, delivered and dropped, on one thread and on four."""
    runs: list[Hashable] = list(range(INT_RUN, INT_RUN + THREADS))
    targets = (Target(5, "net"), Target(2.2))
    with registered(reference_model, [*runs, STR_RUN]), registered(llm_callback, [*runs, STR_RUN]):
        yield token_row("token to a callback, int id", INT_RUN, targets, scale)
        yield token_row("token to a callback, str id", STR_RUN, targets, scale)
        what = "token to a callback, 4 threads"
        yield from threaded_token_rows(what, runs, Target(8), 1.3, scale)
    unregistered: list[Hashable] = list(range(UNREGISTERED_RUN, UNREGISTERED_RUN + THREADS))
    yield token_row("token dropped", UNREGISTERED_RUN, (Target(6, "net"),), scale)
    what = "token dropped, 4 threads"
    yield from threaded_token_rows(what, unregistered, Target(6), None, scale)


def registration(module: ModuleType) -> Sample:
    """Register a callback and a checker and remove them, as a run does once."""
    set_callback, set_checker = module.register_event_callback, module.register_cancellation_checker

    def callback(event: dict[str, Any]) -> None:
        pass

    def sample(calls: int) -> float:
        turns = itertools.repeat(None, calls)
        start = perf_counter_ns()
        for _ in turns:
            set_callback(INT_RUN, callback)
            set_checker(INT_RUN, callback)
            set_callback(INT_RUN, None)
            set_checker(INT_RUN, None)
        return (perf_counter_ns() - start) / calls

    return sample


def creation(module: ModuleType) -> Sample:
    """Make a handler, and drop it."""
    create, context = module.create_callback_handler, caller(module)

    def sample(calls: int) -> float:
        turns = itertools.repeat(None, calls)
        start = perf_counter_ns()
        for _ in turns:
            create(context, run_id=INT_RUN)
        return (perf_counter_ns() - start) / calls

    return sample


def setup_rows(scale: Scale) -> Iterator[Row]:
    """Measure what a run costs before its first token and after its last."""
    for what, make, target in [
        ("register and remove callback and checker", registration, Target(3)),
        ("create a handler", creation, Target(5)),
    ]:
        samples = [make(reference_model), make(llm_callback)]
        plain, ours = interleaved(samples, scale.repeats, scale.calls)
        yield Row(what, plain, ours, targets=(target,))


def import_time(modules: str) -> float:
    """Return the nanoseconds of an import in a fresh interpreter, whose own start does not count."""
    code = (
        f"from time import perf_counter_ns as now; start = now(); import {modules}; "
        "print(now() - start)"
    )
    return float(interpreter("-c", code).stdout)


def import_row(scale: Scale) -> Limit:
    """Measure the import, beside that of standard modules that it needs."""
    rounds = [
        (import_time(BASELINE_MODULES), import_time("llm_callback")) for _ in range(scale.imports)
    ]
    baseline, ours = (list(figures) for figures in zip(*rounds, strict=True))
    beside = f"`{BASELINE_MODULES}`"
    return Limit("import llm_callback", baseline, ours, 1.3, beside)


def import_breakdown() -> str:
    """List the modules that the import's time is spent in, slowest first."""
    lines = interpreter("-X", "importtime", "-c", "import llm_callback").stderr.splitlines()
    # Lines are `import time: self | cumulative | name`; those before the first of site's are the interpreter's own.
    entries = [line.removeprefix("import time:").split("|") for line in lines[1:]]
    names = [entry[2].strip() for entry in entries]
    own = entries[names.index("site") + 1 :]
    slowest = sorted(((int(entry[0]), entry[2].strip()) for entry in own), reverse=True)
    return "\n".join(f"{own_us:>7} us  {name}" for own_us, name in slowest[:12])


def latencies(handler: Callable[..., object], kwargs: dict[str, Any], calls: int) -> list[int]:
    """Time each single token, two clock readings included."""
    found = []
    for _ in itertools.repeat(None, calls):
        start = perf_counter_ns()
        handler(**kwargs)
        found.append(perf_counter_ns() - start)
    return sorted(found)


def latency_table(scale: Scale) -> dict[str, dict[str, int]]:
    """Measure the distribution of one token's time, on each side."""
    kwargs, table = framework_kwargs(object()), {}
    for name, module in [("plain", reference_model), ("ours", llm_callback)]:
        with registered(module, [INT_RUN]):
            handler = module.create_callback_handler(caller(module), run_id=INT_RUN)
            table[name] = percentiles(latencies(handler, kwargs, scale.latencies))
    table["empty"] = percentiles(latencies(Empty(), kwargs, scale.latencies))
    return table


def as_json(row: Row | Limit) -> dict[str, Any]:
    """Return a line with all its samples; a ratio that is infinite is null."""
    series = {"plain": row.plain, "empty": row.empty} if isinstance(row, Row) else {}
    if isinstance(row, Limit):
        series = {"reference": row.reference}
        ratios = {"slower": row.ratio, "limit": row.limit}
    else:
        ratios = {name: None if math.isinf(x) else x for name, x in row.ratios.items()}
    series["ours"] = row.ours
    return {
        "what": row.what,
        "reached": row.reached,
        "ratios": ratios,
        "median_ns": {name: statistics.median(ns) for name, ns in series.items() if ns},
        "samples_ns": series,
    }


def main() -> None:
    """Measure everything, and print it."""
    parser = argparse.ArgumentParser(description="The drop-in module beside plain Python.")
    parser.add_argument("--quick", action="store_true", help="only to see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw numbers there")
    options = parser.parse_args()
    scale = QUICK if options.quick else Scale()

    where = environment()
    print("\n".join(f"{name + ':':<8} {value}" for name, value in where.items()), end="\n\n")
    imports = import_row(scale)
    rows = [*token_rows(scale), *setup_rows(scale), imports]
    head = ["what", "plain ns", "ours ns", "gross", "net", "target", "reached"]
    print_table([head, *(row.cells() for row in rows)])

    spread = latency_table(scale)
    print("\nOne token to a callback, each timed alone (two clock readings included):\n")
    shares = list(spread["ours"])
    print_table(
        [
            ["ns", *shares],
            *([name, *(f"{ns:,}" for ns in of.values())] for name, of in spread.items()),
        ]
    )
    if not imports.reached:
        print(f"\nWhere the import's time is spent:\n{import_breakdown()}")
    if options.json:
        report = {"where": where, "rows": [as_json(row) for row in rows], "latency_ns": spread}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
