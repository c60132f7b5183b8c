"""The benches run: a few rounds of each line, in a process of its own. What they measure is not asked here."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from support import DEADLINE

BENCHES = Path(__file__).resolve().parents[2] / "benches" / "python"

pytestmark = pytest.mark.thread_unsafe(reason="starts processes that need the machine themselves")


@pytest.mark.parametrize(("bench", "key"), [("bench_dropin", "rows"), ("bench_runs", "lines")])
def test_each_line_of_a_bench_is_measured(tmp_path, bench, key):
    """A bench prints a table and writes the same lines as JSON, each with samples that are numbers."""
    report = tmp_path / "report.json"
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, BENCHES / f"{bench}.py", "--quick", "--json", report],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = json.loads(report.read_text())[key]
    assert lines
    for line in lines:
        assert f"| {line['what']} " in done.stdout
        for samples in (line.get("samples") or line["samples_ns"]).values():
            assert all(math.isfinite(sample) for sample in samples)


def test_the_bench_of_the_hierarchy_measures_both_sides(tmp_path):
    """It prints its table, and writes the seconds of each round and the number of events as JSON."""
    report = tmp_path / "report.json"
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, BENCHES / "bench_hierarchy.py", "--quick", "--json", report],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(report.read_text())
    assert len(found["alone"]) == len(found["ours"]) == 2
    assert all(seconds > 0 for seconds in (*found["alone"], *found["ours"]))
    assert found["events"] > 1_000
    assert "| 10 runs of seven agents, ms " in done.stdout
