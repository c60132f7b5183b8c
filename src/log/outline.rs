//! What is kept of an ended run's log when its other events are dropped.

use crate::wire::{Frame, FrameEncoder};
use std::sync::Arc;

/// A run's first event, if that is a lifecycle event, and its terminal event.
#[derive(Clone)]
pub(crate) struct Outline {
    pub(super) encoder: FrameEncoder,
    pub(super) first: Option<Arc<Frame>>,
    pub(super) last: Arc<Frame>,
}

impl Outline {
    pub(crate) fn first_sequence(&self) -> Option<u64> {
        self.first.as_ref().map(|frame| frame.sequence())
    }

    pub(crate) fn last_sequence(&self) -> u64 {
        self.last.sequence()
    }

    pub(crate) fn bytes(&self) -> u64 {
        let first = self.first.as_ref().map_or(0, |frame| frame.len());
        (first + self.last.len()) as u64
    }

    /// These events for a reader that has read up to `sequence`, with a gap event for what is missing between them.
    pub(crate) fn after(mut self, sequence: u64) -> Vec<Arc<Frame>> {
        let first = self.first.into_iter();
        let mut frames: Vec<_> = first.filter(|it| it.sequence() > sequence).collect();
        let read = frames.last().map_or(sequence, |frame| frame.sequence());
        let end = self.last.id();
        let lost = end.sequence.saturating_sub(read + 1);
        if lost > 0 {
            let gap = self.encoder.gap(end.ms, &read.to_string(), Some(end), lost);
            frames.push(Arc::new(gap));
        }
        if end.sequence > read {
            frames.push(self.last);
        }
        frames
    }
}
