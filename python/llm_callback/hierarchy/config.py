"""What a hierarchy is made of: its agents, its teams and its task, as a host configures them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from llm_callback.events import _Word

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    _T = TypeVar("_T")


class LlmConfig(NamedTuple):
    """Which model an agent talks with, and how: the ``llm_config`` of a configuration."""

    model_id: str | None
    temperature: float
    max_tokens: int


class ConfigError(ValueError):
    """A configuration cannot be used; the message begins with the place, such as ``teams[0].workers[1].name``."""


class ExecutionMode(_Word):
    """Whether the teams and workers that one answer of a supervisor asks for work one by one, or at once."""

    SEQUENTIAL = "sequential"
    PARALLEL = "parallel"


@dataclass
class WorkerConfigRequest:
    """An agent that does the work of a team, with tools of its own.

    ``id`` or ``agent_id`` name it in events; left out, it is ``team-1-worker-2`` by its place. ``tools`` are names that
    :func:`register_tool` knows. ``user_message`` is its task where its supervisor gives none. ``model_id`` is
    ``<provider>:<model>``; None is what strands takes by default.
    """

    name: str
    role: str = ""
    system_prompt: str = ""
    id: str | None = None
    agent_id: str | None = None
    user_message: str | None = None
    tools: list[str] = field(default_factory=list)
    temperature: float = 0.7
    max_tokens: int = 2048
    model_id: str | None = None

    @property
    def llm(self) -> LlmConfig:
        """The agent's model."""
        return LlmConfig(self.model_id, self.temperature, self.max_tokens)

    def to_dict(self) -> dict[str, Any]:
        """Return what :func:`parse_hierarchy_config` takes."""
        return asdict(self)


@dataclass
class TeamConfigRequest:
    """A team: its supervisor, and the workers that it calls.

    ``prevent_duplicate`` gives a second call with the same task the result of the first. ``share_context`` tells the
    team what the teams before it have found, where the hierarchy's ``enable_context_sharing`` allows it.
    """

    name: str
    supervisor_prompt: str
    workers: list[WorkerConfigRequest]
    id: str | None = None
    agent_id: str | None = None
    user_message: str | None = None
    prevent_duplicate: bool = True
    share_context: bool = False
    temperature: float = 0.7
    max_tokens: int = 2048
    model_id: str | None = None

    @property
    def llm(self) -> LlmConfig:
        """The agent's model."""
        return LlmConfig(self.model_id, self.temperature, self.max_tokens)

    def to_dict(self) -> dict[str, Any]:
        """Return what :func:`parse_hierarchy_config` takes."""
        return asdict(self)


@dataclass
class HierarchyConfigRequest:
    """A global supervisor, its teams, and the task that they are given.

    ``run_id`` is the run that they work for; None has one minted. ``global_user_message`` is the task where ``task`` is
    empty.
    """

    global_prompt: str
    teams: list[TeamConfigRequest]
    task: str = ""
    global_agent_id: str | None = None
    global_user_message: str | None = None
    enable_context_sharing: bool = False
    execution_mode: ExecutionMode = ExecutionMode.SEQUENTIAL
    global_temperature: float = 0.7
    global_max_tokens: int = 2048
    global_model_id: str | None = None
    run_id: int | str | None = None

    @property
    def global_llm(self) -> LlmConfig:
        """The global supervisor's model."""
        return LlmConfig(self.global_model_id, self.global_temperature, self.global_max_tokens)

    def to_dict(self) -> dict[str, Any]:
        """Return what :func:`parse_hierarchy_config` takes."""
        return {**asdict(self), "execution_mode": self.execution_mode.value}


def parse_hierarchy_config(data: Mapping[str, Any]) -> HierarchyConfigRequest:
    """Read a hierarchy from a mapping, such as a request's JSON. Unknown entries are ignored.

    Two shapes are understood, also mixed: flat, with ``global_prompt`` and each team's ``supervisor_prompt``; and
    nested, with ``global_supervisor_agent`` and each team's ``team_supervisor_agent``, mappings of ``system_prompt``,
    ``agent_id``, ``user_message`` and ``llm_config``. An ``llm_config`` holds ``model_id``, ``temperature`` and
    ``max_tokens``; a worker may have one too. The nested value is taken where both are there.

    Raises ConfigError for what is missing, or is not of the type that it must be.
    """
    config = _Entries(data, "config")
    agent = config.nested("global_supervisor_agent")
    llm = agent.nested("llm_config")
    mode = config.one("execution_mode", str, ExecutionMode.SEQUENTIAL.value)
    if mode not in {known.value for known in ExecutionMode}:
        raise config.wrong("execution_mode", "'sequential' or 'parallel'", mode)
    run_id = config.get("run_id")
    if isinstance(run_id, UUID):
        run_id = str(run_id)
    if run_id is not None and (isinstance(run_id, bool) or not isinstance(run_id, (int, str))):
        raise config.wrong("run_id", "an int, a text or a UUID", run_id)
    return HierarchyConfigRequest(
        global_prompt=_first(str, "", (agent, "system_prompt"), (config, "global_prompt")),
        teams=config.each("teams", _parse_team),
        task=config.one("task", str, ""),
        global_agent_id=_first(str, None, (agent, "agent_id"), (config, "global_agent_id")),
        global_user_message=_first(
            str, None, (agent, "user_message"), (config, "global_user_message")
        ),
        enable_context_sharing=config.one("enable_context_sharing", bool, default=False),
        execution_mode=ExecutionMode(mode),
        global_temperature=_number(llm, "temperature", config, "global_temperature", 0.7),
        global_max_tokens=_tokens((llm, "max_tokens"), (config, "global_max_tokens")),
        global_model_id=_first(str, None, (llm, "model_id"), (config, "global_model_id")),
        run_id=run_id,
    )


