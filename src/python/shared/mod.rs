//! What the drop-in and the runs share: ids, registered callbacks and checkers, the process's table of runs, the
//! handler's class.

pub(crate) mod attributes;
pub(crate) mod cancelled;
pub(crate) mod counters;
pub(crate) mod data;
pub(crate) mod event;
pub(crate) mod handler;
pub(crate) mod print;
pub(crate) mod registered;
pub(crate) mod run_id;
pub(crate) mod run_key;
pub(crate) mod table;
pub(crate) mod tool_calls;
pub(crate) mod truth;
