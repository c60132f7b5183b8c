"""What a hierarchy is made of: its configuration, ids, names, models and tools, and how its agents share their work."""

from __future__ import annotations

import json
import math
import re
import sys
import uuid
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError
from strands import Agent, tool
from strands.hooks import AfterInvocationEvent  # noqa: TC002 - strands looks at the types
from strands.models import BedrockModel

from hierarchies import (
    GLOBAL,
    NAMES,
    TEAMS,
    WORKERS,
    Live,
    Plan,
    check,
    neighbour,
    texts,
    was_cancelled,
)
from llm_callback import CallerContext, cancel_run, open_run
from llm_callback.hierarchy import (
    ConfigError,
    ConfigWarning,
    ExecutionMode,
    HierarchyConfigRequest,
    HierarchyExecutor,
    ModelRequest,
    ModelUnavailable,
    TeamConfigRequest,
    TopologyInfo,
    WorkerConfigRequest,
    execute_hierarchy,
    parse_hierarchy_config,
    providers,
    register_model_provider,
    register_script,
    register_tool,
)
from llm_callback.hierarchy.config import LlmConfig
from llm_callback.testing import Fail, ScriptedModel, Text, ToolCall
from readers import kind
from support import DEADLINE, new_id, raised_by

FLAT: dict[str, Any] = {
    "run_id": 7,
    "task": "What of the tides?",
    "global_prompt": "You lead.",
    "global_agent_id": "top",
    "global_user_message": "Begin.",
    "global_temperature": 0,
    "global_max_tokens": 10,
    "global_model_id": "scripted:a",
    "enable_context_sharing": True,
    "execution_mode": "parallel",
    "teams": [
        {
            "name": "Readers",
            "id": "readers",
            "supervisor_prompt": "You ask.",
            "agent_id": "readers-lead",
            "user_message": "Read.",
            "prevent_duplicate": False,
            "share_context": True,
            "temperature": 0.5,
            "max_tokens": 20,
            "model_id": "scripted:b",
            "workers": [
                {
                    "name": "Ada",
                    "role": "Reads.",
                    "system_prompt": "You read.",
                    "id": "ada",
                    "user_message": "Look.",
                    "tools": ["look"],
                    "temperature": 0,
                    "max_tokens": 30,
                    "model_id": "scripted:c",
                }
            ],
        }
    ],
}
NESTED: dict[str, Any] = {
    "run_id": 7,
    "task": "What of the tides?",
    "enable_context_sharing": True,
    "execution_mode": "parallel",
    "global_supervisor_agent": {
        "agent_id": "top",
        "system_prompt": "You lead.",
        "user_message": "Begin.",
        "llm_config": {"temperature": 0, "max_tokens": 10, "model_id": "scripted:a"},
    },
    "teams": [
        {
            "name": "Readers",
            "id": "readers",
            "prevent_duplicate": False,
            "share_context": True,
            "team_supervisor_agent": {
                "agent_id": "readers-lead",
                "system_prompt": "You ask.",
                "user_message": "Read.",
                "llm_config": {"temperature": 0.5, "max_tokens": 20, "model_id": "scripted:b"},
            },
            "workers": [
                {
                    "name": "Ada",
                    "role": "Reads.",
                    "system_prompt": "You read.",
                    "id": "ada",
                    "user_message": "Look.",
                    "tools": ["look"],
                    "llm_config": {"temperature": 0, "max_tokens": 30, "model_id": "scripted:c"},
                }
            ],
        }
    ],
}


def with_entry(place: str, value: object, data: dict[str, Any] = NESTED) -> dict[str, Any]:
    """Return a copy of a configuration with another value at a place such as ``teams[0].name``."""
    changed = deepcopy(data)
    *path, last = [int(step) if step.isdigit() else step for step in re.findall(r"\w+", place)]
    inner: Any = changed
    for step in path:
        inner = inner[step]
    inner[last] = value
    return changed


# --- Reading it ---


def test_both_shapes_say_the_same() -> None:
    """The flat and the nested shape are read as the same hierarchy, with each value in its place."""
    flat, nested = parse_hierarchy_config(FLAT), parse_hierarchy_config(NESTED)
    assert flat == nested
    assert flat.global_llm == LlmConfig("scripted:a", 0.0, 10)
    assert flat.execution_mode is ExecutionMode.PARALLEL
    [team] = flat.teams
    assert team.llm == LlmConfig("scripted:b", 0.5, 20)
    assert (team.prevent_duplicate, team.share_context) == (False, True)
    [ada] = team.workers
    assert ada.llm == LlmConfig("scripted:c", 0.0, 30)
    assert (ada.id, ada.tools, ada.user_message) == ("ada", ["look"], "Look.")


def test_the_nested_value_is_taken_where_both_are_there() -> None:
    """A mixture of the shapes is read, and the nested entry wins, also where it is zero."""
    mixed = {**FLAT, "global_temperature": 0.9, **NESTED, "global_prompt": "Not this."}
    assert parse_hierarchy_config(mixed) == parse_hierarchy_config(NESTED)


def test_what_is_left_out_has_a_default() -> None:
    """Names are enough; null is as good as nothing."""
    least: dict[str, Any] = {"teams": [{"name": "Readers", "workers": [{"name": "Ada"}]}]}
    config = parse_hierarchy_config(least)
    assert config == HierarchyConfigRequest(
        "", [TeamConfigRequest("Readers", "", [WorkerConfigRequest("Ada")])]
    )
    assert config.global_llm == LlmConfig(None, 0.7, 2048)
    nulls: dict[str, Any] = {**dict.fromkeys([*FLAT, *NESTED]), **least}
    assert parse_hierarchy_config(nulls) == config


