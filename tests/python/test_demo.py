"""The demo: real agents at once, and an audit that has been seen to find every kind of fault."""

from __future__ import annotations

import io
import json
import logging
import re
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, strategies as st

import llm_callback
from llm_callback import cli, demo
from llm_callback.demo import _run as _demo_run
from llm_callback.demo._display import Screen, ending, table
from llm_callback.demo._run import DemoRun, Event, audit
from llm_callback.hierarchy import providers, register_script
from llm_callback.testing import Gate, Pause, ScriptedModel, Text

pytestmark = pytest.mark.thread_unsafe(reason="sys.stdout is the whole process's")

if TYPE_CHECKING:
    from collections.abc import Callable

EXPECTED = [Event("run-01", "stream", f"word[cafe.{number}]") for number in range(6)]
RUNS = 3
DEADLINE = 20.0
VICTIM = "run-03"


class Terminal(io.StringIO):
    """A file that says that it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


@pytest.fixture(autouse=True)
def _leisure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a cancel as long as a busy machine takes: how fast one is, `make demo` asks."""
    monkeypatch.setattr(_demo_run, "_CANCEL_MS_AT_MOST", 1_000 * DEADLINE)


@pytest.fixture
def result(capsys: pytest.CaptureFixture[str]) -> Callable[[], tuple[int, dict[str, Any]]]:
    """Run a small demo without pauses; return its status and its JSON."""

    def run() -> tuple[int, dict[str, Any]]:
        status = demo.main(runs=RUNS, as_json=True, pace=0)
        return status, json.loads(capsys.readouterr().out)

    return run


def by_run(report: dict[str, Any], count: str) -> dict[str, int]:
    """Return one count of each run."""
    return {run["run_id"]: run[count] for run in report["runs"]}


def is_chosen(event: dict[str, Any]) -> bool:
    """Whether it is one of four words of a run."""
    return str(event["data"].get("content")).startswith("notebook")


def view_with(
    monkeypatch: pytest.MonkeyPatch, deliver: Callable[[DemoRun, dict[str, Any], Any], None]
) -> None:
    """Have ``deliver(run, event, view)`` stand between a run's stream and its viewer."""
    view = DemoRun._view
    monkeypatch.setattr(
        DemoRun, "_view", lambda run, event: deliver(run, event, partial(view, run))
    )


def test_concurrent_runs_each_get_their_own_events(result: Any) -> None:
    """Every event arrives where its script says, and only the cancelled run stops half-way."""
    status, report = result()
    assert (status, report["ok"]) == (0, True), report["verdict"]
    for count in ("foreign", "lost", "extra", "out_of_order"):
        assert set(by_run(report, count).values()) == {0}
    assert by_run(report, "delivered") == by_run(report, "expected")
    states = by_run(report, "state")
    assert states.pop(VICTIM) == "cancelled"
    assert set(states.values()) == {"completed"}
    assert [run["cancel_ms"] is not None for run in report["runs"]] == [False, False, True]


def test_each_run_has_seven_agents_and_hundreds_of_chunks() -> None:
    """The demo is not a toy: seven agents, ten tool calls and hundreds of texts, all different."""
    for run in demo.plan(10):
        actions = [event.action for event in run.events]
        assert len({event.agent_id for event in run.events}) == 7
        assert actions.count("tool_call") == 10
        assert actions.count("stream") >= 200
        assert len(set(run.events)) == len(run.events)
        assert all(run.marker in event.text for event in run.events)


def test_the_demo_leaves_nothing(result: Any) -> None:
    """Afterwards no run is open, and no callback, checker, script or tool of the demo is registered."""
    result()
    for run in demo.plan(RUNS):
        assert llm_callback.get_event_callback(run.run_id) is None
        assert llm_callback.get_cancellation_checker(run.run_id) is None
        found = llm_callback.get_run(run.run_id)
        assert found is None or found.state not in {"pending", "running"}
    assert not providers._scripts
    assert not [name for name in providers._tools if name.startswith("search_")]


