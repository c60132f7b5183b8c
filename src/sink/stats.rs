//! What a sink counts.

use crate::sync::AtomicU64;

/// The counters of a sink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SinkStats {
    /// Events that the sink has taken.
    pub written: u64,
    /// Events that the sink will never get: a log evicted them, or the backlog released them, before the sink took
    /// them.
    pub dropped: u64,
    /// Calls of the sink that failed or panicked. Events that were not taken are offered again.
    pub errors: u64,
    /// Ended runs that the sink has still to take.
    pub waiting: usize,
    /// The bytes of encoded events that are held for these runs.
    pub waiting_bytes: u64,
}

/// Relaxed throughout: counts order nothing and have no partner.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) written: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) errors: AtomicU64,
}