@pytest.mark.parametrize("temperature", [0, 0.0, 1, 1.5])
def test_a_temperature_is_what_was_given(temperature: float) -> None:
    """Zero is a temperature, and no reason to take the default; a whole number will do."""
    for place in (
        "global_supervisor_agent.llm_config",
        "teams[0].team_supervisor_agent.llm_config",
        "teams[0].workers[0].llm_config",
    ):
        config = parse_hierarchy_config(with_entry(f"{place}.temperature", temperature))
        found = {
            "g": config.global_temperature,
            "t": config.teams[0].temperature,
            "w": config.teams[0].workers[0].temperature,
        }
        assert found["w" if "workers" in place else place[0]] == temperature


WRONG = [
    ("task", 3, "a text"),
    ("run_id", 1.5, "an int, a text or a UUID"),
    ("run_id", True, "an int, a text or a UUID"),
    ("execution_mode", "both", "'sequential' or 'parallel'"),
    ("execution_mode", 1, "a text"),
    ("enable_context_sharing", "yes", "true or false"),
    ("enable_context_sharing", 1, "true or false"),
    ("global_supervisor_agent", "x", "a mapping"),
    ("global_supervisor_agent", [], "a mapping"),
    ("global_supervisor_agent.system_prompt", 1, "a text"),
    ("global_supervisor_agent.agent_id", 1, "a text"),
    ("global_supervisor_agent.user_message", ["x"], "a text"),
    ("global_supervisor_agent.llm_config", 5, "a mapping"),
    ("global_supervisor_agent.llm_config.temperature", "0", "a number, 0 or more"),
    ("global_supervisor_agent.llm_config.temperature", True, "a number, 0 or more"),
    ("global_supervisor_agent.llm_config.temperature", -0.1, "a number, 0 or more"),
    ("global_supervisor_agent.llm_config.temperature", math.nan, "a number, 0 or more"),
    ("global_supervisor_agent.llm_config.temperature", math.inf, "a number, 0 or more"),
    ("global_supervisor_agent.llm_config.max_tokens", 1.0, "a whole number"),
    ("global_supervisor_agent.llm_config.max_tokens", True, "a whole number"),
    ("global_supervisor_agent.llm_config.max_tokens", 0, "a whole number, 1 or more"),
    ("global_supervisor_agent.llm_config.max_tokens", -1, "a whole number, 1 or more"),
    ("global_supervisor_agent.llm_config.model_id", 4, "a text"),
    ("teams", {}, "a list"),
    ("teams", "x", "a list"),
    ("teams[0]", "x", "a mapping"),
    ("teams[0].name", None, "a text that is not empty"),
    ("teams[0].name", " ", "a text that is not empty"),
    ("teams[0].name", 3, "a text"),
    ("teams[0].id", 3, "a text"),
    ("teams[0].prevent_duplicate", 0, "true or false"),
    ("teams[0].share_context", "no", "true or false"),
    ("teams[0].workers", "Ada", "a list"),
    ("teams[0].team_supervisor_agent", 1, "a mapping"),
    ("teams[0].team_supervisor_agent.system_prompt", 1, "a text"),
    ("teams[0].team_supervisor_agent.agent_id", 1, "a text"),
    ("teams[0].team_supervisor_agent.llm_config", [], "a mapping"),
    ("teams[0].team_supervisor_agent.llm_config.max_tokens", "9", "a whole number"),
    ("teams[0].workers[0]", None, "a mapping"),
    ("teams[0].workers[0].name", "", "a text that is not empty"),
    ("teams[0].workers[0].role", 1, "a text"),
    ("teams[0].workers[0].system_prompt", 1, "a text"),
    ("teams[0].workers[0].id", 1, "a text"),
    ("teams[0].workers[0].agent_id", 1, "a text"),
    ("teams[0].workers[0].user_message", 1, "a text"),
    ("teams[0].workers[0].tools", "look", "a list"),
    ("teams[0].workers[0].tools", ["look", 1], "a list of names"),
    ("teams[0].workers[0].llm_config", "x", "a mapping"),
    ("teams[0].workers[0].llm_config.temperature", [], "a number, 0 or more"),
    ("teams[0].workers[0].llm_config.model_id", 1, "a text"),
]


@pytest.mark.parametrize(("place", "value", "expected"), WRONG)
def test_a_wrong_entry_is_told_with_its_place(place: str, value: object, expected: str) -> None:
    """The message begins with where it is, and says what it must be and what it is."""
    error = raised_by(lambda: parse_hierarchy_config(with_entry(place, value)))
    assert isinstance(error, ConfigError)
    assert str(error).startswith(f"{place} must be {expected}")
    assert str(error).endswith(f"not {value!r}")


FLAT_WRONG = [
    ("global_prompt", 1),
    ("global_agent_id", 1),
    ("global_user_message", 1),
    ("global_temperature", "warm"),
    ("global_max_tokens", 1.5),
    ("global_model_id", 1),
    ("teams[0].supervisor_prompt", 1),
    ("teams[0].agent_id", 1),
    ("teams[0].user_message", 1),
    ("teams[0].temperature", -1),
    ("teams[0].max_tokens", "1"),
    ("teams[0].model_id", 1),
    ("teams[0].workers[0].temperature", None.__class__),
    ("teams[0].workers[0].max_tokens", 0),
    ("teams[0].workers[0].model_id", 1),
]


