//! The runs of a process: opened, found and cancelled, with the sinks that get all their events.

use super::observer::Observer;
use super::options::Options;
use super::run::Run;
use super::sinks::Sinks;
use super::stats::{ReaderStats, RunsStats};
use super::table::Table;
use crate::cancel::CancelKind;
use crate::log::WouldBlock;
use crate::run_id::RunId;
use crate::sink::SinkHandle;
use crate::sync::Mutex;
use std::fmt;
use std::sync::Arc;

pub(super) struct Inner {
    /// Dropped before the sinks, so that the terminal events of abandoned runs are written.
    pub(super) table: Arc<Table>,
    /// Protects the list of the sinks. Under it: list operations; nobody waits for a sink under it.
    pub(super) sinks: Mutex<Sinks>,
}

/// The runs of a process, or of a part of it. A clone is a handle of the same table; all methods may be called from any
/// thread. Dropping the last handle abandons the live runs and waits for the sinks, five seconds at most.
///
/// In the child of a fork the locks of the table may be held by threads that do not exist there, and neither do the
/// threads of the sinks. A host that forks makes a new table in the child, and gives the old one to
/// [`std::mem::forget`]: so no thread waits for the sinks, and the parent's runs are not dropped. Handles of these runs
/// may be dropped in the child, and must not be used otherwise.
#[derive(Clone)]
pub struct Runs(pub(super) Arc<Inner>);

impl fmt::Debug for Runs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runs")
            .field("live", &self.0.table.try_len())
            .finish_non_exhaustive()
    }
}

impl Default for Runs {
    fn default() -> Self {
        Self::new(Options::default())
    }
}

impl Runs {
    /// An empty table.
    pub fn new(options: Options) -> Self {
        Self(Arc::new(Inner {
            table: Table::new(options),
            sinks: Mutex::default(),
        }))
    }

    /// How much the table keeps.
    pub fn options(&self) -> Options {
        self.0.table.options()
    }

    /// Changes how much the table keeps; `change` is called under the table's lock. Runs beyond the new bounds are
    /// forgotten at once. The logs of runs that were opened before keep their limits.
    pub fn configure(&self, change: impl FnOnce(&mut Options)) {
        self.0.table.configure(change);
    }

    /// Whether any run is live. One relaxed atomic load, for a host that asks at every event and mostly has no run.
    #[inline]
    pub fn has_live(&self) -> bool {
        self.0.table.has_live()
    }

    /// The live run of this id, also one that has not started.
    pub fn live(&self, id: &RunId) -> Option<Arc<Run>> {
        self.0.table.live(id)
    }

    /// As [`live`](Self::live), for a thread that must not wait.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`] if another thread has the table's lock.
    pub fn try_live(&self, id: &RunId) -> Result<Option<Arc<Run>>, WouldBlock> {
        self.0.table.try_live(id)
    }

    /// The latest run of this id, live or finished.
    pub fn get(&self, id: &RunId) -> Option<Arc<Run>> {
        self.0.table.get(id)
    }

    /// The live runs, in no order.
    pub fn active(&self) -> Vec<Arc<Run>> {
        self.0.table.all_live()
    }

    /// Asks the live run of this id, and all below it, to stop. Returns whether there is one, and this was the first to
    /// ask. See [`Run::cancel`].
    pub fn cancel(&self, id: &RunId, kind: CancelKind, message: &str) -> bool {
        self.live(id).is_some_and(|run| run.cancel(kind, message))
    }

    /// How many runs there are.
    pub fn stats(&self) -> RunsStats {
        self.0.table.stats()
    }

    /// How many subscriptions of this table's runs are open, and how far the slowest is behind. Locks each log in turn.
    pub fn readers(&self) -> ReaderStats {
        self.0.table.readers()
    }

    /// Tells an observer what happens to the runs of this table, for as long as the table exists. The observer does not
    /// hear of readers that lag in runs that were opened before this call.
    pub fn observe(&self, observer: Arc<dyn Observer>) {
        self.0.table.observe(observer);
    }

    /// Gives the events of all runs that are opened from now on to this sink too, each run's events in order.
    ///
    /// # Errors
    ///
    /// The sink, given back, if the table has a sink of its name.
    pub fn add_sink(&self, sink: SinkHandle) -> Result<(), SinkHandle> {
        let mut sinks = self.0.sinks.lock();
        if sinks.handles.iter().any(|its| its.name() == sink.name()) {
            return Err(sink);
        }
        sinks.handles.push(sink);
        sinks.share();
        Ok(())
    }

    /// Removes a sink: it gets no events of the runs that are opened from now on. Returns whether the table had the
    /// sink. The caller [closes](SinkHandle::close) it.
    pub fn remove_sink(&self, sink: &SinkHandle) -> bool {
        let mut sinks = self.0.sinks.lock();
        let Some(place) = sinks.handles.iter().position(|its| its == sink) else {
            return false;
        };
        // Not the last handle: the caller has one too.
        sinks.handles.remove(place);
        sinks.share();
        true
    }

    /// The sinks, in the order in which they were added.
    pub fn sinks(&self) -> Vec<SinkHandle> {
        self.0.sinks.lock().handles.clone()
    }
}
