//! What emitting threads tell a sink's follower.

use super::flush::AskedToFlush;
use super::queue::Pusher;
use super::stats::Counts;
use crate::sync::{AtomicBool, AtomicU64, Ordering, yield_now};
use std::time::Instant;

/// The number of runs with news that the queue holds at most, 16 bytes each. Beyond it the follower looks at all runs.
const LONGEST_QUEUE: usize = 1 << 20;

/// What a follower is told.
pub(super) enum Note {
    /// The run of this number has events that the sink has not taken.
    News(u64),
    /// Flush, once all that was announced before is written.
    Flush(AskedToFlush),
    /// End, once all that was announced before is written.
    Stop,
}

/// The sending side of a sink's queue, with the sink's counters.
pub(super) struct Channel {
    queue: Pusher<Note>,
    pub(super) counts: Counts,
    /// How many threads are about to put a run into the queue: they have marked the run, and may not have pushed it
    /// yet. A thread that finds a run marked relies on the thread that marked it. So before a flush or a stop is
    /// pushed, this must have been zero: its increment comes before the mark (Release, read by Acquire), its decrement
    /// (Release) after the push, and [`wait_for_announcements`](Self::wait_for_announcements) reads it (Acquire).
    announcing: AtomicU64,
    /// Set once the sink was asked to end: no more news is announced. Relaxed, no partner: news of that moment may be
    /// announced or not.
    is_closing: AtomicBool,
    /// Set when the queue was too long for a run's number: then the follower looks at all runs. Relaxed, no partner:
    /// the follower comes to the end of the queue later than this is set.
    is_flooded: AtomicBool,
}

impl Channel {
    pub(super) fn new(queue: Pusher<Note>) -> Self {
        Self {
            queue,
            counts: Counts::default(),
            announcing: AtomicU64::new(0),
            is_closing: AtomicBool::new(false),
            is_flooded: AtomicBool::new(false),
        }
    }

    /// Tells the follower to flush, or to end.
    pub(super) fn push(&self, note: Note) {
        self.queue.push(note);
    }

    /// From now on the follower is told of no news.
    pub(super) fn close(&self) {
        self.is_closing.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Relaxed)
    }

    /// Whether runs may have news that is not in the queue. Resets the mark.
    pub(super) fn take_flooded(&self) -> bool {
        self.is_flooded.swap(false, Ordering::Relaxed)
    }

    /// Tells the follower that the run of this number has news.
    pub(super) fn push_news(&self, number: u64) {
        if self.is_closing() {
            return;
        }
        if self.queue.len() < LONGEST_QUEUE {
            self.queue.push(Note::News(number));
        } else {
            self.is_flooded.store(true, Ordering::Relaxed);
        }
    }

    /// Runs `announce`, which marks a run and pushes it.
    pub(super) fn announcing(&self, announce: impl FnOnce(&Self)) {
        self.announcing.fetch_add(1, Ordering::Relaxed);
        announce(self);
        self.announcing.fetch_sub(1, Ordering::Release);
    }

    /// Waits until every run that was marked before this call is in the queue, at most until `end`: as long as another
    /// thread takes from its mark to its push.
    pub(super) fn wait_for_announcements(&self, end: Option<Instant>) {
        while self.announcing.load(Ordering::Acquire) > 0
            && end.is_none_or(|end| Instant::now() < end)
        {
            yield_now();
        }
    }
}
