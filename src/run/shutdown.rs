//! The end of all runs of a table, and the flush of its sinks.

use super::runs::Runs;
use crate::cancel::CancelKind;
use crate::sink::{Flushing, Stopping};
use std::sync::Arc;
use std::time::{Duration, Instant};

impl Runs {
    /// Asks every live run to stop, ends each with its terminal event, refuses new runs for good, and stops the sinks
    /// once they have taken every event, at most after `patience` in all. Returns true if the sinks have taken
    /// everything.
    ///
    /// First every run is cancelled and ended, then the tokens' callbacks run, on this thread: a callback that blocks
    /// keeps this call from returning, but no run from ending. Events that a sink has not taken in time count as
    /// dropped. A call of a sink that does not return is left to itself.
    pub fn shutdown(&self, message: &str, patience: Duration) -> bool {
        let end = Instant::now().checked_add(patience);
        let ending = self.ending(message, end);
        let has_all = ending.wait_until(end);
        if has_all.is_none() {
            ending.give_up();
        }
        has_all.unwrap_or(false)
    }

    /// The first part of a [`shutdown`](Self::shutdown): all runs have ended, and the sinks are asked to end until
    /// `end`.
    pub(crate) fn ending(&self, message: &str, end: Option<Instant>) -> Ending {
        let mut live = self.0.table.shut();
        // A run before its parent: the parent's cancel would reach the run as kind `parent`.
        live.sort_unstable_by_key(|run| std::cmp::Reverse(run.number()));
        let message: Arc<str> = message.into();
        let cancelled = live.iter().map(|run| {
            let message = Arc::clone(&message);
            let token = run.token();
            token.cancel_unless_retired(CancelKind::Shutdown, message)
        });
        let cancelled: Vec<_> = cancelled.collect();
        for run in &live {
            run.finish_cancelled();
        }
        // A run that another thread is ending is not live any more, but its terminal event may not be in the log yet.
        self.0.table.wait_until_settled(end);
        // From here on there is no more news for the sinks.
        let stopping: Vec<_> = {
            let sinks = self.0.sinks.lock();
            sinks.handles.iter().map(|sink| sink.stop(end)).collect()
        };
        for (_, deferred) in cancelled {
            deferred.run();
        }
        Ending(stopping)
    }

    /// Waits until the sinks have taken every event whose emit returned before this call, and the terminal event of
    /// every run whose end any thread has observed, and have flushed; at most for `timeout` in all. Returns true if
    /// they have.
    pub fn flush(&self, timeout: Duration) -> bool {
        let end = Instant::now().checked_add(timeout);
        let mut flushing = self.flushing(end).into_iter();
        flushing.all(|sink| sink.wait_until(end) == Some(true))
    }

    /// Waits until the sinks know of every end that any thread has observed.
    pub(crate) fn settle(&self, end: Option<Instant>) {
        self.0.table.wait_until_settled(end);
    }

    /// Asks every sink to flush.
    pub(crate) fn flushing(&self, end: Option<Instant>) -> Vec<Flushing> {
        self.settle(end);
        let sinks = self.sinks();
        sinks.iter().map(|sink| sink.flushing(end)).collect()
    }
}

/// The sinks that a shutdown waits for.
#[must_use]
pub(crate) struct Ending(Vec<Stopping>);

impl Ending {
    /// Waits for all sinks, at most until `end`. Returns whether they have taken everything; None if one is not done
    /// yet.
    pub(crate) fn wait_until(&self, end: Option<Instant>) -> Option<bool> {
        // All of them: a sink that is late must not keep the others from being waited for.
        let ends: Vec<_> = self.0.iter().map(|sink| sink.wait_until(end)).collect();
        let all: Option<Vec<_>> = ends.into_iter().collect();
        all.map(|all| all.into_iter().all(|has_all| has_all))
    }

    /// Waits no longer: events that the sinks have not taken count as dropped from now on.
    pub(crate) fn give_up(&self) {
        for sink in &self.0 {
            sink.give_up();
        }
    }
}
