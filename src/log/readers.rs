//! The open subscriptions of a log: where each reads, and which of them an emitting thread waits for.

use super::overflow::Overflow;
use rustc_hash::FxHashMap;
use std::time::Duration;

/// The open subscriptions of one log, by their ids. Guarded by the log's lock.
#[derive(Default)]
pub(super) struct Readers {
    added: u64,
    /// The sequence number that each reads next.
    places: FxHashMap<u64, u64>,
    /// Those with [`Overflow::Block`].
    blocking: Vec<Blocking>,
    is_hurried: bool,
}

/// A subscription that an emitting thread waits for.
struct Blocking {
    id: u64,
    next: u64,
    patience: Duration,
    /// An emitting thread has waited for it in vain, and it has not read since.
    is_given_up: bool,
}

impl Readers {
    /// Adds a subscription that reads this sequence number next. Returns its id.
    pub(super) fn add(&mut self, next: u64, overflow: Overflow) -> u64 {
        let id = self.added;
        self.added += 1;
        self.places.insert(id, next);
        if let Overflow::Block(patience) = overflow {
            self.blocking.push(Blocking {
                id,
                next,
                patience,
                is_given_up: false,
            });
        }
        id
    }

    /// Removes a subscription. Returns the sequence number that it would have read next; None if it is not open.
    pub(super) fn remove(&mut self, id: u64) -> Option<u64> {
        self.blocking.retain(|blocking| blocking.id != id);
        self.places.remove(&id)
    }

    pub(super) fn is_open(&self, id: u64) -> bool {
        self.places.contains_key(&id)
    }

    /// Notes that a subscription has read up to this sequence number.
    pub(super) fn advance(&mut self, id: u64, next: u64) {
        self.places.insert(id, next);
        if let Some(blocking) = self.blocking.iter_mut().find(|it| it.id == id) {
            blocking.next = next;
            blocking.is_given_up = false;
        }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// The sequence number that the slowest subscription reads next.
    pub(super) fn slowest(&self) -> Option<u64> {
        self.places.values().min().copied()
    }

    /// From now on no emitting thread waits for a subscription.
    pub(super) fn hurry(&mut self) {
        self.is_hurried = true;
    }

    /// Whether an emitting thread may have to wait at all.
    #[inline]
    pub(super) fn has_blocking(&self) -> bool {
        !self.blocking.is_empty() && !self.is_hurried
    }

    /// The longest patience of the subscriptions that would lose events if all before this sequence number were
    /// evicted; None if no emitting thread waits for any of these.
    pub(super) fn patience(&self, evicted: u64) -> Option<Duration> {
        let late = self.blocking.iter().filter(|it| it.is_late(evicted));
        late.map(|blocking| blocking.patience).max()
    }

    /// No emitting thread waits for these subscriptions again until they have read on.
    pub(super) fn give_up(&mut self, evicted: u64) {
        for blocking in self.blocking.iter_mut().filter(|it| it.is_late(evicted)) {
            blocking.is_given_up = true;
        }
    }
}

impl Blocking {
    fn is_late(&self, evicted: u64) -> bool {
        !self.is_given_up && self.next < evicted
    }
}
