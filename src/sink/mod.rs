//! A destination for the events of all runs: each sink follows the runs' logs on a thread of its own.
//!
//! A sink is a cursor over every run's log, not a second queue. An emitting thread only tells the sink's follower that
//! a run has news; the follower reads the events from the log. If the sink fails, its cursor stays where it is: that is
//! the retry, and the log is the buffer. If a log evicts events that the sink has not taken, the sink gets a gap event.
//!
//! # Locks
//!
//! Under a backlog's lock a run's progress and its log's lock are taken, never the other way round. No lock is held
//! while a sink is called.

mod backlog;
mod channel;
mod flush;
mod follow;
mod follower;
mod handle;
mod ndjson;
mod queue;
mod settled;
mod shared;
mod stats;

pub use backlog::Hold;
pub(crate) use flush::Flushing;
pub use handle::SinkHandle;
pub(crate) use handle::Stopping;
pub use ndjson::NdjsonFile;
pub(crate) use shared::{Follows, Opened, Shared, follow};
pub use stats::SinkStats;

use crate::run_id::RunId;
use crate::wire::Frame;
use std::fmt;
use std::io;
use std::sync::Arc;

/// A destination for events. Each sink is called on a thread of its own, so it may block without delaying anyone else.
///
/// A call that panics counts as a call that failed.
pub trait Sink: Send + 'static {
    /// Runs the sink's thread. Called once, on that thread; it must call `work` once, which returns when the sink is
    /// closed. For a sink that needs something set up around its calls.
    fn run_thread(work: &mut (dyn FnMut() + Send))
    where
        Self: Sized,
    {
        work();
    }

    /// A run is about to be written for the first time.
    fn opened(&mut self, _run: &Followed) {}

    /// Takes some events of one run, in their order: about 256 events or 256 KiB at most. A `stream.gap` event among
    /// them says how many events are missing.
    ///
    /// # Errors
    ///
    /// [`Refused`] says up to which event the sink has taken the batch; any [`io::Error`] means that it took none. The
    /// other events are offered again after a pause, which grows up to two seconds, for as long as the run's log holds
    /// them. Other runs go on meanwhile.
    fn write(&mut self, batch: &Batch<'_>) -> Result<(), Refused>;

    /// The sink has taken the run's terminal event: no event of this run comes after it.
    fn ended(&mut self, _run: &Followed) {}

    /// Makes everything that was taken durable. Called once nothing is left to write, if a lifecycle event was written;
    /// at least once a second while events are written; when a thread asks for a flush; and at the end.
    ///
    /// # Errors
    ///
    /// An error is counted, and nothing else happens.
    fn flush(&mut self) -> io::Result<()>;
}

/// The run that a batch is of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Followed {
    id: RunId,
    generation: u64,
}

impl Followed {
    /// The run of this id and generation: for the test of a sink.
    pub fn new(id: impl Into<RunId>, generation: u64) -> Self {
        Self {
            id: id.into(),
            generation,
        }
    }

    /// The run's id.
    pub fn id(&self) -> &RunId {
        &self.id
    }

    /// The run's generation, which tells runs of the same id apart: see [`Run::generation`](crate::Run::generation).
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

/// Some events of one run, in their order, at least one.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    run: &'a Followed,
    frames: &'a [Arc<Frame>],
}

impl<'a> Batch<'a> {
    /// Some events of a run: for the test of a sink.
    pub fn new(run: &'a Followed, frames: &'a [Arc<Frame>]) -> Self {
        Self { run, frames }
    }

    /// The run that all the events are of.
    pub fn run(&self) -> &'a Followed {
        self.run
    }

    /// The events.
    pub fn frames(&self) -> &'a [Arc<Frame>] {
        self.frames
    }
}

/// A sink has not taken all of a batch.
#[derive(Debug)]
pub struct Refused {
    /// The sequence number of the last event that the sink took; 0 if it took none.
    pub taken: u64,
    /// Why the sink did not take the other events.
    pub error: io::Error,
}

impl From<io::Error> for Refused {
    /// The sink took no event.
    fn from(error: io::Error) -> Self {
        Self { taken: 0, error }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after event {}: {}", self.taken, self.error)
    }
}

impl std::error::Error for Refused {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}
