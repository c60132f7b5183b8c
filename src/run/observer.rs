//! Who hears what happens to runs.

use super::run::Run;
use crate::log::Lagged;
use crate::run_id::RunId;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Hears what happens to the runs of a table. See [`Runs::observe`](crate::Runs::observe).
///
/// Each method is called on the thread that causes what it tells of, with no lock held: it may use the library, and
/// should not block. A panic ends in the call.
pub trait Observer: Send + Sync {
    /// A run was opened. It has not started yet, unless another thread that found the run has started it. If such a
    /// thread ends the run meanwhile, [`ended`](Self::ended) may be called first: [`Run::state`] tells.
    fn opened(&self, _run: &Arc<Run>) {}

    /// A run has ended: its terminal event is in its log, and its readers are woken.
    fn ended(&self, _run: &Run) {}

    /// An event or an annotation came after the end of its run, and was refused.
    fn late(&self, _run: &Run) {}

    /// A reader of this run was disconnected because it lagged.
    fn lagged(&self, _run: &RunId, _lagged: Lagged) {}
}

/// The observers of a table.
#[derive(Clone, Default)]
pub(super) struct Observers(Arc<[Arc<dyn Observer>]>);

impl Observers {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn add(&mut self, observer: Arc<dyn Observer>) {
        self.0 = self.0.iter().cloned().chain([observer]).collect();
    }

    /// Tells each of them, with no lock held.
    pub(super) fn tell(&self, mut what: impl FnMut(&dyn Observer)) {
        for observer in &*self.0 {
            // The panic hook has reported it; the others are told all the same.
            let _ = catch_unwind(AssertUnwindSafe(|| what(&**observer)));
        }
    }
}
