//! How many runs and readers a table has.

use crate::run_id::RunId;
use std::time::SystemTime;

/// How many runs the table has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RunsStats {
    /// Runs without a terminal event.
    pub live: usize,
    /// The live run that was opened first.
    pub oldest: Option<OldestRun>,
    /// Finished runs that can still be found.
    pub finished: usize,
    /// The bytes of encoded events that are kept of ended runs, also for readers of forgotten runs.
    pub finished_bytes: u64,
    /// Runs that were ever opened.
    pub opened: u64,
    /// Events and annotations that came after the end of their [`Run`](crate::Run), and were refused.
    pub late: u64,
}

/// The live run that was opened first.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OldestRun {
    /// The run's id.
    pub id: RunId,
    /// When the run was opened.
    pub opened_at: SystemTime,
}

/// How many subscriptions there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReaderStats {
    /// Subscriptions that are open, of live, finished and forgotten runs.
    pub open: usize,
    /// How many events the slowest of them has still to read.
    pub lag: u64,
}
