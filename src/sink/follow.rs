//! One run as one sink follows it: whether it has news, and how far the sink has taken it.

use super::Followed;
use super::channel::Channel;
use crate::log::{Cursor, EventLog, Outline};
use crate::sync::{AtomicBool, Mutex, Ordering};
use std::sync::{Arc, Weak};

/// One run as one sink follows it. Emitting threads announce news; the follower's thread reads them.
pub(super) struct Follow {
    run: Followed,
    /// Greater than that of every run that was opened before it in the same table.
    number: u64,
    /// Weak: the run holds the log while it lives, the sink's backlog from its end on.
    log: Weak<EventLog>,
    /// Whether the run is in the follower's queue, or about to be. No news is lost: an emitting thread appends under
    /// the log's lock before it looks at this flag, and the follower clears the flag before it takes that lock to read.
    /// So an emitting thread that finds the flag set has appended before that read. Acquire and Release: see
    /// [`Channel::announcing`].
    has_news: AtomicBool,
    /// Protects how far the sink has taken the run. Under it: work on these fields.
    progress: Mutex<Progress>,
    channel: Arc<Channel>,
}

struct Progress {
    /// Where the sink reads next.
    cursor: Cursor,
    /// The sequence number of the last event that the sink has taken, or that the log evicted before the sink took it.
    taken: u64,
    is_opened: bool,
    is_ended: bool,
    /// How often in a row the sink has refused this run, and whether the run waits for its next try.
    failures: u32,
    is_refused: bool,
    /// Set once the backlog has released the log.
    given_up: Option<GivenUp>,
}

/// The run's log as it was when the backlog released it.
struct GivenUp {
    first: Option<u64>,
    last: u64,
    /// Whether the lifecycle events are still held.
    keeps_outline: bool,
    /// How many events count as dropped.
    dropped: u64,
}

impl GivenUp {
    fn dropped_after(&self, taken: u64) -> u64 {
        let is_left = |sequence: u64| u64::from(sequence > taken);
        let kept = if self.keeps_outline {
            self.first.map_or(0, is_left) + is_left(self.last)
        } else {
            0
        };
        self.last.saturating_sub(taken).saturating_sub(kept)
    }
}

/// What a sink has taken of a run.
pub(super) struct Written {
    /// Where the sink reads next.
    pub(super) cursor: Cursor,
    /// The sequence number of the last event that was taken.
    pub(super) taken: u64,
    /// How many events were taken.
    pub(super) events: u64,
    /// How many events the log had evicted before these.
    pub(super) lost: u64,
    /// Whether they were the lifecycle events of a released log.
    pub(super) is_outline: bool,
}

/// What the follower does with a run that has news.
pub(super) enum Turn {
    /// Read the log from this cursor up to the event that is the last one now.
    Read(Arc<EventLog>, Cursor),
    /// The log is released, and the sink has taken the run up to this event: write the lifecycle events that are left.
    Outline(u64),
    /// Nothing: the run waits for its next try.
    Waits,
    /// Nothing: the sink has taken everything.
    Over,
}

impl Follow {
    /// A run that the sink has taken nothing of.
    pub(super) fn new(
        run: Followed,
        number: u64,
        log: &Weak<EventLog>,
        channel: &Arc<Channel>,
    ) -> Arc<Self> {
        Arc::new(Self {
            run,
            number,
            log: log.clone(),
            has_news: AtomicBool::new(false),
            progress: Mutex::new(Progress {
                cursor: Cursor::beginning(),
                taken: 0,
                is_opened: false,
                is_ended: false,
                failures: 0,
                is_refused: false,
                given_up: None,
            }),
            channel: Arc::clone(channel),
        })
    }

    /// The run's log, while the run or a backlog holds it.
    pub(super) fn log(&self) -> Option<Arc<EventLog>> {
        self.log.upgrade()
    }