@pytest.mark.parametrize(("place", "value"), FLAT_WRONG)
def test_a_wrong_entry_of_the_flat_shape_is_told_with_its_place(place: str, value: object) -> None:
    """The flat shape is looked at as closely as the nested one."""
    with pytest.raises(ConfigError, match=f"^{re.escape(place)} must be .*, not "):
        parse_hierarchy_config(with_entry(place, value, FLAT))


@pytest.mark.parametrize("data", [None, [], "x", 3])
def test_what_is_no_mapping_is_no_configuration(data: Any) -> None:
    """It is told as such, by the parser and as the failure of a run."""
    with pytest.raises(ConfigError, match=r"^config must be a mapping, not "):
        parse_hierarchy_config(data)
    response = execute_hierarchy(data)
    assert not response["success"]
    assert response["error"].startswith("ConfigError: config must be a mapping, not ")
    assert kind(response["events"][-1]) == "lifecycle.failed"


UNKNOWN = [
    ("tasks", "task?"),
    ("teams[0].worker", "workers?"),
    ("teams[0].workers[0].llm_config.max_token", "max_tokens?"),
    (
        "global_supervisor_agent.colour",
        "known are agent_id, llm_config, system_prompt, user_message",
    ),
]


@pytest.mark.parametrize(("place", "advice"), UNKNOWN)
def test_an_unknown_entry_is_told_with_its_place(place: str, advice: str) -> None:
    """The message has the place of the entry, and the entry that may be meant, or all that are known."""
    error = raised_by(lambda: parse_hierarchy_config(with_entry(place, None)))
    assert isinstance(error, ConfigError)
    assert str(error) == f"{place} is unknown: {advice}"


def test_all_mistakes_are_told_at_once() -> None:
    """Each mistake of a configuration has a line of its own."""
    data = with_entry("teams[0].name", 3, with_entry("tasks", "x", with_entry("task", 1)))
    told = str(raised_by(lambda: parse_hierarchy_config(data))).split("\n")
    assert sorted(line.split(" ")[0] for line in told) == ["task", "tasks", "teams[0].name"]


def test_a_stored_configuration_of_the_original_is_read_with_a_warning() -> None:
    """With ``compat`` unknown entries and modes are ignored, and one warning names them; other mistakes are errors."""
    stored = with_entry("teams[0].colour", "red", with_entry("execution_mode", "both"))
    with pytest.raises(ConfigError):
        parse_hierarchy_config(stored)
    with pytest.warns(ConfigWarning) as told:
        config = parse_hierarchy_config(stored, compat=True)
    assert config == parse_hierarchy_config(with_entry("execution_mode", "sequential"))
    [warning] = told
    assert "teams[0].colour is unknown" in str(warning.message)
    assert "execution_mode must be 'sequential' or 'parallel', not 'both'" in str(warning.message)
    with pytest.raises(ConfigError, match=r"^task must be a text, not 1$"):
        parse_hierarchy_config(with_entry("task", 1), compat=True)
    assert parse_hierarchy_config(NESTED, compat=True) == parse_hierarchy_config(NESTED)


def test_a_request_is_checked_where_it_is_made() -> None:
    """Made in code, a request refuses unknown fields and wrong values too."""
    with pytest.raises(ValidationError, match="colour"):
        WorkerConfigRequest("Ada", colour="red")  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="temperature"):
        WorkerConfigRequest("Ada", temperature=-1)
    with pytest.raises(ValidationError, match="name"):
        TeamConfigRequest(name=" ", supervisor_prompt="", workers=[])


SHORT = st.text(max_size=5)
NAMED = st.text(min_size=1, max_size=5).filter(lambda text: text.strip())
MODEL = {
    "temperature": st.floats(0, 100),
    "max_tokens": st.integers(1, 10**6),
    "model_id": st.none() | SHORT,
}
MAYBE = st.none() | SHORT
WORKER = st.builds(
    WorkerConfigRequest,
    name=NAMED,
    role=SHORT,
    system_prompt=SHORT,
    id=MAYBE,
    agent_id=MAYBE,
    user_message=MAYBE,
    tools=st.lists(SHORT, max_size=2),
    **MODEL,
)
TEAM = st.builds(
    TeamConfigRequest,
    name=NAMED,
    supervisor_prompt=SHORT,
    workers=st.lists(WORKER, max_size=2),
    id=MAYBE,
    agent_id=MAYBE,
    user_message=MAYBE,
    prevent_duplicate=st.booleans(),
    share_context=st.booleans(),
    **MODEL,
)
HIERARCHY = st.builds(
    HierarchyConfigRequest,
    global_prompt=SHORT,
    teams=st.lists(TEAM, max_size=2),
    task=SHORT,
    global_agent_id=MAYBE,
    global_user_message=MAYBE,
    enable_context_sharing=st.booleans(),
    execution_mode=st.sampled_from(ExecutionMode),
    global_temperature=MODEL["temperature"],
    global_max_tokens=MODEL["max_tokens"],
    global_model_id=MAYBE,
    run_id=st.none() | st.integers() | SHORT,
)


@given(HIERARCHY)
def test_what_a_hierarchy_says_of_itself_is_read_as_the_same(
    config: HierarchyConfigRequest,
) -> None:
    """to_dict() and parse_hierarchy_config() are each other's inverse, also by way of JSON."""
    plain = config.to_dict()
    assert parse_hierarchy_config(plain) == config
    assert parse_hierarchy_config(json.loads(json.dumps(plain))) == config
    assert parse_hierarchy_config(plain).to_dict() == plain


