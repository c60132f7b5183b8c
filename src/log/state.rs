//! What the lock of a log guards.

use super::cursor::{Cursor, Start, Taken};
use super::limits::Limits;
use super::outline::Outline;
use super::overflow::Overflow;
use super::read::{Lagged, Read};
use super::readers::Readers;
use super::waiters::Waiters;
use super::window::Window;
use crate::run_id::RunId;
use crate::wire::{EncodedBody, EventId, EventKind, FrameEncoder};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// A log without its lock.
pub(super) struct State {
    encoder: FrameEncoder,
    pub(super) window: Window,
    limits: Limits,
    /// The event that comes before all others, if nothing was appended yet: see [`EventLog::unopened`].
    ///
    /// [`EventLog::unopened`]: super::EventLog::unopened
    pub(super) opening: Option<EncodedBody>,
    /// Of the first event.
    first_ms: Option<u64>,
    last_ms: u64,
    pub(super) is_ended: bool,
    /// How many events readers were told to have lost.
    pub(super) lost: u64,
    pub(super) readers: Readers,
    pub(super) waiters: Waiters,
    kept_for: KeptFor,
    /// How many sinks have still to read the log, though its run has ended.
    holds: usize,
}

/// Whom the log of an ended run keeps its events for, sinks aside.
#[derive(Clone, Copy, PartialEq, Eq)]
enum KeptFor {
    /// For whoever finds the run.
    Anybody,
    /// The run cannot be found any more: for the subscriptions that are open.
    Readers,
    /// For nobody: what the subscriptions have still to read is beyond a bound.
    Nobody,
}

/// Where a subscription reads.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) id: u64,
    pub(super) cursor: Cursor,
    pub(super) overflow: Overflow,
    /// How many events this reader was told to have lost.
    pub(super) lost: u64,
}

/// Milliseconds since 1970.
pub(super) fn clock() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since_epoch.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

impl State {
    /// The state of an empty log. No event is older than `last_ms`.
    pub(super) fn new(
        run_id: &RunId,
        limits: Limits,
        opening: Option<EncodedBody>,
        last_ms: u64,
    ) -> Self {
        Self {
            encoder: FrameEncoder::new(run_id),
            window: Window::starting_at(1),
            limits,
            opening,
            first_ms: None,
            last_ms,
            is_ended: false,
            lost: 0,
            readers: Readers::default(),
            waiters: Waiters::default(),
            kept_for: KeptFor::Anybody,
            holds: 0,
        }
    }

    /// The sequence number before which all frames are evicted when this body is appended.
    pub(super) fn evicted_by(&self, body: &EncodedBody) -> u64 {
        let len = self.encoder.max_frame_len(body);
        self.window.room_for(len, self.limits)
    }

    /// Appends an event at `ms` by the clock, and before it the opening, if there is one. A cancelled run has no
    /// opening.
    pub(super) fn append(&mut self, ms: u64, body: &EncodedBody) -> EventId {
        if let Some(opening) = self.opening.take()
            && *body.kind() != EventKind::CANCELLED
        {
            self.push(ms, &opening);
        }
        self.push(ms, body)
    }

    fn push(&mut self, ms: u64, body: &EncodedBody) -> EventId {
        // The time does not go back within a run, whatever the clock does.
        self.last_ms = ms.max(self.last_ms);
        self.first_ms.get_or_insert(self.last_ms);
        let sequence = self.window.next();
        let frame = Arc::new(self.encoder.encode(self.last_ms, sequence, body));
        self.is_ended = frame.is_terminal();
        // A terminal event is one more than the limits allow, and evicts nothing.
        if !self.is_ended {
            let evicted = self.window.room_for(frame.len(), self.limits);
            self.window.evict_before(evicted);
        }
        let id = frame.id();
        self.window.push(frame);
        id
    }

