"""What a hierarchy is made of: its agents, its teams and its task, as a host configures them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from llm_callback.events import _Word
from llm_callback.exceptions import LlmCallbackError

if TYPE_CHECKING:
    from typing import TypeVar

    from pydantic_core import ErrorDetails

    _T = TypeVar("_T")


class LlmConfig(NamedTuple):
    """Which model an agent talks with, and how: the ``llm_config`` of a configuration."""

    model_id: str | None
    temperature: float
    max_tokens: int


class ConfigError(LlmCallbackError, ValueError):
    """A configuration cannot be used. Each line of the message begins with a place: ``teams[0].workers[1].name``."""


class ConfigWarning(UserWarning):
    """A stored configuration has entries that are not used: see :func:`parse_hierarchy_config`."""


class ExecutionMode(_Word):
    """Whether the teams and workers that one answer of a supervisor asks for work one by one, or at once."""

    SEQUENTIAL = "sequential"
    PARALLEL = "parallel"


def _expected(what: str) -> PydanticCustomError:
    return PydanticCustomError("expected", "{what}", {"what": what})


def _name(name: str | None) -> str:
    if name is None or not name.strip():
        raise _expected("a text that is not empty")
    return name


def _names(names: list[Any]) -> list[str]:
    if not all(isinstance(name, str) for name in names):
        raise _expected("a list of names")
    return names


def _mode(mode: str) -> ExecutionMode:
    try:
        return ExecutionMode(mode)
    except ValueError:
        words = " or ".join(repr(known.value) for known in ExecutionMode)
        raise PydanticCustomError("mode", "{what}", {"what": words}) from None


def _run_id(run_id: Any) -> int | str | None:
    if isinstance(run_id, UUID):
        return str(run_id)
    if run_id is None or (isinstance(run_id, (int, str)) and not isinstance(run_id, bool)):
        return run_id
    raise _expected("an int, a text or a UUID")


_Temperature = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_MaxTokens = Annotated[int, Field(ge=1)]
_Tools = Annotated[list[Any], AfterValidator(_names)]
_Name = Annotated[str, AfterValidator(_name)]
_RunId = Annotated[Any, AfterValidator(_run_id)]

_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(config=_STRICT)
class WorkerConfigRequest:
    """An agent that does the work of a team, with tools of its own.

    ``id`` or ``agent_id`` is its id in events; left out, it is ``team-1-worker-2`` by its place. ``tools`` are names
    that :func:`register_tool` knows. ``user_message`` is its task if its supervisor gives none. ``model_id`` is
    ``<provider>:<model>``; None is the default of strands.
    """

    name: _Name
    role: str = ""
    system_prompt: str = ""
    id: str | None = None
    agent_id: str | None = None
    user_message: str | None = None
    tools: _Tools = field(default_factory=list)
    temperature: _Temperature = 0.7
    max_tokens: _MaxTokens = 2048
    model_id: str | None = None

    @property
    def llm(self) -> LlmConfig:
        """The agent's model."""
        return LlmConfig(self.model_id, self.temperature, self.max_tokens)

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that :func:`parse_hierarchy_config` reads."""
        return asdict(self)


@dataclass(config=_STRICT)
class TeamConfigRequest:
    """A team: its supervisor, and the workers that the supervisor calls.

    With ``prevent_duplicate`` a second call with the same task gets the result of the first. With ``share_context`` the
    team is told what the teams before it have found, if the hierarchy's ``enable_context_sharing`` allows it.
    """

    name: _Name
    supervisor_prompt: str
    workers: list[WorkerConfigRequest]
    id: str | None = None
    agent_id: str | None = None
    user_message: str | None = None
    prevent_duplicate: bool = True
    share_context: bool = False
    temperature: _Temperature = 0.7
    max_tokens: _MaxTokens = 2048
    model_id: str | None = None

    @property
    def llm(self) -> LlmConfig:
        """The supervisor's model."""
        return LlmConfig(self.model_id, self.temperature, self.max_tokens)

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that :func:`parse_hierarchy_config` reads."""
        return asdict(self)


@dataclass(config=_STRICT)
class HierarchyConfigRequest:
    """A global supervisor, its teams, and the task that they are given.

    ``run_id`` is the run that they work for; None makes a new id. ``global_user_message`` is the task if ``task`` is
    empty.
    """

    global_prompt: str
    teams: list[TeamConfigRequest]
    task: str = ""
    global_agent_id: str | None = None
    global_user_message: str | None = None
    enable_context_sharing: bool = False
    execution_mode: ExecutionMode = ExecutionMode.SEQUENTIAL
    global_temperature: _Temperature = 0.7
    global_max_tokens: _MaxTokens = 2048
    global_model_id: str | None = None
    run_id: _RunId = None

    @property
    def global_llm(self) -> LlmConfig:
        """The global supervisor's model."""
        return LlmConfig(self.global_model_id, self.global_temperature, self.global_max_tokens)

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that :func:`parse_hierarchy_config` reads."""
        return {**asdict(self), "execution_mode": self.execution_mode.value}


def parse_hierarchy_config(
    data: Mapping[str, Any], *, compat: bool = False
) -> HierarchyConfigRequest:
    """Read a hierarchy from a mapping, such as a request's JSON.

    Two shapes are understood, also mixed. The flat shape has ``global_prompt``, and ``supervisor_prompt`` for each
    team. The nested shape has ``global_supervisor_agent``, and ``team_supervisor_agent`` for each team: mappings of
    ``system_prompt``, ``agent_id``, ``user_message`` and ``llm_config``. An ``llm_config`` holds ``model_id``,
    ``temperature`` and ``max_tokens``; a worker may have one too. If both shapes give a value, the nested one is taken.
    None counts as absent.

    Raises ConfigError for an entry that is missing, of a wrong type, or unknown: one line for each mistake. With
    ``compat`` unknown entries are ignored, and an unknown ``execution_mode`` is ``"sequential"``: one ConfigWarning
    names them. Use that for stored configurations of the original application.
    """
    plain = _plain(data)
    try:
        return _Hierarchy.model_validate(plain).request()
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
    unused = [mistake for mistake in mistakes if mistake["type"] in {"extra_forbidden", "mode"}]
    if not compat or len(unused) < len(mistakes):
        raise ConfigError("\n".join(map(_told, mistakes)))
    for mistake in unused:
        _remove(plain, mistake["loc"])
    lines = "\n".join(map(_told, unused))
    warnings.warn(f"the configuration has entries that are not used:\n{lines}", ConfigWarning, 2)
    return _Hierarchy.model_validate(plain).request()


class _Shape(BaseModel):
    """A mapping of a configuration, as it comes from outside. None counts as absent."""

    model_config = _STRICT


class _Llm(_Shape):
    model_id: str | None = None
    temperature: _Temperature | None = None
    max_tokens: _MaxTokens | None = None


class _Agent(_Shape):
    system_prompt: str | None = None
    agent_id: str | None = None
    user_message: str | None = None
    llm_config: _Llm | None = None


class _Worker(_Llm):
    name: Annotated[str | None, AfterValidator(_name)] = Field(None, validate_default=True)
    role: str | None = None
    system_prompt: str | None = None
    id: str | None = None
    agent_id: str | None = None
    user_message: str | None = None
    tools: _Tools | None = None
    llm_config: _Llm | None = None

    def request(self) -> WorkerConfigRequest:
        llm = self.llm_config or _Llm()
        return WorkerConfigRequest(
            name=_name(self.name),
            role=self.role or "",
            system_prompt=self.system_prompt or "",
            id=self.id,
            agent_id=self.agent_id,
            user_message=self.user_message,
            tools=self.tools or [],
            temperature=_first(llm.temperature, self.temperature, default=0.7),
            max_tokens=_first(llm.max_tokens, self.max_tokens, default=2048),
            model_id=_first(llm.model_id, self.model_id, default=None),
        )


class _Team(_Llm):
    name: Annotated[str | None, AfterValidator(_name)] = Field(None, validate_default=True)
    supervisor_prompt: str | None = None
    team_supervisor_agent: _Agent | None = None
    workers: list[_Worker] | None = None
    id: str | None = None
    agent_id: str | None = None
    user_message: str | None = None
    prevent_duplicate: bool | None = None
    share_context: bool | None = None

    def request(self) -> TeamConfigRequest:
        agent = self.team_supervisor_agent or _Agent()
        llm = agent.llm_config or _Llm()
        return TeamConfigRequest(
            name=_name(self.name),
            supervisor_prompt=_first(agent.system_prompt, self.supervisor_prompt, default=""),
            workers=[worker.request() for worker in self.workers or []],
            id=self.id,
            agent_id=_first(agent.agent_id, self.agent_id, default=None),
            user_message=_first(agent.user_message, self.user_message, default=None),
            prevent_duplicate=_first(self.prevent_duplicate, default=True),
            share_context=_first(self.share_context, default=False),
            temperature=_first(llm.temperature, self.temperature, default=0.7),
            max_tokens=_first(llm.max_tokens, self.max_tokens, default=2048),
            model_id=_first(llm.model_id, self.model_id, default=None),
        )


class _Hierarchy(_Shape):
    global_prompt: str | None = None
    global_supervisor_agent: _Agent | None = None
    teams: list[_Team] | None = None
    task: str | None = None
    global_agent_id: str | None = None
    global_user_message: str | None = None
    enable_context_sharing: bool | None = None
    execution_mode: Annotated[str, AfterValidator(_mode)] | None = None
    global_temperature: _Temperature | None = None
    global_max_tokens: _MaxTokens | None = None
    global_model_id: str | None = None
    run_id: _RunId = None

    def request(self) -> HierarchyConfigRequest:
        agent = self.global_supervisor_agent or _Agent()
        llm = agent.llm_config or _Llm()
        return HierarchyConfigRequest(
            global_prompt=_first(agent.system_prompt, self.global_prompt, default=""),
            teams=[team.request() for team in self.teams or []],
            task=self.task or "",
            global_agent_id=_first(agent.agent_id, self.global_agent_id, default=None),
            global_user_message=_first(agent.user_message, self.global_user_message, default=None),
            enable_context_sharing=_first(self.enable_context_sharing, default=False),
            execution_mode=ExecutionMode(_first(self.execution_mode, default="sequential")),
            global_temperature=_first(llm.temperature, self.global_temperature, default=0.7),
            global_max_tokens=_first(llm.max_tokens, self.global_max_tokens, default=2048),
            global_model_id=_first(llm.model_id, self.global_model_id, default=None),
            run_id=self.run_id,
        )


def _first(*values: _T | None, default: _T) -> _T:
    """Return the first value that is there."""
    return next((value for value in values if value is not None), default)


def _plain(value: Any) -> Any:
    """Return a copy with a dict in the place of each mapping."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if type(value) is list else value


