//! Where a run is in its life, and since when.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::SystemTime;

/// Where a run is in its life. What it ended as is what its terminal event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum RunState {
    /// It was opened, and has no event yet.
    Pending,
    /// It has started and has no terminal event yet; it may have been asked to stop.
    Running,
    /// Its last event is `lifecycle.completed`.
    Completed,
    /// Its last event is `lifecycle.failed`.
    Failed,
    /// Its last event is `lifecycle.cancelled`.
    Cancelled,
}

impl RunState {
    /// The state as people and events spell it.
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

/// When a run's cancellation was asked for, when the run took note, and when the run ended. All three are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Times {
    /// Somebody, or a deadline, asked it to stop, before its end.
    pub requested: Option<SystemTime>,
    /// Its code was told so.
    pub acknowledged: Option<SystemTime>,
    /// Its terminal event was appended.
    pub finished: Option<SystemTime>,
}
