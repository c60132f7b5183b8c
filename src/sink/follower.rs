//! The thread of one sink: it reads the logs of the runs that have news, hands the events to the sink, and tries again
//! what failed.

use super::channel::Note;
use super::flush::AskedToFlush;
use super::follow::{Follow, Turn, Written};
use super::queue::Taker;
use super::shared::Shared;
use super::{Batch, Refused, Sink};
use crate::log::{Cursor, EventLog, Limits};
use crate::wire::{EventKind, Frame};
use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// At most this much is handed to a sink at once.
const BATCH: Limits = Limits {
    events: 256,
    bytes: 256 << 10,
};

/// How long written events may wait for a flush.
const IDLE: Duration = Duration::from_secs(1);

/// The pause after the first failure, and the longest one.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The state of a sink's thread.
pub(super) struct Follower<S> {
    sink: S,
    shared: Arc<Shared>,
    notes: Taker<Note>,
    /// The runs that the sink has refused, by when they are offered again and by their numbers.
    refused: BTreeMap<(Instant, u64), Arc<Follow>>,
    flushes: Vec<AskedToFlush>,
    /// Since when written events wait for a flush, and whether a lifecycle event is among them.
    unflushed: Option<Instant>,
    has_lifecycle: bool,
    /// Set once the sink is to end: everything that was announced before is in the queue.
    is_stopping: bool,
}

impl<S: Sink> Follower<S> {
    pub(super) fn new(sink: S, shared: &Arc<Shared>, notes: Taker<Note>) -> Self {
        Self {
            sink,
            shared: Arc::clone(shared),
            notes,
            refused: BTreeMap::new(),
            flushes: Vec::new(),
            unflushed: None,
            has_lifecycle: false,
            is_stopping: false,
        }
    }

    /// Writes until the sink is stopped. Returns whether the sink has taken everything that was announced, and flushed.
    pub(super) fn run(mut self) -> bool {
        loop {
            let mut due = Instant::now();
            match self.notes.take_until(self.next_due()) {
                Some(Note::News(number)) => {
                    if let Some(follow) = self.shared.find(number) {
                        self.turn(&follow);
                    }
                }
                // A thread waits: the runs that the sink has refused are offered again at once.
                Some(Note::Flush(asked)) => {
                    self.flushes.push(asked);
                    due += LONGEST_PAUSE;
                }
                Some(Note::Stop) => {
                    self.is_stopping = true;
                    due += LONGEST_PAUSE;
                }
                None => {}
            }
            let is_idle = self.notes.is_empty();
            if is_idle || !self.flushes.is_empty() || self.is_stopping {
                for follow in self.shared.flooded() {
                    self.turn(&follow);
                }
            }
            self.offer_again(due);
            self.flush_if_due(is_idle);
            if self.is_stopping && is_idle && self.refused.is_empty() {
                return self.end(true);
            }
            if self.shared.is_out_of_time() {
                return self.end(false);
            }
        }
    }

    /// When the thread has something to do without a note.
    fn next_due(&self) -> Option<Instant> {
        let refused = self.refused.first_key_value();
        let refused = refused.map(|((at, _), _)| *at);
        let flush = self.unflushed.and_then(|since| since.checked_add(IDLE));
        let end = self.shared.ends_at();
        [refused, flush, end].into_iter().flatten().min()
    }

    /// Writes what the run's log has now. Later events are announced anew.
    fn turn(&mut self, follow: &Arc<Follow>) {
        match follow.turn() {
            Turn::Read(log, cursor) => self.read(follow, &log, cursor),
            Turn::Outline(taken) => {
                let Some(outline) = self.shared.outline(follow.number()) else {
                    return;
                };
                let last = outline.last_sequence();
                let frames = outline.after(taken);
                let done = Written {
                    cursor: Cursor::after(last),
                    taken: last,
                    events: 0,
                    lost: 0,
                    is_outline: true,
                };
                if self.write(follow, &frames, done) {
                    self.ended(follow);
                }
            }
            Turn::Waits | Turn::Over => {}
        }
    }

    fn read(&mut self, follow: &Arc<Follow>, log: &EventLog, mut cursor: Cursor) {
        let target = log.last_sequence();
        loop {
            let mut ahead = cursor.clone();
            let (taken, is_end) = log.take(&mut ahead, BATCH);
            if let Some(last) = taken.frames.last() {
                let last = last.sequence();
                let done = Written {
                    cursor: ahead.clone(),
                    taken: last,
                    events: 0,
                    lost: taken.lost,
                    is_outline: false,
                };
                if !self.write(follow, &taken.frames, done) {
                    return;
                }
            }
            if is_end {
                self.ended(follow);
                return;
            }
            if ahead.next() > target {
                return;
            }
            if self.shared.is_out_of_time() {
                self.refuse(follow, Instant::now());
                return;
            }
            cursor = ahead;
        }
    }

