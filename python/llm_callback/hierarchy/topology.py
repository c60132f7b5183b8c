"""The agents of a hierarchy and their ids, which are the same for each run of a configuration."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_callback.events import CallerContext
from llm_callback.hierarchy.config import ConfigError

if TYPE_CHECKING:
    from llm_callback.events import SystemTopologyData, TopologyTeam
    from llm_callback.hierarchy.config import HierarchyConfigRequest, TeamConfigRequest


@dataclass(frozen=True)
class WorkerInfo:
    """A worker: its id and its name."""

    worker_id: str
    worker_name: str


@dataclass(frozen=True)
class TeamInfo:
    """A team: its ids, its name and its workers. Events have ``supervisor_id`` as the id of the team's supervisor."""

    team_id: str
    team_name: str
    supervisor_id: str
    workers: tuple[WorkerInfo, ...]

    @property
    def supervisor(self) -> CallerContext:
        """The source of the events of the team's supervisor."""
        return CallerContext.team_supervisor(
            self.supervisor_id, f"{self.team_name} Supervisor", self.team_name
        )

    def worker(self, worker: WorkerInfo) -> CallerContext:
        """Return the source of the events of a worker."""
        return CallerContext.worker(worker.worker_id, worker.worker_name, self.team_name)


@dataclass(frozen=True)
class TopologyInfo:
    """All agents of a hierarchy."""

    global_supervisor_id: str
    teams: tuple[TeamInfo, ...]

    @classmethod
    def of(cls, config: HierarchyConfigRequest) -> TopologyInfo:
        """Give each agent an id: the configured one, or one by its place, such as ``team-1-worker-2``.

        Raises ConfigError for a hierarchy without a team, and for two teams or two agents with the same id.
        """
        if not config.teams:
            raise ConfigError("teams must have at least one team")
        topology = cls(
            config.global_agent_id or "global-supervisor",
            tuple(_team(team, number) for number, team in enumerate(config.teams, start=1)),
        )
        team_ids = (team.team_id for team in topology.teams)
        for kind, ids in (("agents", topology.agent_ids), ("teams", team_ids)):
            [(one, count)] = Counter(ids).most_common(1)
            if count > 1:
                raise ConfigError(
                    f"{count} {kind} have the id {one!r}: each needs one of its own, or none"
                )
        return topology

    @property
    def agent_ids(self) -> tuple[str, ...]:
        """The ids of all agents, the global supervisor first."""
        workers = (worker.worker_id for team in self.teams for worker in team.workers)
        supervisors = (team.supervisor_id for team in self.teams)
        return (self.global_supervisor_id, *supervisors, *workers)

    @property
    def supervisor(self) -> CallerContext:
        """The source of the events of the global supervisor."""
        return CallerContext.global_supervisor(self.global_supervisor_id)

    def to_dict(self) -> SystemTopologyData:
        """Return the data of the event ``system.topology``: plain dicts and lists."""
        return {
            "global_supervisor_id": self.global_supervisor_id,
            "teams": [_plain(team) for team in self.teams],
        }


def _plain(team: TeamInfo) -> TopologyTeam:
    return {
        "team_id": team.team_id,
        "team_name": team.team_name,
        "supervisor_id": team.supervisor_id,
        "workers": [
            {"worker_id": worker.worker_id, "worker_name": worker.worker_name}
            for worker in team.workers
        ],
    }


def _team(team: TeamConfigRequest, number: int) -> TeamInfo:
    team_id = team.id or f"team-{number}"
    return TeamInfo(
        team_id=team_id,
        team_name=team.name,
        supervisor_id=team.agent_id or f"{team_id}-supervisor",
        workers=tuple(
            WorkerInfo(worker.agent_id or worker.id or f"{team_id}-worker-{place}", worker.name)
            for place, worker in enumerate(team.workers, start=1)
        ),
    )
