//! Why an event is not appended, or not now.

use std::fmt;
use std::time::Instant;

/// The log has its terminal event: nothing is appended after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended;

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the run has ended: the event was not appended")
    }
}

impl std::error::Error for Ended {}

/// Why an event was not appended by a thread that must not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TryAppendError {
    /// Another thread has the log's lock, or a reader with [`Overflow::Block`](crate::Overflow::Block) has not read
    /// what would be evicted.
    WouldBlock,
    /// The log has its terminal event.
    Ended,
}

impl fmt::Display for TryAppendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WouldBlock => f.write_str("the event was not appended: that would block"),
            Self::Ended => Ended.fmt(f),
        }
    }
}

impl std::error::Error for TryAppendError {}

impl From<Ended> for TryAppendError {
    fn from(Ended: Ended) -> Self {
        Self::Ended
    }
}

/// Another thread has the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WouldBlock;

impl fmt::Display for WouldBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another thread has the lock")
    }
}

impl std::error::Error for WouldBlock {}

/// How long an append waits for readers that are behind.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Wait {
    /// For the lock, and for readers with [`Overflow::Block`](crate::Overflow::Block) as long as these allow.
    Patiently,
    /// Not at all.
    Never,
    /// For the lock, and for readers until `end`: for a thread that waits in slices.
    Until {
        /// When the first slice began. The readers' time counts from here.
        since: Instant,
        /// When this slice ends.
        end: Instant,
    },
}