def _parse_team(team: _Entries) -> TeamConfigRequest:
    agent = team.nested("team_supervisor_agent")
    llm = agent.nested("llm_config")
    return TeamConfigRequest(
        name=team.name(),
        supervisor_prompt=_first(str, "", (agent, "system_prompt"), (team, "supervisor_prompt")),
        workers=team.each("workers", _parse_worker),
        id=team.one("id", str, None),
        agent_id=_first(str, None, (agent, "agent_id"), (team, "agent_id")),
        user_message=_first(str, None, (agent, "user_message"), (team, "user_message")),
        prevent_duplicate=team.one("prevent_duplicate", bool, default=True),
        share_context=team.one("share_context", bool, default=False),
        temperature=_number(llm, "temperature", team, "temperature", 0.7),
        max_tokens=_tokens((llm, "max_tokens"), (team, "max_tokens")),
        model_id=_first(str, None, (llm, "model_id"), (team, "model_id")),
    )


def _parse_worker(worker: _Entries) -> WorkerConfigRequest:
    llm = worker.nested("llm_config")
    tools = worker.one("tools", list, [])
    if not all(isinstance(tool, str) for tool in tools):
        raise worker.wrong("tools", "a list of names", tools)
    return WorkerConfigRequest(
        name=worker.name(),
        role=worker.one("role", str, ""),
        system_prompt=worker.one("system_prompt", str, ""),
        id=worker.one("id", str, None),
        agent_id=worker.one("agent_id", str, None),
        user_message=worker.one("user_message", str, None),
        tools=list(tools),
        temperature=_number(llm, "temperature", worker, "temperature", 0.7),
        max_tokens=_tokens((llm, "max_tokens"), (worker, "max_tokens")),
        model_id=_first(str, None, (llm, "model_id"), (worker, "model_id")),
    )


_KINDS = {str: "a text", bool: "true or false", int: "a whole number", list: "a list"}


class _Entries:
    """A mapping and its place in the configuration, for the messages. None counts as absent."""

    def __init__(self, data: object, place: str) -> None:
        if not isinstance(data, Mapping):
            raise ConfigError(f"{place} must be a mapping, not {data!r}")
        self._data = data
        self._place = place

    def get(self, key: str) -> Any:
        return self._data.get(key)

    def one(self, key: str, kind: type[_T], default: Any) -> Any:
        value = self._data.get(key)
        if value is None:
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.wrong(key, _KINDS[kind], value)
        return value

    def name(self) -> str:
        name: str = self.one("name", str, "")
        if not name.strip():
            raise self.wrong("name", "a text that is not empty", self.get("name"))
        return name

    def nested(self, key: str) -> _Entries:
        value = self._data.get(key)
        return _Entries({} if value is None else value, self._at(key))

    def each(self, key: str, parse: Callable[[_Entries], _T]) -> list[_T]:
        entries = self.one(key, list, [])
        return [parse(_Entries(one, f"{self._at(key)}[{at}]")) for at, one in enumerate(entries)]

    def wrong(self, key: str, expected: str, value: object) -> ConfigError:
        return ConfigError(f"{self._at(key)} must be {expected}, not {value!r}")

    def _at(self, key: str) -> str:
        return key if self._place == "config" else f"{self._place}.{key}"


def _first(kind: type[_T], default: Any, *places: tuple[_Entries, str]) -> Any:
    """Return the first entry that is there."""
    values: Iterator[Any] = (entries.one(key, kind, None) for entries, key in places)
    return next((value for value in values if value is not None), default)


def _tokens(*places: tuple[_Entries, str]) -> int:
    for entries, key in places:
        value: int | None = entries.one(key, int, None)
        if value is None:
            continue
        if value < 1:
            raise entries.wrong(key, "a whole number, 1 or more", value)
        return value
    return 2048


def _number(inner: _Entries, key: str, outer: _Entries, outer_key: str, default: float) -> float:
    for entries, name in ((inner, key), (outer, outer_key)):
        value = entries.get(name)
        if value is None:
            continue
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not 0 <= value < math.inf:
            raise entries.wrong(name, "a number, 0 or more", value)
        return float(value)
    return default