    /// Hands events to the sink. Returns whether the sink has taken all of them; if not, the others are offered again
    /// later.
    fn write(&mut self, follow: &Arc<Follow>, frames: &[Arc<Frame>], mut all: Written) -> bool {
        let batch = Batch {
            run: follow.run(),
            frames,
        };
        let sink = &mut self.sink;
        let opens = follow.opens();
        let written = caught(|| {
            if opens {
                sink.opened(batch.run);
            }
            sink.write(&batch)
        });
        // An error after the last event is only counted.
        let taken = match &written {
            Err(refused) if refused.taken < all.taken => refused.taken,
            _ => all.taken,
        };
        let is_whole = taken == all.taken;
        let frames = &frames[..frames.partition_point(|frame| frame.sequence() <= taken)];
        if is_whole || !frames.is_empty() {
            let gaps = frames
                .iter()
                .filter(|frame| *frame.kind() == EventKind::STREAM_GAP);
            let gaps = gaps.count();
            self.unflushed.get_or_insert_with(Instant::now);
            self.has_lifecycle |= frames.iter().any(|frame| frame.is_lifecycle());
            all.events = (frames.len() - gaps) as u64;
            if !is_whole {
                all.cursor = Cursor::after(taken);
                all.taken = taken;
                // The sink has not taken the gap event: the gap will be told again.
                all.lost *= u64::from(gaps > 0);
            }
            follow.has_written(all);
        }
        if let Err(refused) = written {
            self.shared.has_failed(&refused.error);
        }
        if !is_whole {
            self.refuse(follow, Instant::now());
        }
        is_whole
    }

    /// Offers the run again after a pause.
    fn refuse(&mut self, follow: &Arc<Follow>, now: Instant) {
        let at = now + pause(follow.has_failed());
        let place = (at, follow.number());
        self.refused.insert(place, Arc::clone(follow));
    }

    fn ended(&mut self, follow: &Arc<Follow>) {
        let is_first = follow.ends();
        self.shared.release(follow.number());
        if is_first {
            let sink = &mut self.sink;
            let told = caught(|| {
                sink.ended(follow.run());
                Ok(())
            });
            self.count(&told);
        }
    }

    /// Offers again the runs whose time is before `due`.
    fn offer_again(&mut self, due: Instant) {
        if self.refused.is_empty() {
            return;
        }
        let later = self.refused.split_off(&(due, 0));
        let mut due = std::mem::replace(&mut self.refused, later);
        while !self.shared.is_out_of_time()
            && let Some((_, follow)) = due.pop_first()
        {
            follow.may_retry();
            self.turn(&follow);
        }
        self.refused.append(&mut due);
    }

    fn flush_if_due(&mut self, is_idle: bool) {
        let is_late = |since: Instant| since.elapsed() >= IDLE;
        // All that was announced before the flush is written by now, but for the runs that the sink has refused.
        let is_asked = !self.flushes.is_empty() && self.refused.is_empty();
        let is_due = self.unflushed.is_some_and(is_late) || self.has_lifecycle && is_idle;
        if !is_asked && !is_due {
            return;
        }
        self.unflushed = None;
        self.has_lifecycle = false;
        let is_flushed = self.flush();
        if is_asked {
            for asked in self.flushes.drain(..) {
                asked.settle(is_flushed);
            }
        }
    }

    fn flush(&mut self) -> bool {
        let sink = &mut self.sink;
        let flushed = caught(|| Ok(sink.flush()?));
        self.count(&flushed)
    }

    /// Ends the thread's work. `is_done`: everything that was announced before the sink was asked to end is written.
    /// Returns whether that is so, and the sink has flushed.
    fn end(mut self, is_done: bool) -> bool {
        let has_all = self.flush() && is_done;
        self.shared.close(is_done);
        // Flushes that were asked for later are dropped with the queue, as not flushed.
        for asked in self.flushes.drain(..) {
            asked.settle(has_all);
        }
        has_all
    }

    /// Counts the call if it failed. Returns whether it succeeded.
    fn count(&self, done: &Result<(), Refused>) -> bool {
        if let Err(refused) = done {
            self.shared.has_failed(&refused.error);
        }
        done.is_ok()
    }
}

/// A panic of the sink as an error. The panic hook has reported it.
fn caught(call: impl FnOnce() -> Result<(), Refused>) -> Result<(), Refused> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err(io::Error::other("the sink panicked").into()))
}

/// How long to wait after this many failures in a row.
fn pause(failures: u32) -> Duration {
    FIRST_PAUSE
        .saturating_mul(1 << failures.min(10))
        .min(LONGEST_PAUSE)
}
