//! A flush of a sink that a thread waits for.

use super::settled::wait_until_set;
use crate::sync::{Condvar, Mutex};
use std::sync::Arc;
use std::time::Instant;

/// A flush that somebody waits for.
#[derive(Clone, Default)]
pub(crate) struct Flushing(Arc<(Mutex<Option<bool>>, Condvar)>);

impl Flushing {
    /// The sink has flushed, or never will.
    pub(super) fn settle(&self, is_flushed: bool) {
        let (settled, changed) = &*self.0;
        settled.lock().get_or_insert(is_flushed);
        changed.notify_all();
    }

    /// Waits until the sink has flushed, or it is certain that it will not, at most until `end`. Returns which of the
    /// two; None if neither.
    pub(crate) fn wait_until(&self, end: Option<Instant>) -> Option<bool> {
        let (settled, changed) = &*self.0;
        wait_until_set(settled, changed, end)
    }
}

/// A flush in the sink's queue. If it is dropped before the sink has flushed, the sink never will.
pub(super) struct AskedToFlush(pub(super) Flushing);

impl AskedToFlush {
    pub(super) fn settle(self, is_flushed: bool) {
        self.0.settle(is_flushed);
    }
}

impl Drop for AskedToFlush {
    fn drop(&mut self) {
        self.0.settle(false);
    }
}