def test_events_of_another_run_are_found(result: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that reaches another run's viewer is lost in its own and foreign there."""
    strays: list[dict[str, Any]] = []

    def exchange(run: DemoRun, event: dict[str, Any], view: Any) -> None:
        if run.run_id == "run-01" and is_chosen(event):
            strays.append(event)
        else:
            view(event)
        if run.run_id == "run-02" and event["event"]["category"] == "lifecycle":
            while strays:
                view(strays.pop())

    view_with(monkeypatch, exchange)
    status, report = result()
    assert (status, report["ok"]) == (1, False)
    foreign, lost = by_run(report, "foreign"), by_run(report, "lost")
    assert lost == {"run-01": 4, "run-02": 0, VICTIM: 0}
    # Those of the last worker may come after the other's end.
    assert 0 < foreign["run-02"] + len(strays) <= 4
    assert foreign["run-01"] == foreign[VICTIM] == 0
    assert report["verdict"].startswith(f"FAILED: {foreign['run-02']} foreign, 4 lost")


def test_missing_and_repeated_events_are_found(
    result: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events that are left out are lost; those that come twice are extra."""

    def faulty(run: DemoRun, event: dict[str, Any], view: Any) -> None:
        for _ in range({"run-01": 0, "run-02": 2}.get(run.run_id, 1) if is_chosen(event) else 1):
            view(event)

    view_with(monkeypatch, faulty)
    status, report = result()
    assert status == 1
    assert by_run(report, "lost") == {"run-01": 4, "run-02": 0, VICTIM: 0}
    assert by_run(report, "extra") == {"run-01": 0, "run-02": 4, VICTIM: 0}


def test_a_cancel_that_is_not_obeyed_is_found(result: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on after its cancel is in the verdict."""
    view = DemoRun._view

    def deaf(run: DemoRun, event: dict[str, Any]) -> None:
        was, run.is_cancelled = run.is_cancelled, False
        view(run, event)
        run.is_cancelled = was

    monkeypatch.setattr(DemoRun, "_view", deaf)
    status, report = result()
    assert status == 1
    assert f"{VICTIM} is completed, not cancelled" in report["verdict"]


def test_a_cancel_that_takes_too_long_is_found(
    result: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ends as cancelled, but later than it may after it was asked to, is in the verdict."""
    late = property(lambda run: 20_001.0 if run.is_cancelled else None)
    monkeypatch.setattr(DemoRun, "cancel_ms", late)
    status, report = result()
    assert status == 1
    assert f"{VICTIM} ended 20001 ms after its cancel, which is too late" in report["verdict"]


def test_a_cancel_of_another_run_is_found(result: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that stops although nobody wanted it to has lost events, and the verdict names it."""

    def spreading(run: DemoRun, event: dict[str, Any], view: Any) -> None:
        view(event)
        if run.run_id == "run-01" and len(run.delivered) == 50:
            llm_callback.cancel_run("run-01")

    view_with(monkeypatch, spreading)
    status, report = result()
    assert status == 1
    assert "run-01 is cancelled, not completed" in report["verdict"]
    assert by_run(report, "lost")["run-01"] > 0


def test_a_run_that_breaks_is_reported_with_its_error(
    result: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception of one run is in the verdict, and the other runs are as if nothing had been."""
    hear = DemoRun._hear

    def breaking(run: DemoRun, event: dict[str, Any]) -> None:
        if run.run_id == "run-02" and event["event"]["category"] == "llm":
            raise ConnectionError("the line is dead")
        hear(run, event)

    monkeypatch.setattr(DemoRun, "_hear", breaking)
    status, report = result()
    assert status == 1
    assert "run-02 is failed, not completed: the line is dead" in report["verdict"]
    assert by_run(report, "lost")["run-01"] == by_run(report, "lost")[VICTIM] == 0


def test_a_run_that_never_ends_is_reported(result: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the deadline the demo stops what still runs and says so; it does not wait for ever."""
    monkeypatch.setattr(demo, "_DEADLINE_SECONDS", 0.2)
    monkeypatch.setattr(
        DemoRun,
        "scripted_model",
        lambda run, request: (
            ScriptedModel([Pause(DEADLINE)])
            if run.run_id == "run-01"
            else ScriptedModel(run._script[request.agent_id])
        ),
    )
    status, report = result()
    assert status == 1
    assert "run-01 is cancelled, not completed: stopped by the demo after " in report["verdict"]


class VictimIsCancelled:
    """A gate that opens when the second run of a demo was asked to stop."""

    def is_set(self) -> bool:
        """Whether it was."""
        run = llm_callback.get_run("run-02")
        return run is None or run.token.is_set()


def test_a_real_model_is_audited_against_what_its_run_has_heard(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With another model nobody knows the words beforehand: the viewer must have what the run's own thread has."""
    words = Text(("nothing ", "to ", "look ", "up: ") * 15)
    # A model without pauses would often be done before its viewer has seen half of it, and cancels.
    register_script("echo", lambda _: [[words, Gate(VictimIsCancelled(), DEADLINE), words]])
    try:
        status = demo.main(runs=2, as_json=True, model="scripted:echo")
    finally:
        register_script("echo", None)
    report = json.loads(capsys.readouterr().out)
    assert (status, report["ok"]) == (0, True), report["verdict"]
    assert by_run(report, "delivered")["run-01"] == by_run(report, "expected")["run-01"] == 120


@given(st.data())
def test_the_audit_finds_any_change(data: st.DataObject) -> None:
    """Exactly the expected sequence is clean; a sequence that differs in any way is not."""
    foreign = Event("run-02", "stream", "word[beef.1]")
    disguised = EXPECTED[0]._replace(agent_id="run-02")
    changed = EXPECTED[0]._replace(action="reasoning")
    delivered = data.draw(st.lists(st.sampled_from([*EXPECTED, foreign, disguised, changed])))
    found = audit(EXPECTED, delivered, "cafe")
    assert found.clean == (delivered == EXPECTED)
    assert found.foreign == delivered.count(foreign) + delivered.count(disguised)
    assert found.lost == len(set(EXPECTED) - set(delivered))


@given(st.permutations(EXPECTED))
def test_the_audit_finds_any_other_order(delivered: list[Event]) -> None:
    """The expected events in another order are neither lost nor foreign, but out of order."""
    found = audit(EXPECTED, delivered, "cafe")
    assert (found.foreign, found.lost, found.extra) == (0, 0, 0)
    assert (found.out_of_order == 0) == (delivered == EXPECTED)


def test_what_is_logged_comes_out_after_the_display(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing that is logged meanwhile tears the display, and none of it is lost."""
    with demo.held_log():
        logging.getLogger("strands").error("a real error")
        assert not caplog.records
    assert [record.getMessage() for record in caplog.records] == ["a real error"]


def test_a_cancelled_run_leaves_the_screen_clean(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing but the demo's own text is printed, on either stream, though one run is cancelled."""
    assert demo.main(runs=2, pace=0) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert not caplog.records
    assert "Traceback" not in out
    assert "\x1b" not in out


def test_a_plain_output_tells_how_each_run_ends_and_ends_with_the_verdict(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A pipe gets lines: one for each end, a row for each run, and the verdict last."""
    demo.main(runs=RUNS, pace=0)
    lines = capsys.readouterr().out.splitlines()
    assert sum("completed: " in line for line in lines) == RUNS - 1
    assert sum(f"{VICTIM} cancelled: " in line for line in lines) == 1
    assert sum(line.startswith("run-0") for line in lines) == RUNS
    assert lines[-1].startswith("OK: all ")


def test_a_terminal_gets_a_block_that_is_redrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The block is drawn over itself, its cursor is hidden and given back, and lines stay lines."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "10")
    monkeypatch.setenv("LINES", "5")
    out = Terminal()
    screen = Screen(out)
    screen.block([("a" * 20, "red"), ("b", None)])
    screen.block([("c", None)] * 9)
    screen.end_block()
    assert out.getvalue() == (
        f"\x1b[?25l{'a' * 9}\x1b[K\nb\x1b[K\n\x1b[J"
        "\x1b[2Fc\x1b[K\nc\x1b[K\n... and 7\x1b[K\n\x1b[J"
        "\x1b[?25h"
    )


def test_a_whole_demo_can_be_drawn_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal the last picture shows every run at its end, and the cursor comes back."""
    out = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("sys.stdout", out)
    assert demo.main(runs=RUNS, pace=0) == 0
    block, _, rest = out.getvalue().rpartition("\x1b[?25h")
    last = block.rpartition("F\x1b[")[2]
    assert "run-01  completed" in last
    assert f"{VICTIM}  cancelled" in last
    assert "OK: all " in rest


@pytest.mark.parametrize(
    ("text", "room", "shown"),
    [
        ("about the tides ", 20, "about the tides"),
        ("about the tides ", 15, "about the tides"),
        ("about the tides ", 14, "the tides"),
        ("about the tides ", 9, "the tides"),
        ("about the tides ", 8, "tides"),
        ("about the tides ", 3, "des"),
        ("", 3, ""),
    ],
)
def test_last_words_are_whole(text: str, room: int, shown: str) -> None:
    """What does not fit is cut between two words; only a word that is too long by itself is cut."""
    assert ending(text, room) == shown


def test_a_table_has_straight_columns() -> None:
    """Names are to the left and numbers to the right, with nothing after the last column."""
    assert table(("run", "n"), [("a", "10"), ("long", "5")], left=1) == [
        "run    n",
        "a     10",
        "long   5",
    ]


@pytest.mark.parametrize("runs", ["1", "0", "-3", "201", "ten"])
def test_a_number_of_runs_that_makes_no_sense_is_refused(
    runs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command says which numbers it takes, and its status is 2."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["demo", f"--runs={runs}"])
    assert caught.value.code == 2
    assert f"'{runs}' is not a number from 2 to 200" in capsys.readouterr().err


def test_the_command_passes_its_options_and_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's exit status is the demo's."""
    calls = []
    monkeypatch.setattr(demo, "main", lambda **options: calls.append(options) or 1)
    assert cli.main(["demo"]) == 1
    assert cli.main(["demo", "--runs", "4", "--json"]) == 1
    assert calls == [
        {"runs": 10, "as_json": False, "model": None},
        {"runs": 4, "as_json": True, "model": None},
    ]


def test_ctrl_c_is_the_usual_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C ends the command with 130 and a word, not with a traceback."""

    def interrupted(**_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "main", interrupted)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_ctrl_c_stops_the_runs() -> None:
    """A demo that is interrupted ends what still runs and leaves nothing registered."""
    runs = demo.plan(RUNS, pace=0.01)

    def interrupt(shown: Any, seconds: float) -> None:  # noqa: ARG001
        raise KeyboardInterrupt

    with demo.held_log(), pytest.raises(KeyboardInterrupt):
        demo.execute(runs, interrupt)
    assert all(run.state in {"cancelled", "completed", "failed"} for run in runs)
    assert all(llm_callback.get_event_callback(run.run_id) is None for run in runs)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("openai:gpt-4o-mini", "OPENAI_API_KEY|pip install 'strands-agents"),
        ("nobody:model", "nobody:model"),
        ("scripted:unknown", "register_script"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused(
    model: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command says what is missing, and its status is 2."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert cli.main(["demo", "--model", model]) == 2
    assert re.search(words, capsys.readouterr().err)


def test_markers_are_never_the_same() -> None:
    """A foreign event cannot pass as a run's own: all markers of a demo differ."""
    markers = [run.marker for run in demo.plan(200)]
    assert len(set(markers)) == len(markers)
    assert all(len(marker) >= 8 for marker in markers)
    assert len(_demo_run._TOPICS) >= 10
