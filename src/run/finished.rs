//! The runs that have ended and can still be found and read, within bounds.

use super::run::Run;
use crate::run_id::RunId;
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many ended runs are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) time: Duration,
    pub(super) runs: usize,
    pub(super) bytes: u64,
}

/// A run that has ended.
struct Finished {
    run: Arc<Run>,
    ended_at: Instant,
    /// None until the terminal event is in the log and the sinks hold the log: the run is kept until then.
    bytes: Option<u64>,
}

/// Runs that have ended. Guarded by the table's lock.
#[derive(Default)]
pub(super) struct FinishedRuns {
    /// The runs that can be found, in the order of their ends.
    latest: BTreeMap<u64, Finished>,
    /// Runs that cannot be found, since a later run of the same id has ended. A handle of such a run can still read it.
    superseded: BTreeMap<u64, Finished>,
    /// The key in `latest`, by the run's id.
    places: FxHashMap<RunId, u64>,
    /// The bytes of the encoded events of both.
    bytes: u64,
    /// How many runs were ever added.
    added: u64,
}

impl FinishedRuns {
    /// How many runs can be found.
    pub(super) fn len(&self) -> usize {
        self.latest.len()
    }

    /// The bytes of all encoded events that are kept.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn get(&self, id: &RunId) -> Option<&Arc<Run>> {
        let finished = self.latest.get(self.places.get(id)?)?;
        Some(&finished.run)
    }

    /// All runs, also those that cannot be found.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Run>> {
        let all = self.superseded.values().chain(self.latest.values());
        all.map(|finished| &finished.run)
    }

    /// Adds a run whose terminal event is about to be appended. From now on it is found in place of an earlier run of
    /// its id.
    pub(super) fn add(&mut self, run: Arc<Run>) {
        self.added += 1;
        let place = self.added;
        if let Some(before) = self.places.insert(run.id().clone(), place)
            && let Some(finished) = self.latest.remove(&before)
        {
            self.superseded.insert(before, finished);
        }
        let finished = Finished {
            run,
            ended_at: Instant::now(),
            bytes: None,
        };
        self.latest.insert(place, finished);
    }

    /// Counts the bytes of a run that was added, now that its log has the terminal event.
    pub(super) fn weigh(&mut self, run: &Run) {
        // From the end: other threads may have added runs since, also of the same id.
        let latest = self.latest.values_mut().rev();
        let mut all = latest.chain(self.superseded.values_mut().rev());
        if let Some(finished) = all.find(|finished| finished.run.number() == run.number()) {
            let bytes = run.log().held_bytes();
            self.bytes += bytes;
            finished.bytes = Some(bytes);
        }
    }

    /// When the oldest run has been kept for the time that is allowed.
    pub(super) fn expires_at(&self, bounds: Bounds) -> Option<Instant> {
        let oldest = [&self.latest, &self.superseded]
            .into_iter()
            .filter_map(|runs| runs.first_key_value())
            .map(|(_, finished)| finished.ended_at);
        oldest.min()?.checked_add(bounds.time)
    }

    /// Takes out the runs beyond the bounds: first runs that cannot be found, then others, of both the oldest first.
    /// `others` are bytes that count as well.
    pub(super) fn expire(&mut self, bounds: Bounds, others: u64, expired: &mut Vec<Arc<Run>>) {
        for runs in [&mut self.superseded, &mut self.latest] {
            while let Some((_, oldest)) = runs.first_key_value() {
                let is_within = runs.len() <= bounds.runs
                    && self.bytes.saturating_add(others) <= bounds.bytes
                    && oldest.ended_at.elapsed() < bounds.time;
                if is_within || oldest.bytes.is_none() {
                    break;
                }
                if let Some((place, finished)) = runs.pop_first() {
                    self.bytes -= finished.bytes.unwrap_or_default();
                    let id = finished.run.id();
                    if self.places.get(id) == Some(&place) {
                        self.places.remove(id);
                    }
                    expired.push(finished.run);
                }
            }
        }
    }
}
