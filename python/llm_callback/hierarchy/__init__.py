"""A hierarchy of real strands agents. Runs share no state.

The global supervisor calls teams as its tools; a team's supervisor calls workers. Needs strands-agents:
``pip install "llm-callback[strands]"``.
"""

try:
    import strands as _strands  # noqa: F401
except ModuleNotFoundError as _error:
    # If a module *inside* an installed strands is missing, its own error says more.
    if (_error.name or "").partition(".")[0] != "strands":
        raise
    raise ImportError(
        'llm_callback.hierarchy needs strands-agents: pip install "llm-callback[strands]"',
        name="strands",
    ) from _error

from llm_callback.hierarchy.agents import (
    GlobalSupervisorFactory,
    Hierarchy,
    HierarchyBuilder,
    TeamSupervisorFactory,
    WorkerAgentFactory,
)
from llm_callback.hierarchy.config import (
    ConfigError,
    ConfigWarning,
    ExecutionMode,
    HierarchyConfigRequest,
    TeamConfigRequest,
    WorkerConfigRequest,
    parse_hierarchy_config,
)
from llm_callback.hierarchy.execution import Execution
from llm_callback.hierarchy.executor import (
    ExecutionResponse,
    HierarchyExecutor,
    HierarchyResult,
    execute_hierarchy,
    run_in,
)
from llm_callback.hierarchy.providers import (
    ModelRequest,
    ModelUnavailable,
    register_model_provider,
    register_script,
    register_tool,
)
from llm_callback.hierarchy.topology import TeamInfo, TopologyInfo, WorkerInfo
from llm_callback.hierarchy.tracker import ExecutionTracker

__all__ = [
    "ConfigError",
    "ConfigWarning",
    "Execution",
    "ExecutionMode",
    "ExecutionResponse",
    "ExecutionTracker",
    "GlobalSupervisorFactory",
    "Hierarchy",
    "HierarchyBuilder",
    "HierarchyConfigRequest",
    "HierarchyExecutor",
    "HierarchyResult",
    "ModelRequest",
    "ModelUnavailable",
    "TeamConfigRequest",
    "TeamInfo",
    "TeamSupervisorFactory",
    "TopologyInfo",
    "WorkerAgentFactory",
    "WorkerConfigRequest",
    "WorkerInfo",
    "execute_hierarchy",
    "parse_hierarchy_config",
    "register_model_provider",
    "register_script",
    "register_tool",
    "run_in",
]