@given(HIERARCHY)
def test_ids_are_those_of_the_places_or_are_refused(config: HierarchyConfigRequest) -> None:
    """A configuration has the same ids each time, all different, or is refused each time."""
    try:
        topology = TopologyInfo.of(config)
    except ConfigError as error:
        assert str(error) == str(raised_by(lambda: TopologyInfo.of(deepcopy(config))))  # noqa: PT017
    else:
        assert TopologyInfo.of(deepcopy(config)) == topology
        assert len(set(topology.agent_ids)) == len(topology.agent_ids)
        assert len({team.team_id for team in topology.teams}) == len(config.teams)
        json.dumps(topology.to_dict())


def test_a_uuid_is_a_run_id() -> None:
    """It is read as the text that it is everywhere else."""
    run_id = uuid.uuid4()
    with Plan() as plan:
        plan.config["run_id"] = run_id
        response = execute_hierarchy(plan.config)
    assert response["success"]
    assert {event["run_id"] for event in response["events"]} == {str(run_id)}


# --- Who is who ---


def test_ids_are_those_of_the_places() -> None:
    """What has no id of its own is named by where it is."""
    topology = TopologyInfo.of(parse_hierarchy_config(Plan().config))
    assert topology.agent_ids == (GLOBAL, *TEAMS, *WORKERS)
    assert [team.team_id for team in topology.teams] == ["team-1", "team-2"]


def test_ids_are_those_that_are_given() -> None:
    """A worker's agent_id goes before its id; a team's id is in those of its members without one."""
    topology = TopologyInfo.of(parse_hierarchy_config(FLAT))
    assert topology.agent_ids == ("top", "readers-lead", "ada")
    team = TeamConfigRequest(
        "R", "", [WorkerConfigRequest("A", id="a", agent_id="b"), WorkerConfigRequest("C")], id="t"
    )
    ids = TopologyInfo.of(HierarchyConfigRequest("", [team])).agent_ids
    assert ids == (GLOBAL, "t-supervisor", "b", "t-worker-2")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("teams[0].workers[0].id", "same"),
        ("teams[0].workers[0].agent_id", "same"),
        ("teams[0].workers[0].id", "team-2-worker-2"),
        ("teams[0].workers[0].id", GLOBAL),
        ("teams[0].agent_id", "team-2-supervisor"),
        ("teams[0].id", "team-2"),
        ("global_agent_id", "team-1-worker-2"),
    ],
)
def test_two_agents_of_one_id_are_refused(place: str, value: str) -> None:
    """Whoever they are, the message names the id, and no run begins to work with them."""
    with Plan() as plan:
        data = with_entry(place, value, plan.config)
        if value == "same":
            data["teams"][1]["workers"][1]["agent_id"] = "same"
        response = HierarchyExecutor().execute(data)
        assert not response.success
        assert "agents have the id" in str(response.error)
        assert plan.looked == []


def test_two_teams_of_one_id_are_refused() -> None:
    """Also where none of their agents has the id of another."""
    with Plan() as plan:
        for number, team in enumerate(plan.config["teams"]):
            team["id"], team["agent_id"] = "same", f"lead-{number}"
            for place, one in enumerate(team["workers"]):
                one["id"] = f"worker-{number}-{place}"
        with pytest.raises(ConfigError, match="2 teams have the id 'same'"):
            TopologyInfo.of(parse_hierarchy_config(plan.config))


def test_a_hierarchy_needs_a_team() -> None:
    """One without teams is refused when it is to work."""
    response = HierarchyExecutor().execute({"teams": []})
    assert response.error == "ConfigError: teams must have at least one team"


def called(*names: str) -> list[str]:
    """Return with which tools a global supervisor calls teams of these names, and check that each calls its own."""
    name = new_id("s")
    models: list[ScriptedModel] = []

    def first(request: ModelRequest) -> ScriptedModel:
        words = [[Text("done")]]
        if request.agent_id == GLOBAL:
            words = [*[[ToolCall(tool_name, {"task": "x"})] for tool_name in known], *words]
        models.append(ScriptedModel(words))
        return models[-1]

    config = {
        "global_model_id": f"scripted:{name}",
        "teams": [{"name": one, "model_id": f"scripted:{name}"} for one in names],
    }
    register_script(name, first)
    try:
        known: list[str] = []
        HierarchyExecutor().execute(config)
        known = list(models[-1].requests[0].tool_names)
        response = HierarchyExecutor().execute(config)
    finally:
        register_script(name, None)
    calls = [
        event["data"]["team_name"] for event in response.events if kind(event) == "dispatch.team"
    ]
    assert calls == list(names)
    return known


@pytest.mark.parametrize(
    ("names", "tools"),
    [
        (["Readers", "The Writers!"], ["team_readers", "team_the_writers"]),
        (["研究", "письмо"], ["team_1", "team_2"]),
        (["研究", "1"], ["team_1", "team_2"]),
        (["same", "Same", "SAME "], ["team_same", "team_2", "team_3"]),
    ],
)
def test_teams_are_called_by_tools_of_their_names(names: list[str], tools: list[str]) -> None:
    """What letters of the name a provider allows is in it, else its number; each calls its own team."""
    assert called(*names) == tools


@pytest.mark.parametrize(
    "names",
    [
        ["2", "研究"],
        ["3", "x", "x"],
        ["x", "2", "x"],
        ["x", "x", "2", "3", "x"],
        ["a" * 100, "a" * 101, "a" * 102],
        ["!", "?", "1", "2", "3"],
    ],
)
def test_no_two_teams_are_called_by_one_tool(names: list[str]) -> None:
    """However alike their names are, each team has a tool of its own, of a name that providers allow."""
    tools = called(*names)
    assert len(tools) == len(set(tools)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9_]{1,64}", name) for name in tools)


