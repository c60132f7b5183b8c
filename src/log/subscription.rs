//! A reader of one run's log: replay, then live, at the reader's own pace.

use super::cursor::Start;
use super::event_log::EventLog;
use super::limits::Limits;
use super::overflow::Overflow;
use super::read::{Lagged, Read, TryReadError};
use super::refusal::WouldBlock;
use super::state::Reader;
use super::waiters::{Wake, call};
use crate::sync::{AtomicBool, Ordering};
use crate::wire::{Frame, coalesce};
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A reader of one run's log. For one thread at a time; dropping it leaves nothing behind.
///
/// As an iterator it gives one event after another and blocks for each; it ends after the terminal event, or with an
/// error if the reader has lagged.
pub struct Subscription {
    reader: Reader,
    closer: Closer,
    /// What the iterator has read and not given: a read of one event may come with a gap.
    ahead: VecDeque<Arc<Frame>>,
}

/// Closes one [`Subscription`] from any thread, also while another thread reads from it. It keeps the log in memory,
/// not the subscription.
#[derive(Clone)]
pub struct Closer(Arc<Closing>);

struct Closing {
    log: Arc<EventLog>,
    /// The subscription's id in the log.
    id: u64,
    /// Whether the subscription is closed. The log knows too, under its lock. Relaxed, no partner: this publishes
    /// nothing.
    is_closed: AtomicBool,
}

impl EventLog {
    /// Opens a subscription that begins at `start`: it misses nothing that is appended from now on, and gets nothing
    /// twice.
    pub fn subscribe(self: &Arc<Self>, start: &Start, overflow: Overflow) -> Subscription {
        let reader = self.attach(start, overflow);
        let closer = Closer(Arc::new(Closing {
            log: Arc::clone(self),
            id: reader.id,
            is_closed: AtomicBool::new(false),
        }));
        Subscription {
            reader,
            closer,
            ahead: VecDeque::new(),
        }
    }
}

impl Subscription {
    /// Reads what is there, at most `max` (a number of events, or [`Limits`]). If there is nothing, waits at most
    /// `timeout`; without a timeout, until there is an event or the end. Returns at least one event, whatever its size.
    /// A gap, and a lifecycle event that was kept longer than its neighbours, come on top of `max`.
    ///
    /// # Errors
    ///
    /// [`Lagged`] with [`Overflow::Disconnect`]; the subscription is closed then.
    pub fn read(
        &mut self,
        max: impl Into<Limits>,
        timeout: Option<Duration>,
    ) -> Result<Read, Lagged> {
        if let Some(read) = self.take_ahead() {
            return Ok(read);
        }
        let end = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let read = self.closer.0.log.read(&mut self.reader, max.into(), end);
        if let Err(lagged) = read {
            self.closer.disconnected(lagged);
        }
        Ok(self.finish(read?))
    }

    /// As [`read`](Self::read) with no time to wait, for a thread that must not even wait for the log's lock.
    ///
    /// # Errors
    ///
    /// [`TryReadError`]; nothing has happened if it is [`WouldBlock`](TryReadError::WouldBlock).
    pub fn try_read(&mut self, max: impl Into<Limits>) -> Result<Read, TryReadError> {
        if let Some(read) = self.take_ahead() {
            return Ok(read);
        }
        let read = self.closer.0.log.try_read(&mut self.reader, max.into());
        if let Err(TryReadError::Lagged(lagged)) = read {
            self.closer.disconnected(lagged);
        }
        Ok(self.finish(read?))
    }

    /// What the iterator has read and not given.
    fn take_ahead(&mut self) -> Option<Read> {
        let ahead = std::mem::take(&mut self.ahead);
        (!ahead.is_empty() && !self.is_closed()).then(|| Read::Events(ahead.into()))
    }

    /// What the reader gets, with no lock held.
    fn finish(&self, read: Read) -> Read {
        match read {
            Read::Events(frames) if self.reader.overflow == Overflow::Coalesce => {
                Read::Events(coalesce(&frames))
            }
            read => read,
        }
    }

    /// Leaves `wake` to be called once, when there is something to read or the subscription is closed. Returns false,
    /// and does not keep it, if that is so already.
    ///
    /// For asynchronous readers: nothing waits. A later call replaces the wake; dropping the subscription drops it.
    pub fn wake_when_readable(&self, wake: Wake) -> bool {
        self.ahead.is_empty() && self.closer.0.log.leave_wake(&self.reader, wake)
    }

    /// Drops the wake that [`wake_when_readable`](Self::wake_when_readable) has left, if it was not called.
    pub fn forget_wake(&self) {
        drop(self.closer.0.log.remove_wake(self.reader.id));
    }

    /// Whether every read from now on gives [`Read::Ended`].
    ///
    /// # Errors
    ///
    /// [`WouldBlock`] if another thread has the log's lock.
    pub fn try_is_ended(&self) -> Result<bool, WouldBlock> {
        if self.is_closed() || !self.ahead.is_empty() {
            return Ok(self.is_closed());
        }
        self.closer.0.log.try_is_at_end(&self.reader)
    }

    /// Closes this subscription from any thread.
    #[must_use]
    pub fn closer(&self) -> Closer {
        self.closer.clone()
    }

    /// Closes the subscription. See [`Closer::close`].
    pub fn close(&self) {
        self.closer.close();
    }

    /// Whether the subscription was closed, or has lagged.
    pub fn is_closed(&self) -> bool {
        self.closer.is_closed()
    }

    /// How many events this reader was told to have lost, by gaps.
    pub fn lost(&self) -> u64 {
        self.reader.lost
    }
}

impl Iterator for Subscription {
    type Item = Result<Arc<Frame>, Lagged>;

    /// Blocks until there is an event. None after the terminal event, or once the subscription is closed.
    fn next(&mut self) -> Option<Self::Item> {
        match self.read(1, None) {
            Ok(Read::Events(frames)) => self.ahead.extend(frames),
            Ok(Read::Ended | Read::TimedOut) => return None,
            Err(lagged) => return Some(Err(lagged)),
        }
        self.ahead.pop_front().map(Ok)
    }
}

impl Drop for Subscription {
    /// The reader is gone: a wake that it has left is dropped, not called.
    fn drop(&mut self) {
        drop(self.closer.detach());
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("next", &self.reader.cursor.next())
            .field("overflow", &self.reader.overflow)
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

impl Closer {
    /// Closes the subscription: a read that waits gives [`Read::Ended`] at once, as do all reads after it, and emitting
    /// threads no longer wait for the reader. Calls the [`Wake`] of an asynchronous reader, so that the reader comes
    /// and finds the end.
    ///
    /// Blocks for one operation on the log at most. Closing again does nothing.
    pub fn close(&self) {
        if let Some(wake) = self.detach() {
            call(wake);
        }
    }

    /// Whether the subscription was closed, or dropped, or has lagged.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed.load(Ordering::Relaxed)
    }

    fn note(&self) {
        self.0.is_closed.store(true, Ordering::Relaxed);
    }

    /// Notes that the log has closed the subscription, and tells the log's listener.
    fn disconnected(&self, lagged: Lagged) {
        self.note();
        self.0.log.tell_lagged(lagged);
    }

    fn detach(&self) -> Option<Wake> {
        self.note();
        self.0.log.detach(self.0.id)
    }
}

impl fmt::Debug for Closer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Closer")
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}
