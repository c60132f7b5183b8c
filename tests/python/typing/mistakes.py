"""Twenty mistakes, each on a line of its own that names the error of mypy and that of pyright.

Nothing here is run. ``check.py`` runs both checkers, and ``fine.py`` is what they must accept.
"""

import llm_callback
from llm_callback import (
    CallbackEvent,
    Event,
    Run,
    RunManager,
    add_sink,
    register_event_callback,
)
from llm_callback.events import LlmStreamData


def names() -> None:
    """Names that the package does not have."""
    from llm_callback import opne_run  # error: attr-defined, reportAttributeAccessIssue

    opne_run()
    llm_callback.get_runs()  # error: attr-defined, reportAttributeAccessIssue


def events(event: Event) -> None:
    """Fields that an event does not have."""
    print(event["evnt"])  # error: typeddict-item, reportGeneralTypeIssues
    print(event["event"]["acton"])  # error: typeddict-item, reportGeneralTypeIssues
    print(event["source"]["agent_name"])  # error: index, reportOptionalSubscript


def data(event: Event) -> None:
    """Fields that the data of a built-in event do not have."""
    token: LlmStreamData = event["data"]
    print(token["contnt"])  # error: typeddict-item, reportGeneralTypeIssues
    token = {"contents": "An old pond"}  # error: typeddict-item, reportAssignmentType


def emitting(run: Run) -> None:
    """Words that no event has, data of an own word that are no mapping, and a source that is none."""
    run.emit("llm", "strem")  # error: call-overload, reportCallIssue
    run.emit("llm", "strem", {"content": "An old pond"})  # error: call-overload, reportCallIssue
    run.emit("lmm", "stream", {"content": "An old pond"})  # error: call-overload, reportCallIssue
    run.emit("stream", "gap")  # error: call-overload, reportCallIssue
    run.emit("billing.charged", "3 cents")  # error: call-overload, reportCallIssue
    run.emit("llm", "completed", source={"agent": "w1"})  # error: call-overload, reportCallIssue


def words(run: Run) -> None:
    """Words that an argument does not take, or an attribute never is."""
    run.cancel("the user left", kind="usr")  # error: arg-type, reportArgumentType
    run.subscribe(overflow="disconect")  # error: arg-type, reportArgumentType
    print(run.state == "complete")  # error: comparison-overlap, reportUnnecessaryComparison


def callbacks(manager: RunManager) -> None:
    """Functions that do not take what they are called with."""

    def read_id(event: Event) -> None:
        print(event["id"])

    def read_text(text: str) -> None:
        print(text)

    def read_event_id(event: CallbackEvent) -> None:
        print(event["id"])  # error: typeddict-item, reportGeneralTypeIssues

    register_event_callback(42, read_id)  # error: arg-type, reportArgumentType
    manager.start_run(on_event=read_text)  # error: arg-type, reportArgumentType
    add_sink(read_event_id)  # error: arg-type, reportArgumentType
