//! Where a run is in its life, and since when.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::SystemTime;

/// Where a run is in its life. The last three states are what the terminal event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum RunState {
    /// The run was opened, and has no event yet.
    Pending,
    /// The run has started and has no terminal event yet. It may have been asked to stop.
    Running,
    /// The terminal event is `lifecycle.completed`.
    Completed,
    /// The terminal event is `lifecycle.failed`.
    Failed,
    /// The terminal event is `lifecycle.cancelled`.
    Cancelled,
}

impl RunState {
    /// The state as a word, such as `running`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// When a run was asked to stop, when its code was told, and when it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Times {
    /// A cancel or a deadline asked the run to stop, before its end.
    pub requested: Option<SystemTime>,
    /// The run's code was told of it.
    pub acknowledged: Option<SystemTime>,
    /// The terminal event was appended.
    pub finished: Option<SystemTime>,
}
