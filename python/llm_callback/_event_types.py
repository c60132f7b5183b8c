"""The types of events, for type checkers and annotations.

They are public in :mod:`llm_callback.events`, which imports this module at their first use: ``import llm_callback``
does not import ``typing``.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, TypedDict

# --- Words ---

# Each is a Union of Literals of one word. Of one Literal of several words stubtest would say that it is no Union.

RunState: TypeAlias = (
    Literal["pending"]
    | Literal["running"]
    | Literal["completed"]
    | Literal["failed"]
    | Literal["cancelled"]
)
"""The values of ``Run.state``."""

CancelKind: TypeAlias = (
    Literal["user"]
    | Literal["deadline"]
    | Literal["parent"]
    | Literal["shutdown"]
    | Literal["disconnect"]
)
"""Who asked a run to stop: the ``kind`` of a token, of ``RunCancelled`` and of ``lifecycle.cancelled``."""

Overflow: TypeAlias = (
    Literal["disconnect"] | Literal["gap"] | Literal["coalesce"] | Literal["block"]
)
"""What happens to a reader that is slower than its run: the ``overflow`` of ``Run.subscribe``."""

BuiltInCategory: TypeAlias = (
    Literal["lifecycle"]
    | Literal["llm"]
    | Literal["dispatch"]
    | Literal["system"]
    | Literal["agent"]
)
"""The categories that ``Run.emit`` takes together with an action."""

BuiltInAction: TypeAlias = (
    Literal["started"]
    | Literal["completed"]
    | Literal["failed"]
    | Literal["cancelled"]
    | Literal["stream"]
    | Literal["reasoning"]
    | Literal["tool_call"]
    | Literal["tool_result"]
    | Literal["team"]
    | Literal["worker"]
    | Literal["topology"]
    | Literal["warning"]
    | Literal["error"]
    | Literal["output"]
)
"""The actions that ``Run.emit`` takes together with a category."""


# --- Events ---


class Source(TypedDict):
    """The agent that an event comes from: what ``CallerContext.to_source_dict()`` returns."""

    agent_id: str
    agent_type: str
    agent_name: str
    team_name: str | None


class EventWord(TypedDict):
    """What kind of event it is. Both are ``str``: besides the built-in words there are an application's own."""

    category: str
    action: str


class CallbackEvent(TypedDict):
    """An event as a registered callback gets it.

    It has no ``id``, ``run_id``, ``timestamp`` and ``sequence``: a run's log gives these, and a callback works without
    a run. ``source`` is None if the run itself speaks. ``data`` has the type that :mod:`llm_callback.events` names
    after the event, such as ``LlmStreamData``, unless an application sends something else.
    """

    source: Source | None
    event: EventWord
    data: Any


class Event(CallbackEvent):
    """An event as a run's log holds it: what subscriptions, sinks, log files and SSE deliver.

    ``id`` is ``<milliseconds>-<sequence>``. ``timestamp`` is UTC, with milliseconds and ``Z``.
    """

    id: str
    run_id: int | str
    timestamp: str
    sequence: int


# --- The data of built-in events: <Category><Action>Data ---


class _LifecycleData(TypedDict, total=False):
    """What any event of a run's life may have. ``parent_run_id`` is there if the run has a parent."""

    parent_run_id: int | str


class _EndData(_LifecycleData, total=False):
    """What any last event may have. The hierarchy adds its ``statistics``."""

    statistics: dict[str, Any]


class LifecycleStartedData(_LifecycleData, total=False):
    """The data of ``lifecycle.started``: the keywords of ``open_run``.

    ``RunManager`` and the hierarchy send ``task``.
    """

    task: str


class LifecycleCompletedData(_EndData, total=False):
    """The data of ``lifecycle.completed``: the keywords of ``Run.complete``, and annotations.

    ``result`` is what the hierarchy answered, or what a function returned to ``RunManager``, unless that was a dict.
    """

    result: Any


class LifecycleFailedData(_EndData):
    """The data of ``lifecycle.failed``, besides annotations."""

    error: str
    details: str


class _CancelledData(_EndData):
    kind: CancelKind
    reason: str


class LifecycleCancelledData(_CancelledData, total=False):
    """The data of ``lifecycle.cancelled``, besides annotations.

    ``result``, like every other keyword of ``Run.complete``, is there if the run was completed after the cancel.
    """

    result: Any


class LlmStreamData(TypedDict):
    """The data of ``llm.stream``: a piece of the model's answer."""

    content: str


class LlmReasoningData(TypedDict):
    """The data of ``llm.reasoning``: a piece of the model's reasoning."""

    content: str


class LlmToolCallData(TypedDict):
    """The data of ``llm.tool_call``. ``tool_count`` counts the calls of one handler, from 1."""

    tool_name: str
    tool_count: int


class LlmToolResultData(TypedDict):
    """The data of ``llm.tool_result``. What the framework leaves out is None: strands leaves out nothing."""

    tool_use_id: str
    status: Literal["success", "error"]
    content: Any


class LlmCompletedData(TypedDict):
    """The data of ``llm.completed``: the model has completed a message."""

    message: str


class DispatchTeamData(TypedDict):
    """The data of ``dispatch.team``: the global supervisor gives a task to a team."""

    team_id: str
    team_name: str
    task: str


class DispatchWorkerData(TypedDict):
    """The data of ``dispatch.worker``: a team's supervisor gives a task to a worker."""

    worker_id: str
    worker_name: str
    task: str


class AgentStartedData(TypedDict):
    """The data of ``agent.started``."""

    task: str


class AgentCompletedData(TypedDict):
    """The data of ``agent.completed``. ``stop_reason`` is that of strands, such as ``end_turn``."""

    result: str
    stop_reason: str


class AgentFailedData(TypedDict):
    """The data of ``agent.failed``."""

    error: str


class TopologyWorker(TypedDict):
    """A worker in ``system.topology``."""

    worker_id: str
    worker_name: str


class TopologyTeam(TypedDict):
    """A team in ``system.topology``. ``supervisor_id`` is the agent id of its supervisor."""

    team_id: str
    team_name: str
    supervisor_id: str
    workers: list[TopologyWorker]


class SystemTopologyData(TypedDict):
    """The data of ``system.topology``: all agents of a hierarchy."""

    global_supervisor_id: str
    teams: list[TopologyTeam]


class _MessageData(TypedDict):
    message: str


class SystemWarningData(_MessageData, total=False):
    """The data of ``system.warning``.

    ``agent_id`` and ``task`` are there if an agent was given a task for the second time. ``tool`` is there if a tool or
    a task of asyncio did not end with its run.
    """

    agent_id: str
    task: str
    tool: str


class SystemErrorData(TypedDict):
    """The data of ``system.error``."""

    message: str


class SystemOutputData(TypedDict):
    """The data of ``system.output``: a line that the run's code has printed, without its end."""

    stream: Literal["stdout", "stderr"]
    text: str


class StreamGapData(TypedDict):
    """The data of ``stream.gap``: this reader has missed ``lost`` events.

    ``requested`` is what it asked for. ``oldest`` is the id of the oldest event that it can still have, or None.
    """

    requested: str
    oldest: str | None
    lost: int