def test_workers_are_called_by_tools_of_their_names() -> None:
    """A team's supervisor has a tool for each worker, whose names it is told."""
    with Plan(label="") as plan:
        plan.config["teams"][0]["workers"][1]["name"] = "阿达"
        plan.script["team-1-supervisor"][0][-1] = ToolCall("worker_2", {"task": "ask Ben"})
        live = Live(plan)
        assert live.raised is None
        request = plan.requests("team-1-supervisor")[0]
        assert request.tool_names == ("worker_ada", "worker_2")
        assert "- 阿达: call the tool worker_2" in request.system_prompt
        assert texts(live.events, WORKERS[1]) == plan.texts(WORKERS[1])


def test_prompts_are_what_was_configured() -> None:
    """Each agent is asked with its own prompt and task, and its own tools."""
    with Plan() as plan:
        plan.worker(WORKERS[0])["system_prompt"] = "Be brief."
        live = Live(plan)
        check(plan, live.events)
        assert (
            plan.requests(WORKERS[0])[0].system_prompt == f"Looks for {plan.marker}.\n\nBe brief."
        )
        assert plan.requests(WORKERS[0])[0].tool_names == (f"look_{plan.marker}",)
        assert plan.prompt(GLOBAL) == plan.config["task"]
        for agent_id in (*TEAMS, *WORKERS):
            assert plan.prompt(agent_id) == f"ask {NAMES[agent_id]} {plan.label}"


def test_a_user_message_is_the_task_where_none_is_given() -> None:
    """At each level, an empty task is replaced by what the configuration has for it."""
    with Plan() as plan:
        plan.config.update(task="", global_user_message="The top's.")
        plan.config["teams"][0]["user_message"] = "The team's."
        plan.worker(WORKERS[0])["user_message"] = "The worker's."
        for above, agent_id in ((GLOBAL, "team-1-supervisor"), ("team-1-supervisor", WORKERS[0])):
            plan.script[above][0][1] = ToolCall(plan.called(agent_id), {"task": ""})
        live = Live(plan)
        assert live.raised is None
        assert plan.prompt(GLOBAL) == "The top's."
        assert plan.prompt("team-1-supervisor") == "The team's."
        assert plan.prompt(WORKERS[0]) == "The worker's."
        assert plan.prompt(WORKERS[1]) == f"ask Ben {plan.label}"


# --- How the agents share their work ---


@pytest.mark.parametrize("hierarchy", [True, False])
@pytest.mark.parametrize("team", [True, False])
def test_a_team_is_told_what_those_before_it_found(*, hierarchy: bool, team: bool) -> None:
    """With sharing on, in the hierarchy and in the team, the second prompt holds the first's result; else neither."""
    with Plan() as plan, neighbour():
        plan.config["enable_context_sharing"] = hierarchy
        plan.config["teams"][1]["share_context"] = team
        live = Live(plan)
        assert live.raised is None
        task, found = f"ask Writers {plan.label}", "".join(plan.texts("team-1-supervisor")[-5:])
        told = f"\n\nWhat other teams have found so far:\n- Readers {plan.label}: {found.strip()}"
        assert plan.prompt("team-2-supervisor") == task + (told if hierarchy and team else "")
        assert plan.prompt("team-1-supervisor") == f"ask Readers {plan.label}"


def test_runs_at_once_do_not_share_what_their_teams_found() -> None:
    """A team is told what teams of its own run have found, however many runs there are."""
    plans = [Plan(label="tides") for _ in range(3)]
    for plan in plans:
        plan.config["enable_context_sharing"] = True
        plan.config["teams"][1]["share_context"] = True
    for plan in plans:
        plan.__enter__()
    try:
        lives = [Live(plan) for plan in plans]
        for live in lives:
            assert live.raised is None
            prompt = live.plan.prompt("team-2-supervisor")
            assert prompt.count("- Readers tides: ") == 1
            assert [other.marker in prompt for other in plans] == [
                other is live.plan for other in plans
            ]
    finally:
        for plan in plans:
            plan.__exit__()


def asks_twice(plan: Plan, above: str, agent_id: str) -> None:
    """Have a supervisor call a member a second time with the same task, white space aside."""
    task = f"  ask {NAMES[agent_id]}   {plan.label}\n"
    plan.script[above].insert(1, [ToolCall(plan.called(agent_id), {"task": task})])


@pytest.mark.parametrize(
    ("above", "agent_id"), [("team-1-supervisor", WORKERS[0]), (GLOBAL, "team-2-supervisor")]
)
def test_a_second_call_with_the_same_task_gets_the_result_of_the_first(
    above: str, agent_id: str
) -> None:
    """It is not worked on again; a warning says so, the supervisor gets the result, and the statistics count it."""
    with Plan() as plan:
        asks_twice(plan, above, agent_id)
        live = Live(plan)
        assert live.raised is None
        assert len([one for one in plan.requests(agent_id) if one.turn == 1]) == 1
        [warning] = [event for event in live.events if kind(event) == "system.warning"]
        assert warning["source"]["agent_id"] == warning["data"]["agent_id"] == agent_id
        results = [
            event["data"]["content"][0]["text"]
            for event in live.events
            if kind(event) == "llm.tool_result" and event["source"]["agent_id"] == above
        ]
        answer = "".join(plan.texts(agent_id)[-5:]).strip()
        assert results[-1] == f"(The result of the same task before.)\n{answer}"
        statistics = live.events[-1]["data"]["statistics"]
        assert statistics["duplicates"] == 1
        assert statistics["calls"][agent_id] == 1


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_the_same_task_twice_at_once_is_worked_on_once(mode: str) -> None:
    """Two calls of one turn wait for the same work, and both get its result."""
    with Plan(mode=mode) as plan:
        turn = plan.script["team-1-supervisor"][0]
        turn.append(ToolCall(plan.called(WORKERS[0]), {"task": f"ask Ada {plan.label}"}))
        live = Live(plan)
        assert live.raised is None
        assert texts(live.events, WORKERS[0]) == plan.texts(WORKERS[0])
        statistics = live.events[-1]["data"]["statistics"]
        assert (statistics["duplicates"], statistics["calls"][WORKERS[0]]) == (1, 1)


