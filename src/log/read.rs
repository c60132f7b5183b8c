//! What a read gives.

use crate::wire::Frame;
use std::fmt;
use std::sync::Arc;

/// What a read gives.
#[derive(Clone, Debug)]
pub enum Read {
    /// Events in their order, at least one.
    Events(Vec<Arc<Frame>>),
    /// No event within the time.
    TimedOut,
    /// No event, now or later: the terminal event was read, or the subscription is closed.
    Ended,
}

/// The reader was too slow, and its policy is [`Overflow::Disconnect`](crate::Overflow::Disconnect).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lagged {
    /// The sequence number that the reader would have read next.
    pub next: u64,
    /// The oldest sequence number that the log holds.
    pub oldest: u64,
}

impl fmt::Display for Lagged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the reader is too slow: it was to read event {}, the log begins with event {}",
            self.next, self.oldest
        )
    }
}

impl std::error::Error for Lagged {}

/// Why a thread that must not wait has read nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TryReadError {
    /// Another thread has the log's lock.
    WouldBlock,
    /// The reader was too slow.
    Lagged(Lagged),
}

impl fmt::Display for TryReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WouldBlock => f.write_str("nothing was read: that would block"),
            Self::Lagged(lagged) => lagged.fmt(f),
        }
    }
}

impl std::error::Error for TryReadError {}

impl From<Lagged> for TryReadError {
    fn from(lagged: Lagged) -> Self {
        Self::Lagged(lagged)
    }
}
