//! How much a table of runs keeps.

use super::finished::Bounds;
use crate::log::Limits;
use std::time::Duration;

/// How much a table keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// How much each run's log holds.
    pub limits: Limits,
    /// How long a finished run can still be found and read. The thread that watches deadlines forgets it when the time
    /// is over.
    pub grace: Duration,
    /// How many finished runs can be found at most. The run that ended first is forgotten first.
    pub finished: usize,
    /// How many bytes of encoded events are kept of all finished runs together, with what readers of forgotten runs
    /// have still to read.
    pub finished_bytes: u64,
    /// How many runs may be live at once; None for any number.
    pub max_live: Option<usize>,
}

impl Default for Options {
    /// The logs' default limits, five minutes, 1 000 finished runs, 256 MiB of them, and any number of live runs.
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            grace: Duration::from_secs(300),
            finished: 1_000,
            finished_bytes: 256 << 20,
            max_live: None,
        }
    }
}

impl Options {
    pub(super) fn bounds(&self) -> Bounds {
        Bounds {
            time: self.grace,
            runs: self.finished,
            bytes: self.finished_bytes,
        }
    }
}