def test_a_team_that_does_not_prevent_duplicates_works_again() -> None:
    """Each call of a worker is work, whether the task is the same or not."""
    with Plan() as plan:
        plan.config["teams"][0]["prevent_duplicate"] = False
        asks_twice(plan, "team-1-supervisor", WORKERS[0])
        live = Live(plan)
        assert live.raised is None
        assert texts(live.events, WORKERS[0]) == plan.texts(WORKERS[0]) * 2
        assert not [event for event in live.events if kind(event) == "system.warning"]
        statistics = live.events[-1]["data"]["statistics"]
        assert (statistics["duplicates"], statistics["calls"][WORKERS[0]]) == (0, 2)


@pytest.mark.parametrize(
    ("above", "agent_id"), [("team-1-supervisor", WORKERS[0]), (GLOBAL, "team-1-supervisor")]
)
@pytest.mark.parametrize("tool_input", [{}, {"task": ""}], ids=["none", "empty"])
def test_a_call_without_a_task_gives_the_user_message(
    above: str, agent_id: str, tool_input: dict[str, str]
) -> None:
    """Where one is configured, the model may leave the task out, or empty."""
    with Plan() as plan:
        team = plan.config["teams"][0]
        (team if agent_id in TEAMS else team["workers"][0])["user_message"] = "As always."
        turn = plan.script[above][0]
        turn[1] = ToolCall(plan.called(agent_id), tool_input)
        live = Live(plan)
        assert live.raised is None
        assert plan.prompt(agent_id) == "As always."
        assert texts(live.events, agent_id) == plan.texts(agent_id)


def test_a_call_without_a_task_is_told_where_there_is_no_user_message() -> None:
    """The supervisor learns that the task is missing, and nobody works on nothing."""
    with Plan() as plan:
        plan.script["team-1-supervisor"][0][1] = ToolCall(plan.called(WORKERS[0]), {})
        live = Live(plan)
        assert live.raised is None
        assert plan.requests(WORKERS[0]) == []
        told = [event["data"] for event in live.events if kind(event) == "llm.tool_result"]
        assert any("Field required" in str(data["content"]) for data in told)


def test_another_task_is_no_duplicate() -> None:
    """An agent that is asked for something else does it, and knows nothing of the first time."""
    with Plan() as plan:
        other = ToolCall(plan.called(WORKERS[0]), {"task": "something else"})
        plan.script["team-1-supervisor"].insert(1, [other])
        live = Live(plan)
        assert live.raised is None
        assert texts(live.events, WORKERS[0]) == plan.texts(WORKERS[0]) * 2
        assert plan.prompt(WORKERS[0], 1) == "something else"
        assert len(plan.models[WORKERS[0]][1].requests[0].messages) == 1


@pytest.mark.parametrize(
    ("above", "agent_id"), [("team-1-supervisor", WORKERS[0]), (GLOBAL, "team-1-supervisor")]
)
def test_a_task_that_failed_may_be_tried_again(above: str, agent_id: str) -> None:
    """The second call with the same task is work, not the failure once more."""
    with Plan() as plan:
        broken = [[Fail(OSError("broken"))]]
        plan.script_for = lambda one, number: (
            broken if one == agent_id and number == 0 else plan.script[one]
        )
        asks_twice(plan, above, agent_id)
        live = Live(plan)
        assert live.raised is None
        assert texts(live.events, agent_id) == plan.texts(agent_id)
        statistics = live.events[-1]["data"]["statistics"]
        assert statistics["duplicates"] == 0
        assert statistics["failures"] == 1
        assert statistics["calls"][agent_id] == 2


def test_statistics_count_calls_failures_and_tokens() -> None:
    """They are those of the run: each agent's calls, and the tokens of all models as strands counts them."""
    with Plan() as plan:
        live = Live(plan)
        check(plan, live.events)
        statistics = live.work.result().statistics
        assert statistics == live.events[-1]["data"]["statistics"]
        # A chunk is a token of the script: all words, and two for each call of a tool.
        words = sum(len(plan.texts(agent_id)) for agent_id in (GLOBAL, *TEAMS, *WORKERS))
        usage = statistics["usage"]
        assert usage["outputTokens"] == words + 2 * 10
        assert usage["totalTokens"] == usage["inputTokens"] + usage["outputTokens"]
        assert (statistics["duplicates"], statistics["failures"]) == (0, 0)


def test_statistics_of_a_cancelled_run_count_what_was_used() -> None:
    """The turns before a cancel are counted, also of the supervisors above, whose own turn never came to an end."""
    with Plan() as plan:
        plan.on_look = lambda _worker: cancel_run(plan.run_id)
        live = Live(plan)
        was_cancelled(live)
        statistics = live.events[-1]["data"]["statistics"]
        above = (GLOBAL, "team-1-supervisor", WORKERS[0])
        assert statistics["calls"] == dict.fromkeys(above, 1)
        said = sum(len(texts(live.events, agent_id)) for agent_id in above)
        # Two teams, two workers and a tool were called.
        assert statistics["usage"]["outputTokens"] == said + 2 * 5


