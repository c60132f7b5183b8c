//! A reader's place in a log.

use super::limits::Limits;
use super::window::Window;
use crate::wire::{EventId, Frame, FrameEncoder};
use std::sync::Arc;

/// Where a subscription begins.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Start {
    /// With the next event.
    Live,
    /// With the oldest event that the log holds.
    Beginning,
    /// After the event of this sequence number.
    AfterSequence(u64),
    /// After the event of this id. If the log does not hold it, a gap event says so, and all that is held follows.
    AfterId(EventId),
}

/// What a reader reads next, and what it has still to be told.
#[derive(Clone, Debug)]
pub(crate) struct Cursor {
    /// The sequence number to read next.
    next: u64,
    /// A start that the log does not hold, and of which the reader has not been told.
    missed: Option<Missed>,
}

/// A start that the log does not hold.
#[derive(Clone, Debug)]
struct Missed {
    /// As the reader gave it.
    start: String,
    /// Whether the log cannot tell how the start relates to what it holds: then a gap is told even if nothing is lost.
    is_unknown: bool,
}

/// What a cursor has read.
pub(crate) struct Taken {
    /// The frames, with a gap event wherever the log does not hold what would come next.
    pub(crate) frames: Vec<Arc<Frame>>,
    /// How many events the gaps tell to be lost.
    pub(crate) lost: u64,
}

impl Cursor {
    /// Before the first event.
    pub(crate) const fn beginning() -> Self {
        Self::after(0)
    }

    /// After the event of this sequence number.
    pub(crate) const fn after(sequence: u64) -> Self {
        Self {
            next: sequence + 1,
            missed: None,
        }
    }

    /// The cursor of a subscription that begins at `start`. `first_ms` is the time of the log's first event.
    pub(super) fn new(window: &Window, first_ms: Option<u64>, start: &Start) -> Self {
        let missed = |next: u64, start: String, is_unknown: bool| {
            let is_missed = is_unknown || next < window.oldest();
            Self {
                next,
                missed: is_missed.then_some(Missed { start, is_unknown }),
            }
        };
        match start {
            Start::Live => Self::after(window.next() - 1),
            Start::Beginning => missed(1, "start".to_owned(), false),
            Start::AfterSequence(sequence) if *sequence < window.next() => {
                missed(sequence + 1, sequence.to_string(), false)
            }
            Start::AfterSequence(sequence) => missed(1, sequence.to_string(), true),
            Start::AfterId(id) if window.find(*id).is_some() => {
                missed(id.sequence + 1, id.to_string(), false)
            }
            // Evicted since, as far as can be told: not older than the run, and before what is held.
            Start::AfterId(id)
                if id.sequence < window.oldest() && first_ms.is_some_and(|ms| id.ms >= ms) =>
            {
                missed(id.sequence + 1, id.to_string(), false)
            }
            // Of another generation, or never given out.
            Start::AfterId(id) => missed(1, id.to_string(), true),
        }
    }

    /// The sequence number to read next.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Whether the reader is still to be told that the log does not hold its start.
    pub(super) fn has_missed_start(&self) -> bool {
        self.missed.is_some()
    }

    /// Whether there is nothing to read.
    pub(super) fn is_at_end(&self, window: &Window) -> bool {
        self.missed.is_none() && self.next >= window.next()
    }

    /// How many evicted events a reader loses that goes on here. Events before its start count as none.
    pub(super) fn evicted(&self, window: &Window) -> u64 {
        let oldest = window.oldest();
        if self.next >= oldest {
            return 0;
        }
        let kept = window.range(self.next);
        let kept = kept.take_while(|frame| frame.sequence() < oldest).count() as u64;
        oldest.saturating_sub(self.next + kept)
    }

    /// Reads what is there, at most `max`, but one event at least, if there is one. `encoder` and `now` (milliseconds)
    /// are for the gap events.
    pub(super) fn take(
        &mut self,
        window: &Window,
        encoder: &mut FrameEncoder,
        now: u64,
        max: Limits,
    ) -> Taken {
        let mut taken = Taken {
            frames: Vec::new(),
            lost: 0,
        };
        let mut asked = self.next;
        let mut missed = self.missed.take();
        let mut gap = |taken: &mut Taken, asked: u64, oldest: Option<EventId>, lost: u64| {
            let missed = missed.take();
            if lost > 0 || missed.as_ref().is_some_and(|missed| missed.is_unknown) {
                let asked = missed.map_or_else(|| (asked - 1).to_string(), |missed| missed.start);
                let gap = encoder.gap(now, &asked, oldest, lost);
                taken.frames.push(Arc::new(gap));
                taken.lost += lost;
            }
        };
        let (mut events, mut bytes) = (0, 0);
        for frame in window.range(self.next) {
            // The frame that is kept aside is beyond all limits. A gap comes behind it, right before what is held.
            if frame.sequence() >= window.oldest() {
                bytes += frame.len();
                if events == max.events || bytes > max.bytes && events > 0 {
                    break;
                }
                events += 1;
                gap(
                    &mut taken,
                    asked,
                    Some(frame.id()),
                    frame.sequence() - self.next,
                );
                asked = frame.sequence() + 1;
            }
            self.next = frame.sequence() + 1;
            taken.frames.push(Arc::clone(frame));
        }
        if window.last().is_none() {
            gap(
                &mut taken,
                asked,
                None,
                window.next().saturating_sub(self.next),
            );
            self.next = self.next.max(window.next());
        }
        taken
    }
}
