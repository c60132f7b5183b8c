//! The runs that have ended and can still be found and read, within bounds.

use crate::run::Run;
use crate::run_id::RunId;
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How much is kept of what has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) time: Duration,
    pub(crate) runs: usize,
    pub(crate) bytes: u64,
}

/// A run that has ended.
struct Finished {
    run: Arc<Run>,
    ended_at: Instant,
    bytes: u64,
}

/// The runs that have ended and can still be found. Guarded by the table's lock.
#[derive(Default)]
pub(crate) struct FinishedRuns {
    /// By the order of their ends.
    runs: BTreeMap<u64, Finished>,
    /// Where each is; the latest of its id.
    places: FxHashMap<RunId, u64>,
    bytes: u64,
    /// How many runs were ever added.
    added: u64,
}

impl FinishedRuns {
    pub(crate) fn len(&self) -> usize {
        self.runs.len()
    }

    /// The bytes of all encoded events that are kept.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn get(&self, id: &RunId) -> Option<&Arc<Run>> {
        let finished = self.runs.get(self.places.get(id)?)?;
        Some(&finished.run)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Run>> {
        self.runs.values().map(|finished| &finished.run)
    }

    /// Adds a run whose terminal event is about to be appended; returns the run of the same id that it replaces.
    pub(crate) fn add(&mut self, run: Arc<Run>) -> Option<Arc<Run>> {
        self.added += 1;
        let place = self.added;
        let replaced = self.places.insert(run.id().clone(), place);
        let finished = Finished {
            run,
            ended_at: Instant::now(),
            bytes: 0,
        };
        self.runs.insert(place, finished);
        self.take(replaced?)
    }

    /// Counts the bytes of a run that was added, now that its log has the terminal event.
    pub(crate) fn weigh(&mut self, run: &Run) {
        let place = self.places.get(run.id());
        if let Some(finished) = place.and_then(|place| self.runs.get_mut(place))
            && finished.run.number() == run.number()
        {
            let bytes = run.log().held_bytes();
            self.bytes = self.bytes - finished.bytes + bytes;
            finished.bytes = bytes;
        }
    }

    /// When the oldest run has been kept for the time that is allowed.
    pub(crate) fn expires_at(&self, bounds: Bounds) -> Option<Instant> {
        let (_, oldest) = self.runs.first_key_value()?;
        oldest.ended_at.checked_add(bounds.time)
    }

    /// Takes out what is beyond the bounds, the oldest first. `others` are bytes that count too.
    pub(crate) fn expire(&mut self, bounds: Bounds, others: u64, expired: &mut Vec<Arc<Run>>) {
        while let Some((&place, oldest)) = self.runs.first_key_value() {
            let is_within = self.runs.len() <= bounds.runs
                && self.bytes.saturating_add(others) <= bounds.bytes
                && oldest.ended_at.elapsed() < bounds.time;
            if is_within {
                break;
            }
            self.places.remove(oldest.run.id());
            expired.extend(self.take(place));
        }
    }

    fn take(&mut self, place: u64) -> Option<Arc<Run>> {
        let finished = self.runs.remove(&place)?;
        self.bytes -= finished.bytes;
        Some(finished.run)
    }
}