def test_options_are_asked_for_each_agent() -> None:
    """A host's further arguments of strands' agents are made for each of them, and have effect."""
    asked: list[CallerContext] = []
    stopped: list[str] = []

    def options(caller: CallerContext) -> dict[str, Any]:
        def after(event: AfterInvocationEvent) -> None:
            assert event.agent.name == caller.agent_name
            stopped.append(caller.agent_id)

        asked.append(caller)
        return {"hooks": [after]}

    with Plan() as plan:
        live = Live(plan, executor=HierarchyExecutor(agent_options=options))
        check(plan, live.events)
    assert {caller.agent_id for caller in asked} == {GLOBAL, *TEAMS, *WORKERS}
    assert sorted(stopped) == sorted([GLOBAL, *TEAMS, *WORKERS])


def test_a_team_without_workers_answers_by_itself() -> None:
    """Its supervisor has no tools, and its answer is the team's."""
    with Plan() as plan:
        plan.config["teams"][1]["workers"] = []
        plan.script["team-2-supervisor"] = [["I did it."]]
        live = Live(plan)
        assert live.raised is None
        assert plan.requests("team-2-supervisor")[0].tool_names == ()
        assert texts(live.events, "team-2-supervisor") == ["I ", "did ", "it."]


def test_a_response_is_plain_and_whole() -> None:
    """As a dict it can be JSON, and holds the topology, the events, the result and the statistics."""
    with Plan() as plan:
        response = json.loads(json.dumps(execute_hierarchy(plan.config)))
        assert response["success"]
        assert response["error"] is None
        assert response["result"] == "".join(plan.texts(GLOBAL)[-5:]).strip()
        assert response["topology"] == response["events"][1]["data"]
        assert [team["team_id"] for team in response["topology"]["teams"]] == ["team-1", "team-2"]
        assert response["statistics"] == response["events"][-1]["data"]["statistics"]
        check(plan, response["events"])


def test_a_request_object_is_as_good_as_a_mapping() -> None:
    """Both are executed alike, with the same events."""
    with Plan() as plan:
        request = parse_hierarchy_config(plan.config)
        with open_run(plan.run_id, task=request.task) as run:
            run.complete(**HierarchyExecutor().execute_in(run, request).to_dict())
        check(plan, list(run.subscribe("start", overflow="gap").read(10_000, DEADLINE)))
        assert HierarchyExecutor().execute(request).success


# --- Models and tools ---


def made(model_id: str | None, temperature: float = 0.0) -> Any:
    """Return the model that an agent gets."""
    return providers.create_model(
        ModelRequest("ada", "Ada", LlmConfig(model_id, temperature, max_tokens=30))
    )


@pytest.mark.thread_unsafe(reason="the environment is the whole process's")
def test_without_a_model_id_it_is_strands_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the model that a strands agent has by itself, with the agent's temperature and limit."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    model = made(None)
    assert type(model) is type(Agent().model)
    assert model.get_config()["model_id"] == Agent().model.get_config()["model_id"]
    assert model.get_config()["max_tokens"] == 30


@pytest.mark.parametrize("model_id", ["nobody:x", "scripted", "", ":x", "gpt-4o"])
def test_an_unknown_provider_is_told_with_the_known_ones(model_id: str) -> None:
    """The message has the agent's name, all prefixes, and how to add one."""
    with pytest.raises(ConfigError) as caught:
        made(model_id)
    for part in ("'Ada'", repr(model_id), "scripted:…", "openai:…", "register_model_provider()"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("model_id", "is_told"),
    [
        ("us.anthropic.claude-3-7-sonnet-20250219-v1:0", True),
        ("amazon.nova-lite", True),
        ("nobody:x", False),
        ("openai", False),
        ("", False),
    ],
)
def test_an_id_that_may_be_bedrocks_is_told_how_to_write_it(model_id: str, is_told: bool) -> None:
    """The ids that strands itself takes are refused with the prefix that they need here."""
    with pytest.raises(ConfigError) as caught:
        made(model_id)
    assert (f"write 'bedrock:{model_id}' if it is Bedrock's" in str(caught.value)) is is_told


@pytest.mark.parametrize("wrong", [5, len, object, object(), [1]])
def test_what_is_no_tool_is_refused(wrong: Any) -> None:
    """It is told when it is registered, with what to do, and is not there afterwards."""
    name = new_id("t")
    with pytest.raises(TypeError, match=f"the tool '{name}' must be .*@strands.tool"):
        register_tool(name, wrong)
    with pytest.raises(ConfigError):
        providers.find_tools([name], "here")


def test_an_unknown_script_is_told_with_what_to_call() -> None:
    """The message has the agent's name, and the call that would add the script."""
    name = new_id("s")
    with pytest.raises(ConfigError, match="of 'Ada' has no script") as caught:
        made(f"scripted:{name}")
    assert f"register_script({name!r}, …)" in str(caught.value)


def test_an_unknown_tool_is_told_with_what_to_call() -> None:
    """The message has the place, the tool, and both ways to have one."""
    name = new_id("t").replace("-", "_")
    with pytest.raises(ConfigError, match="the worker 'Ada' has no tool") as caught:
        providers.find_tools([name], "the worker 'Ada'")
    assert f"register_tool({name!r}, …)" in str(caught.value)
    assert "install strands-agents-tools" in str(caught.value)


@pytest.mark.thread_unsafe(reason="sys.modules is the whole process's")
@pytest.mark.parametrize(
    ("provider", "package"),
    [("openai", "openai"), ("anthropic", "anthropic"), ("ollama", "ollama")],
)
def test_a_missing_package_is_told_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, provider: str, package: str
) -> None:
    """The message has the agent's name and the extra of strands-agents that brings it."""
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"strands.models.{provider}", raising=False)
    with pytest.raises(ModelUnavailable) as caught:
        made(f"{provider}:some-model")
    told = str(caught.value)
    assert told.startswith(f"{provider}:some-model of 'Ada' needs a package")
    assert f"pip install 'strands-agents[{provider}]'" in told


