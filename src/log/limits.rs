//! How many events, and how many bytes of them.

/// How much a log holds, or a read returns at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The number of events. A log holds its first event, which is the run's `lifecycle.started`, and its terminal
    /// event beyond this number.
    pub events: usize,
    /// The number of bytes of encoded events. A log holds its newest event whatever its size, and a read returns at
    /// least one event.
    pub bytes: usize,
}

impl Default for Limits {
    /// 10 000 events and 16 MiB.
    fn default() -> Self {
        Self {
            events: 10_000,
            bytes: 16 << 20,
        }
    }
}

impl From<usize> for Limits {
    /// This number of events, of any size.
    fn from(events: usize) -> Self {
        Self {
            events,
            bytes: usize::MAX,
        }
    }
}

impl Limits {
    pub(super) fn at_least_one(self) -> Self {
        Self {
            events: self.events.max(1),
            ..self
        }
    }
}