    pub(super) fn run(&self) -> &Followed {
        &self.run
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Puts the run into the follower's queue, unless it is there.
    pub(super) fn announce(&self) {
        if self.has_news.load(Ordering::Acquire) {
            return;
        }
        self.channel.announcing(|channel| {
            if !self.has_news.swap(true, Ordering::AcqRel) {
                channel.push_news(self.number);
            }
        });
    }

    /// Whether the sink has taken the event of this sequence number, or has lost it for good.
    pub(super) fn has_taken(&self, sequence: u64) -> bool {
        self.progress.lock().taken >= sequence
    }

    /// The follower's thread has taken the run out of its queue. Returns what the thread is to do.
    pub(super) fn turn(&self) -> Turn {
        self.has_news.store(false, Ordering::Release);
        let progress = self.progress.lock();
        if progress.is_ended {
            return Turn::Over;
        }
        if progress.is_refused {
            // As if the run were in the queue: its next try reads all that comes until then.
            self.has_news.store(true, Ordering::Release);
            return Turn::Waits;
        }
        let (is_given_up, taken) = (progress.given_up.is_some(), progress.taken);
        let cursor = progress.cursor.clone();
        drop(progress);
        if !is_given_up && let Some(log) = self.log.upgrade() {
            return Turn::Read(log, cursor);
        }
        Turn::Outline(taken)
    }

    /// Whether this is the first call.
    pub(super) fn opens(&self) -> bool {
        !std::mem::replace(&mut self.progress.lock().is_opened, true)
    }

    /// Notes that the sink has taken events: see [`Written`].
    pub(super) fn has_written(&self, done: Written) {
        let counts = &self.channel.counts;
        counts.written.fetch_add(done.events, Ordering::Relaxed);
        let Written {
            cursor,
            taken,
            lost,
            is_outline,
            ..
        } = done;
        let mut progress = self.progress.lock();
        progress.cursor = cursor;
        progress.taken = taken.max(progress.taken);
        progress.failures = 0;
        let taken = progress.taken;
        match &mut progress.given_up {
            Some(given_up) => {
                let dropped = given_up.dropped_after(taken);
                if !is_outline {
                    // The log was released while the sink was writing: these events counted as dropped, and were not.
                    let written = given_up.dropped.saturating_sub(dropped + lost);
                    counts.dropped.fetch_sub(written, Ordering::Relaxed);
                }
                given_up.dropped = dropped;
            }
            None if is_outline => {}
            None => drop(counts.dropped.fetch_add(lost, Ordering::Relaxed)),
        }
    }

    /// Notes that the run waits for its next try. Returns how often in a row the sink had refused the run before.
    pub(super) fn has_failed(&self) -> u32 {
        let mut progress = self.progress.lock();
        let failures = progress.failures;
        progress.failures = failures.saturating_add(1);
        progress.is_refused = true;
        self.has_news.store(true, Ordering::Release);
        failures
    }

    /// The run is offered again now.
    pub(super) fn may_retry(&self) {
        self.progress.lock().is_refused = false;
    }

    /// Notes that the sink has taken the terminal event. Returns whether this is the first call.
    pub(super) fn ends(&self) -> bool {
        !std::mem::replace(&mut self.progress.lock().is_ended, true)
    }

    /// The log is released: the events that the sink has not taken count as dropped, but not the kept lifecycle events.
    pub(super) fn give_up(&self, outline: &Outline, keeps_outline: bool) {
        let mut progress = self.progress.lock();
        let mut given_up = GivenUp {
            first: outline.first_sequence(),
            last: outline.last_sequence(),
            keeps_outline,
            dropped: 0,
        };
        given_up.dropped = given_up.dropped_after(progress.taken);
        let before = progress.given_up.as_ref().map_or(0, |it| it.dropped);
        self.channel
            .counts
            .dropped
            .fetch_add(given_up.dropped - before, Ordering::Relaxed);
        progress.given_up = Some(given_up);
    }

    /// The sink takes no more, though the run may live: the events that it has not taken count as dropped.
    pub(super) fn give_up_live(&self) {
        let Some(log) = self.log.upgrade() else {
            return;
        };
        let last = log.last_sequence();
        let mut progress = self.progress.lock();
        if progress.given_up.is_none() && !progress.is_ended {
            let dropped = last.saturating_sub(progress.taken);
            let counts = &self.channel.counts;
            counts.dropped.fetch_add(dropped, Ordering::Relaxed);
            progress.given_up = Some(GivenUp {
                first: None,
                last,
                keeps_outline: false,
                dropped,
            });
        }
    }
}
