//! What happens to a reader that is slower than its run.

use std::time::Duration;

/// What happens to a reader that is slower than its run, when the log evicts events that the reader has not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Overflow {
    /// The subscription ends with [`Lagged`](crate::Lagged). A reader that resumes by id loses nothing that the log
    /// still holds.
    #[default]
    Disconnect,
    /// A gap event tells how many events are lost; the reader goes on with the oldest that is held.
    Gap,
    /// Consecutive text of one agent, as far as it is read at once, comes in one event; then as `Gap`.
    Coalesce,
    /// An emitting thread waits for the reader, at most this long for one event; then as `Gap`.
    Block(Duration),
}