@pytest.mark.thread_unsafe(reason="sys.modules and the environment are the whole process's")
@pytest.mark.parametrize(
    ("provider", "variable"), [("openai", "OPENAI_API_KEY"), ("anthropic", "ANTHROPIC_API_KEY")]
)
@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_key_is_told_with_what_to_set(
    monkeypatch: pytest.MonkeyPatch, provider: str, variable: str, value: str | None
) -> None:
    """The message has the agent's name and the variable of the environment, also where that is empty."""
    pytest.importorskip(provider)
    monkeypatch.delenv(variable, raising=False)
    if value is not None:
        monkeypatch.setenv(variable, value)
    with pytest.raises(ModelUnavailable) as caught:
        made(f"{provider}:some-model")
    assert f"{provider}:some-model of 'Ada' needs a key: set {variable}" in str(caught.value)


AWS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_BEARER_TOKEN_BEDROCK")


@pytest.mark.thread_unsafe(reason="the environment is the whole process's")
@pytest.mark.parametrize("model_id", ["bedrock:some-model", None])
def test_bedrock_without_credentials_is_told_with_what_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, model_id: str | None
) -> None:
    """The message has the agent's name and the variables of the environment."""
    for variable in AWS:
        monkeypatch.delenv(variable, raising=False)
    for variable in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(variable, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ModelUnavailable) as caught:
        made(model_id)
    named = model_id or "Bedrock, the default without a model_id,"
    assert f"{named} of 'Ada' needs AWS credentials" in str(caught.value)
    assert "AWS_ACCESS_KEY_ID" in str(caught.value)


@pytest.mark.thread_unsafe(reason="the environment is the whole process's")
def test_bedrock_gets_what_was_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's name, a temperature of zero and the limit of tokens arrive at strands' own model."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    model = made("bedrock:us.some-model-v1:0")
    assert isinstance(model, BedrockModel)
    config = model.get_config()
    assert config["model_id"] == "us.some-model-v1:0"
    assert (config["temperature"], config["max_tokens"]) == (0.0, 30)


@pytest.mark.thread_unsafe(reason="the environment is the whole process's")
def test_openai_gets_what_was_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A temperature of zero and the limit of tokens arrive at strands' own model."""
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    assert made("openai:some:model").get_config() == {
        "model_id": "some:model",
        "params": {"temperature": 0.0, "max_tokens": 30},
    }


@pytest.mark.thread_unsafe(reason="the environment is the whole process's")
def test_anthropic_gets_what_was_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A temperature of zero and the limit of tokens arrive at strands' own model."""
    pytest.importorskip("anthropic")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "x")
    assert made("anthropic:some-model").get_config() == {
        "model_id": "some-model",
        "max_tokens": 30,
        "params": {"temperature": 0.0},
    }


def test_ollama_gets_what_was_configured() -> None:
    """A temperature of zero and the limit of tokens arrive at strands' own model; there is no key."""
    pytest.importorskip("ollama")
    config = made("ollama:llama3:8b").get_config()
    assert (config["model_id"], config["temperature"], config["max_tokens"]) == (
        "llama3:8b",
        0.0,
        30,
    )


def test_a_provider_of_ones_own_gets_each_agents_request() -> None:
    """It is asked for each agent with its id, its name and its model, and makes a model each time."""
    prefix = new_id("p")
    asked: list[ModelRequest] = []

    def provide(request: ModelRequest) -> ScriptedModel:
        asked.append(request)
        return ScriptedModel(["hello"])

    register_model_provider(prefix, provide)
    try:
        config = {
            "global_supervisor_agent": {
                "llm_config": {"model_id": f"{prefix}:a:b", "temperature": 0, "max_tokens": 5}
            },
            "teams": [{"name": "Readers", "model_id": f"{prefix}:c"}],
        }
        assert HierarchyExecutor().execute(config).result == "hello"
    finally:
        register_model_provider(prefix, None)
    by_id = {request.agent_id: request for request in asked}
    assert by_id[GLOBAL].llm == LlmConfig(f"{prefix}:a:b", 0.0, 5)
    assert by_id[GLOBAL].name == "a:b"
    assert by_id["team-1-supervisor"].agent_name == "Readers Supervisor"
    with pytest.raises(ConfigError):
        made(f"{prefix}:a")


@pytest.mark.parametrize("prefix", ["", "a:b", ":"])
def test_a_prefix_has_no_colon(prefix: str) -> None:
    """It could not be found again."""
    with pytest.raises(ValueError, match="a provider's prefix is a text without a colon"):
        register_model_provider(prefix, lambda _request: None)


def test_a_script_may_return_a_model() -> None:
    """Whatever model it returns is the agent's."""
    name, model = new_id("s"), ScriptedModel(["hello"])
    register_script(name, lambda _request: model)
    try:
        assert made(f"scripted:{name}") is model
    finally:
        register_script(name, None)


def test_a_registered_tool_is_given_as_it_is() -> None:
    """Under the name of its registration, which need not be its own; None takes it back."""
    name = new_id("t")

    @tool(name="look")
    def look() -> str:
        """Look."""
        return "calm"

    register_tool(name, look)
    assert providers.find_tools([name], "here") == [look]
    register_tool(name, None)
    with pytest.raises(ConfigError):
        providers.find_tools([name], "here")
