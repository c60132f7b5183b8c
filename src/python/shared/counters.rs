//! What was delivered, dropped and cancelled, as counts that only grow.

use crate::sync::{AtomicU64, Ordering};
use crossbeam_utils::CachePadded;

/// What every handler of this process counts.
pub(crate) static COUNTERS: Counters = Counters::new();

/// Counters that any thread adds to and any thread reads.
///
/// Each has a cache line of its own, so that threads that count different things do not slow each other.
#[derive(Debug)]
pub(crate) struct Counters {
    emitted: CachePadded<AtomicU64>,
    no_callback: CachePadded<AtomicU64>,
    route: CachePadded<AtomicU64>,
    cancelled: CachePadded<AtomicU64>,
}

/// The values of all counters. Counters that other threads add to may be read at slightly different moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stats {
    /// Events handed to a callback, even if the callback then failed.
    pub(crate) emitted: u64,
    /// Events dropped because their run had no callback.
    pub(crate) no_callback: u64,
    /// Events dropped because the handler and the calling context named two different runs.
    pub(crate) route: u64,
    /// How often the code of a cancelled run was told to stop.
    pub(crate) cancelled: u64,
}

// Relaxed throughout: no other memory depends on a counter; only its own sum must be right.
impl Counters {
    const fn new() -> Self {
        Self {
            emitted: CachePadded::new(AtomicU64::new(0)),
            no_callback: CachePadded::new(AtomicU64::new(0)),
            route: CachePadded::new(AtomicU64::new(0)),
            cancelled: CachePadded::new(AtomicU64::new(0)),
        }
    }

    /// An event is about to be handed to its callback.
    pub(crate) fn count_emitted(&self) {
        self.emitted.fetch_add(1, Ordering::Relaxed);
    }

    /// An event found no callback.
    pub(crate) fn count_no_callback(&self) {
        self.no_callback.fetch_add(1, Ordering::Relaxed);
    }

    /// An event is dropped because the handler and the calling context name two different runs.
    pub(crate) fn count_route(&self) {
        self.route.fetch_add(1, Ordering::Relaxed);
    }

    /// The code of a cancelled run is about to be told to stop.
    pub(crate) fn count_cancelled(&self) {
        self.cancelled.fetch_add(1, Ordering::Relaxed);
    }

    /// Reads all counters. Never blocks.
    pub(crate) fn stats(&self) -> Stats {
        Stats {
            emitted: self.emitted.load(Ordering::Relaxed),
            no_callback: self.no_callback.load(Ordering::Relaxed),
            route: self.route.load(Ordering::Relaxed),
            cancelled: self.cancelled.load(Ordering::Relaxed),
        }
    }
}