def _remove(data: Any, path: tuple[int | str, ...]) -> None:
    *outer, last = path
    for step in outer:
        data = data[step]
    del data[last]


_EXPECTED = {
    "bool_type": "true or false",
    "finite_number": "a number, 0 or more",
    "float_type": "a number, 0 or more",
    "int_type": "a whole number, 1 or more",
    "list_type": "a list",
    "model_type": "a mapping",
    "string_type": "a text",
}


def _told(mistake: ErrorDetails) -> str:
    """Return a mistake as a line for the person who wrote the configuration."""
    path, kind, value = mistake["loc"], mistake["type"], mistake["input"]
    place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    place = place.removeprefix(".") or "config"
    if kind == "extra_forbidden":
        known = sorted(_fields(path[:-1]))
        near = get_close_matches(str(path[-1]), known, 1)
        return f"{place} is unknown: " + (
            f"{near[0]}?" if near else f"known are {', '.join(known)}"
        )
    if kind == "greater_than_equal":
        is_temperature = str(path[-1]).endswith("temperature")
        kind = "float_type" if is_temperature else "int_type"
    expected = _EXPECTED.get(kind, mistake["msg"])
    return f"{place} must be {expected}, not {value!r}"


def _fields(path: tuple[int | str, ...]) -> set[str]:
    """Return the entries that are known at a place."""
    shapes: dict[str, type[_Shape]] = {
        "teams": _Team,
        "workers": _Worker,
        "global_supervisor_agent": _Agent,
        "team_supervisor_agent": _Agent,
        "llm_config": _Llm,
    }
    names = [step for step in path if isinstance(step, str)]
    return {*(shapes[names[-1]] if names else _Hierarchy).model_fields}
