//! The Python strings that are used often, such as the names of attributes and keys: interned once, at import.
//!
//! `intern!` would make each string at its first use, and give up the GIL meanwhile: the child of a fork at that moment
//! would wait for ever for a thread that it does not have.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyString;

static NAMES: PyOnceLock<Names> = PyOnceLock::new();

/// The strings.
#[inline]
pub(crate) fn names(py: Python<'_>) -> &Names {
    NAMES.get_or_init(py, || Names::new(py))
}

macro_rules! names {
    ($($field:ident = $text:literal),* $(,)?) => {
        pub(crate) struct Names {
            $(pub(crate) $field: Py<PyString>,)*
        }

        impl Names {
            fn new(py: Python<'_>) -> Self {
                Self { $($field: PyString::intern(py, $text).unbind(),)* }
            }
        }
    };
}

names! {
    action = "action",
    agent_id = "agent_id",
    agent_name = "agent_name",
    agent_type = "agent_type",
    append = "append",
    assistant = "assistant",
    buffer = "_buffer",
    caller_context = "caller_context",
    category = "category",
    complete = "complete",
    content = "content",
    current_tool_use = "current_tool_use",
    data = "data",
    delta = "delta",
    emit_event = "_emit_event",
    end = "end",
    event = "event",
    event_callback = "event_callback",
    event_loop_cycle_id = "event_loop_cycle_id",
    format = "format",
    get = "get",
    init_event_loop = "init_event_loop",
    llm = "llm",
    message = "message",
    name = "name",
    newline = "\n",
    previous_tool_use = "previous_tool_use",
    print = "print",
    reasoning_content = "reasoningContent",
    reasoning_text = "reasoningText",
    role = "role",
    round_completed = "LLM round completed",
    run_id = "run_id",
    self_ = "self",
    set = "set",
    source = "source",
    status = "status",
    strip = "strip",
    team_name = "team_name",
    text = "text",
    to_source_dict = "to_source_dict",
    tool_count = "tool_count",
    tool_line = "\nTool #{}: {}",
    tool_name = "tool_name",
    tool_result = "toolResult",
    tool_use = "toolUse",
    tool_use_id = "tool_use_id",
    tool_use_id_of_strands = "toolUseId",
    value = "value",
    verbose = "verbose",
}
