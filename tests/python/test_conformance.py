"""The recorded behaviour of the module that ``llm_callback`` replaces, scenario by scenario."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import llm_callback
import reference_model
from corpus import load, recorded_on_this_python, replay, reworded, spelt

pytestmark = pytest.mark.thread_unsafe(reason="sys.stdout is the whole process's")

if TYPE_CHECKING:
    from types import ModuleType

    from corpus import Outcome, Scenario

SCENARIOS = load()
CONTRACT = [scenario for scenario in SCENARIOS if scenario.level != "hazard"]
HAZARDS = {scenario.id: scenario for scenario in SCENARIOS if scenario.level == "hazard"}


def expected(scenario: Scenario) -> list[Outcome]:
    """Return what was recorded, with exceptions in the words of this Python."""
    if recorded_on_this_python():
        return scenario.expect
    return reworded(scenario.expect, replay(reference_model, scenario))


@pytest.mark.parametrize(
    "module", [llm_callback, reference_model], ids=lambda module: module.__name__
)
@pytest.mark.parametrize("scenario", CONTRACT, ids=lambda scenario: scenario.id)
def test_scenario_of_the_contract(module: ModuleType, scenario: Scenario) -> None:
    """Every step of a scenario ends as it was recorded."""
    outcomes = replay(module, scenario)
    assert len(outcomes) == len(scenario.steps)
    for step, outcome, wanted in zip(scenario.steps, outcomes, expected(scenario), strict=True):
        assert spelt(outcome) == spelt(wanted), step


def test_copied_context_carries_the_run() -> None:
    """A thread that was given a copy of the context finds the run in it, unlike in the original."""
    assert replay(llm_callback, HAZARDS["cur-copied-context"])[1] == {"ret": [5]}


def test_reused_thread_id_inherits_nothing() -> None:
    """A thread that gets the id of a dead one does not get its run, unlike in the original."""
    assert replay(llm_callback, HAZARDS["cur-ident-reuse"])[1:] == [
        {"ret": [None]},
        {"ret": [None]},
    ]


def test_private_names_of_the_original_exist_except_its_lock() -> None:
    """What hosts read behind the underscore is there; the lock, which they could only misuse, is not."""
    scenario = HAZARDS["mod-private-names"]
    has = {
        step["args"][0]: outcome["ret"]
        for step, outcome in zip(scenario.steps, replay(llm_callback, scenario), strict=True)
    }
    assert has.pop("_registry_lock") is False
    for merely_imported_there in ("threading", "contextmanager"):
        del has[merely_imported_there]
    assert set(has.values()) == {True}


def test_private_registry_shows_what_is_registered() -> None:
    """The mapping that the original's quickstart prints has a run in it for as long as it is registered."""
    scenario = HAZARDS["mod-private-registry-content"]
    assert replay(llm_callback, scenario) == scenario.expect


def test_every_hazard_is_decided() -> None:
    """No scenario of the level hazard is left without a test above."""
    decided = {
        "cur-copied-context",
        "cur-ident-reuse",
        "mod-private-names",
        "mod-private-registry-content",
    }
    assert set(HAZARDS) == decided
