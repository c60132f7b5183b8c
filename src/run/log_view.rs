//! A run's log, to be read and not to be written.

use crate::log::{EventLog, LogSize};
use crate::wire::{EventId, Frame};
use std::sync::Arc;

/// A run's log, to be read and not to be written.
///
/// To follow the events as they come, see [`Run::subscribe`](crate::Run::subscribe).
#[derive(Clone, Copy, Debug)]
pub struct LogView<'a>(pub(super) &'a EventLog);

impl LogView<'_> {
    /// The terminal event, once it is appended.
    pub fn terminal(self) -> Option<Arc<Frame>> {
        self.0.terminal()
    }

    /// The id of the latest event.
    pub fn last_id(self) -> Option<EventId> {
        self.0.last_id()
    }

    /// How many events readers were told to have lost, by gaps. An event that several readers lost counts for each.
    pub fn lost(self) -> u64 {
        self.0.lost()
    }

    /// How many events were appended, and how many of them are held.
    pub fn size(self) -> LogSize {
        self.0.size()
    }

    /// The bytes of the encoded events that are held. Does not block.
    pub fn held_bytes(self) -> u64 {
        self.0.held_bytes()
    }
}