    /// Opens a subscription. What is appended from now on is not missed, and nothing comes twice.
    pub(super) fn attach(&mut self, start: &Start, overflow: Overflow) -> Reader {
        let cursor = Cursor::new(&self.window, self.first_ms, start);
        Reader {
            id: self.readers.add(cursor.next(), overflow),
            cursor,
            overflow,
            lost: 0,
        }
    }

    /// Reads for a subscription. None: there is nothing to read yet. A subscription that has lagged and is to be
    /// disconnected is closed.
    pub(super) fn read(
        &mut self,
        reader: &mut Reader,
        max: Limits,
    ) -> Option<Result<Read, Lagged>> {
        if !self.readers.is_open(reader.id) {
            return Some(Ok(Read::Ended));
        }
        let before = reader.cursor.next();
        if reader.overflow == Overflow::Disconnect
            && !reader.cursor.has_missed_start()
            && reader.cursor.evicted(&self.window) > 0
        {
            let oldest = self.window.oldest();
            self.detach(reader.id);
            return Some(Err(Lagged {
                next: before,
                oldest,
            }));
        }
        let taken = self.take(&mut reader.cursor, max.at_least_one());
        if taken.frames.is_empty() {
            return self.is_ended.then_some(Ok(Read::Ended));
        }
        self.lost += taken.lost;
        reader.lost += taken.lost;
        self.readers.advance(reader.id, reader.cursor.next());
        self.trim(before);
        Some(Ok(Read::Events(taken.frames)))
    }

    /// Reads for a cursor that the log does not know.
    pub(super) fn take(&mut self, cursor: &mut Cursor, max: Limits) -> Taken {
        let now = clock().max(self.last_ms);
        cursor.take(&self.window, &mut self.encoder, now, max)
    }

    /// Closes a subscription. Returns whether it was open.
    pub(super) fn detach(&mut self, id: u64) -> bool {
        let place = self.readers.remove(id);
        if let Some(next) = place {
            self.trim(next);
        }
        place.is_some()
    }

    /// How many events the slowest open subscription has not read.
    pub(super) fn lag(&self) -> u64 {
        let slowest = self.readers.slowest();
        slowest.map_or(0, |next| self.window.next().saturating_sub(next))
    }

    /// Keeps events for the open subscriptions only.
    pub(super) fn forget(&mut self) {
        self.kept_for = KeptFor::Readers;
        self.trim(0);
    }

    /// Keeps all events for a sink too.
    pub(super) fn hold(&mut self) {
        self.holds += 1;
    }

    /// Keeps nothing for that sink any more.
    pub(super) fn release(&mut self) {
        self.holds -= 1;
        self.trim(0);
        self.shed_if_unheld();
    }

    /// Keeps only the lifecycle events, once no sink has still to read the others.
    pub(super) fn shed(&mut self) {
        self.kept_for = KeptFor::Nobody;
        self.shed_if_unheld();
    }

    fn shed_if_unheld(&mut self) {
        if self.kept_for == KeptFor::Nobody && self.holds == 0 {
            self.window.evict_before(self.window.next() - 1);
        }
    }

    /// Evicts what every open subscription has read, if no other reader can come; the newest event stays. `from` is
    /// where the subscription was that has read on or is closed.
    fn trim(&mut self, from: u64) {
        // Only the slowest subscription leaves anything behind when it reads on.
        if self.kept_for == KeptFor::Anybody || self.holds > 0 || from > self.window.oldest() {
            return;
        }
        let slowest = self.readers.slowest().unwrap_or(u64::MAX);
        self.window
            .evict_before(slowest.min(self.window.next() - 1));
    }

    /// The lifecycle events of an ended run.
    pub(super) fn outline(&self) -> Outline {
        let last = self.window.last().cloned();
        let last = last.expect("an ended log holds its terminal event");
        let first = self.window.first().filter(|first| {
            first.is_lifecycle() && first.sequence() == 1 && !Arc::ptr_eq(first, &last)
        });
        Outline {
            encoder: self.encoder.clone(),
            first: first.cloned(),
            last,
        }
    }
}
