//! Why a run was not opened.

use crate::cancel::CancelReason;
use crate::run_id::RunId;
use std::fmt;

/// Why a run was not opened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpenError {
    /// A run of this id is live.
    Live(RunId),
    /// The parent is not live.
    NoParent(RunId),
    /// The parent was cancelled, for this reason.
    ParentCancelled(RunId, CancelReason),
    /// This number of runs are live, and [`Options::max_live`](crate::Options::max_live) allows no more.
    TooMany(usize),
    /// The table was shut down.
    ShutDown,
    /// The system refuses the thread that watches deadlines.
    NoTimer,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Live(id) => write!(
                f,
                "run {id} is live: another run of this id can be opened once it has ended"
            ),
            Self::NoParent(id) => write!(f, "the parent run {id} is not live"),
            Self::ParentCancelled(id, why) => write!(f, "the parent run {id} was {why}"),
            Self::TooMany(max_live) => write!(
                f,
                "{max_live} runs are live, and max_live allows no more: open this one when another has ended"
            ),
            Self::ShutDown => f.write_str("the runs were shut down: none is opened any more"),
            Self::NoTimer => f.write_str("the system refuses the thread that watches deadlines"),
        }
    }
}

impl std::error::Error for OpenError {}
