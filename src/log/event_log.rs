//! A log behind its lock: events are appended and read, and threads wait for both.

use super::cursor::{Cursor, Start, Taken};
use super::limits::Limits;
use super::outline::Outline;
use super::overflow::Overflow;
use super::read::{Lagged, Read, TryReadError};
use super::refusal::{Ended, TryAppendError, Wait, WouldBlock};
use super::state::{Reader, State, clock};
use super::waiters::{Wake, Woken};
use crate::run_id::RunId;
use crate::sync::{AtomicU64, Condvar, Mutex, MutexGuard, Ordering};
use crate::wire::{EncodedBody, EventId, EventKind, Frame};
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How far a log has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The first event is still to come.
    Unopened,
    /// There are events, and there may be more.
    Open,
    /// The terminal event is of this kind.
    Ended(EventKind),
}

/// How many events a log has had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogSize {
    /// Events that were appended.
    pub appended: u64,
    /// Events of these that are held.
    pub held: usize,
}

/// Hears what happens to a log. Called with no lock held.
pub(crate) trait Listener: Send + Sync {
    /// An event was appended, the terminal one if `is_end`.
    fn appended(&self, is_end: bool);

    /// A subscription was disconnected because its reader lagged.
    fn lagged(&self, lagged: Lagged);
}

/// A run's events in their order. Shared as `Arc<EventLog>`; readable after its end.
pub struct EventLog {
    /// Protects the frames, and who reads and waits. Under it: no user code, no waiting but on the conditions below, no
    /// I/O.
    state: Mutex<State>,
    /// An event was appended, or a subscription was closed.
    appended: Condvar,
    /// A subscription with [`Overflow::Block`] has read on or is closed, or the log has ended.
    read: Condvar,
    /// The bytes of the encoded events that are held. Stored under the lock; relaxed, no partner: a figure.
    held_bytes: AtomicU64,
    listener: Option<Box<dyn Listener>>,
}

impl EventLog {
    /// An empty log of the run `run_id`.
    pub fn new(run_id: &RunId, limits: Limits) -> Arc<Self> {
        Arc::new(Self::from(State::new(run_id, limits, None, 0)))
    }

    /// An empty log whose first event will be `opening`: appended by [`open`](Self::open), or together with the first
    /// event that any thread appends, unless that is `lifecycle.cancelled`. No event is older than `earliest`, in
    /// milliseconds. `listener` makes the log's listener.
    pub(crate) fn unopened(
        run_id: &RunId,
        limits: Limits,
        opening: EncodedBody,
        earliest: u64,
        listener: impl FnOnce(&Weak<Self>) -> Option<Box<dyn Listener>>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            listener: listener(this),
            ..Self::from(State::new(run_id, limits, Some(opening), earliest))
        })
    }

    /// Appends an event and wakes the readers that wait for one. A terminal event (see
    /// [`EventKind::is_terminal`](crate::EventKind::is_terminal)) ends the log; of several threads that append one, one
    /// succeeds.
    ///
    /// Blocks only while a subscription with [`Overflow::Block`] has not read an event that would be evicted, at most
    /// as long as that subscription allows, and never for a terminal event, which evicts nothing. Thread-safe; the
    /// order of appending is the order of sequence numbers and of delivery. The [`Wake`]s of asynchronous readers run
    /// before `append` returns.
    ///
    /// # Errors
    ///
    /// [`Ended`] after the terminal event.
    pub fn append(&self, body: &EncodedBody) -> Result<EventId, Ended> {
        // An append that waits patiently is refused by nothing else.
        self.append_within(body, Wait::Patiently).map_err(|_| Ended)
    }

    /// As [`append`](Self::append), for a thread that must not wait.
    ///
    /// # Errors
    ///
    /// [`TryAppendError`]; then nothing has happened.
    pub fn try_append(&self, body: &EncodedBody) -> Result<EventId, TryAppendError> {
        self.append_within(body, Wait::Never)
    }

    /// As [`append`](Self::append), for a thread that waits as `wait` says.
    ///
    /// # Errors
    ///
    /// [`TryAppendError`]; then nothing has happened.
    pub fn append_within(&self, body: &EncodedBody, wait: Wait) -> Result<EventId, TryAppendError> {
        Ok(self.enter(body, wait)?.append(body).wake())
    }

    /// Takes the lock to append this event: the first part of [`append`](Self::append).
    pub(crate) fn enter(
        &self,
        body: &EncodedBody,
        wait: Wait,
    ) -> Result<Entry<'_>, TryAppendError> {
        let mut ms = clock();
        let mut state = match wait {
            Wait::Never => self.state.try_lock().ok_or(TryAppendError::WouldBlock)?,
            Wait::Patiently | Wait::Until { .. } => self.state.lock(),
        };
        if state.readers.has_blocking() && !body.kind().is_terminal() {
            self.wait_for_readers(&mut state, body, wait)?;
            ms = clock();
        }
        if state.is_ended {
            return Err(TryAppendError::Ended);
        }
        let log = self;
        Ok(Entry { log, state, ms })
    }

    /// Appends the opening, if the log still waits for its first event.
    pub(crate) fn open(&self) {
        if let Some(mut entry) = self.enter_unopened()
            && let Some(opening) = entry.state.opening.take()
        {
            entry.append(&opening).wake();
        }
    }

    /// Takes the lock if the log still waits for its first event.
    pub(crate) fn enter_unopened(&self) -> Option<Entry<'_>> {
        let ms = clock();
        let state = self.state.lock();
        let log = self;
        let is_unopened = state.opening.is_some();
        is_unopened.then_some(Entry { log, state, ms })
    }

    /// Waits for the subscriptions with [`Overflow::Block`] that would lose an event by this one.
    fn wait_for_readers(
        &self,
        state: &mut MutexGuard<'_, State>,
        body: &EncodedBody,
        wait: Wait,
    ) -> Result<(), TryAppendError> {
        let mut began = None;
        while !state.is_ended && state.readers.has_blocking() {
            let evicted = state.evicted_by(body);
            let Some(patience) = state.readers.patience(evicted) else {
                break;
            };
            let now = Instant::now();
            let (since, until) = match wait {
                Wait::Never => return Err(TryAppendError::WouldBlock),
                Wait::Patiently => (*began.get_or_insert(now), None),
                Wait::Until { since, end } => (since, Some(end)),
            };
            let end = since.checked_add(patience);
            if end.is_some_and(|end| now >= end) {
                state.readers.give_up(evicted);
                break;
            }
            if until.is_some_and(|until| now >= until) {
                return Err(TryAppendError::WouldBlock);
            }
            match end.into_iter().chain(until).min() {
                Some(end) => drop(self.read.wait_until(state, end)),
                None => self.read.wait(state),
            }
        }
        Ok(())
    }

    /// From now on no emitting thread waits for a reader: what a reader with [`Overflow::Block`] has not read may be
    /// lost to it, as a gap.
    pub(crate) fn hurry(&self) {
        self.state.lock().readers.hurry();
        self.read.notify_all();
    }

    /// The terminal event, once it is appended.
    pub fn terminal(&self) -> Option<Arc<Frame>> {
        let state = self.state.lock();
        let last = state.window.last();
        last.filter(|_| state.is_ended).cloned()
    }

    pub(crate) fn stage(&self) -> Stage {
        let state = self.state.lock();
        match state.window.last() {
            Some(last) if state.is_ended => Stage::Ended(last.kind().clone()),
            _ if state.opening.is_some() => Stage::Unopened,
            _ => Stage::Open,
        }
    }

    /// Waits for the terminal event, at most `timeout`. Returns true once it is appended, false on timeout.
    pub fn wait_for_end(&self, timeout: Option<Duration>) -> bool {
        let end = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut state = self.state.lock();
        while !state.is_ended {
            if end.is_some_and(|end| Instant::now() >= end) {
                return false;
            }
            self.wait_for_event(&mut state, end);
        }
        true
    }

    /// Waits until an event is appended, at most until `end`; may return for no reason.
    fn wait_for_event(&self, state: &mut MutexGuard<'_, State>, end: Option<Instant>) {
        state.waiters.threads += 1;
        match end {
            Some(end) => drop(self.appended.wait_until(state, end)),
            None => self.appended.wait(state),
        }
        state.waiters.threads -= 1;
    }

    /// The id of the latest event.
    pub fn last_id(&self) -> Option<EventId> {
        let state = self.state.lock();
        state.window.last().map(|frame| frame.id())
    }

    /// The sequence number of the latest event; 0 if there is none.
    pub(crate) fn last_sequence(&self) -> u64 {
        self.state.lock().window.next() - 1
    }

    /// How many events were appended, and how many of them are held.
    pub fn size(&self) -> LogSize {
        let state = self.state.lock();
        LogSize {
            appended: state.window.next() - 1,
            held: state.window.len(),
        }
    }

    /// How many events readers were told to have lost, by gaps. An event that several readers lost counts for each.
    pub fn lost(&self) -> u64 {
        self.state.lock().lost
    }

    /// The bytes of the encoded events that the log holds. Does not block.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes.load(Ordering::Relaxed)
    }

    #[cfg(all(test, not(loom)))]
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn note_bytes(&self, state: &State) {
        let bytes = state.window.bytes() as u64;
        self.held_bytes.store(bytes, Ordering::Relaxed);
    }
}

/// For the subscriptions of the log.
impl EventLog {
    pub(super) fn attach(&self, start: &Start, overflow: Overflow) -> Reader {
        self.state.lock().attach(start, overflow)
    }

    /// Reads at most `max`. If there is nothing to read, waits until `end`.
    pub(super) fn read(
        &self,
        reader: &mut Reader,
        max: Limits,
        end: Option<Instant>,
    ) -> Result<Read, Lagged> {
        let mut state = self.state.lock();
        loop {
            if let Some(read) = state.read(reader, max) {
                return self.finish_read(state, reader, read);
            }
            if end.is_some_and(|end| Instant::now() >= end) {
                return Ok(Read::TimedOut);
            }
            self.wait_for_event(&mut state, end);
        }
    }

    /// As [`read`](Self::read), for a thread that must not wait.
    pub(super) fn try_read(&self, reader: &mut Reader, max: Limits) -> Result<Read, TryReadError> {
        let state = self.state.try_lock();
        let mut state = state.ok_or(TryReadError::WouldBlock)?;
        match state.read(reader, max) {
            Some(read) => Ok(self.finish_read(state, reader, read)?),
            None => Ok(Read::TimedOut),
        }
    }

    /// Unlocks after a read, and wakes the threads that wait for this reader.
    fn finish_read(
        &self,
        state: MutexGuard<'_, State>,
        reader: &Reader,
        read: Result<Read, Lagged>,
    ) -> Result<Read, Lagged> {
        self.note_bytes(&state);
        drop(state);
        if matches!(reader.overflow, Overflow::Block(_)) && matches!(read, Ok(Read::Events(_))) {
            self.read.notify_all();
        }
        read
    }

    /// Tells the listener that a reader was disconnected.
    pub(super) fn tell_lagged(&self, lagged: Lagged) {
        if let Some(listener) = &self.listener {
            listener.lagged(lagged);
        }
    }

    /// Closes a subscription, also while a thread reads for it. Returns the wake that its reader has left.
    pub(super) fn detach(&self, id: u64) -> Option<Wake> {
        let mut state = self.state.lock();
        let was_open = state.detach(id);
        let wake = state.waiters.remove(id);
        self.note_bytes(&state);
        drop(state);
        if was_open {
            self.appended.notify_all();
            self.read.notify_all();
        }
        wake
    }

    /// Keeps a wake if there is nothing to read, and the reader's subscription is open. Returns whether it is kept.
    pub(super) fn leave_wake(&self, reader: &Reader, wake: Wake) -> bool {
        let mut state = self.state.lock();
        let waits = state.readers.is_open(reader.id)
            && !state.is_ended
            && reader.cursor.is_at_end(&state.window);
        let dropped = if waits {
            state.waiters.leave(reader.id, wake)
        } else {
            state.waiters.remove(reader.id)
        };
        drop(state);
        drop(dropped);
        waits
    }

    /// Takes back the wake that a reader has left.
    pub(super) fn remove_wake(&self, id: u64) -> Option<Wake> {
        self.state.lock().waiters.remove(id)
    }

    /// Whether the reader has read the terminal event.
    pub(super) fn try_is_at_end(&self, reader: &Reader) -> Result<bool, WouldBlock> {
        let state = self.state.try_lock().ok_or(WouldBlock)?;
        Ok(state.is_ended && reader.cursor.is_at_end(&state.window))
    }

    /// How many subscriptions are open, and how many events the slowest of them has not read.
    pub(crate) fn readers(&self) -> (usize, u64) {
        let state = self.state.lock();
        (state.readers.len(), state.lag())
    }
}

/// For the sinks, and for the table that keeps ended runs.
impl EventLog {
    /// Reads at most `max` for a cursor that the log does not know, but one event at least, if there is one. Returns
    /// also whether the cursor is behind the terminal event then.
    pub(crate) fn take(&self, cursor: &mut Cursor, max: Limits) -> (Taken, bool) {
        let mut state = self.state.lock();
        let taken = state.take(cursor, max);
        let is_end = state.is_ended && cursor.is_at_end(&state.window);
        (taken, is_end)
    }

    /// The lifecycle events of an ended run.
    pub(crate) fn outline(&self) -> Outline {
        self.state.lock().outline()
    }

    /// No reader can come any more: from now on the log keeps only what an open subscription has still to read. Returns
    /// whether any is open.
    pub(crate) fn forget(&self) -> bool {
        self.keep(State::forget);
        self.readers().0 > 0
    }

    /// A sink has still to read the log: forgetting and shedding take nothing from it.
    pub(crate) fn hold(&self) {
        self.keep(State::hold);
    }

    /// A sink that has held the log has read it, or has given it up.
    pub(crate) fn release(&self) {
        self.keep(State::release);
    }

    /// Drops all but the lifecycle events, though subscriptions have still to read them; but not before the sinks have.
    pub(crate) fn shed(&self) {
        self.keep(State::shed);
    }

    fn keep(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        change(&mut state);
        self.note_bytes(&state);
    }
}

impl From<State> for EventLog {
    fn from(state: State) -> Self {
        Self {
            state: Mutex::new(state),
            appended: Condvar::new(),
            read: Condvar::new(),
            held_bytes: AtomicU64::new(0),
            listener: None,
        }
    }
}

impl fmt::Debug for EventLog {
    /// Does not block: without details while another thread has the lock.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("EventLog");
        if let Some(state) = self.state.try_lock() {
            debug
                .field("appended", &(state.window.next() - 1))
                .field("held", &state.window.len())
                .field("ended", &state.is_ended);
        }
        debug.finish_non_exhaustive()
    }
}

/// The lock of a log, in the hands of a thread that is about to append.
pub(crate) struct Entry<'a> {
    log: &'a EventLog,
    state: MutexGuard<'a, State>,
    ms: u64,
}

impl<'a> Entry<'a> {
    /// Appends the event, unlocks, and tells the log's listener.
    pub(crate) fn append(self, body: &EncodedBody) -> Appended<'a> {
        let Self { log, mut state, ms } = self;
        let id = state.append(ms, body);
        log.note_bytes(&state);
        let is_end = state.is_ended;
        let woken = state.waiters.take();
        drop(state);
        if let Some(listener) = &log.listener {
            listener.appended(is_end);
        }
        Appended {
            log,
            id,
            is_end,
            woken,
        }
    }
}

/// An event that was appended, and whose readers are still to be woken.
#[must_use]
pub(crate) struct Appended<'a> {
    log: &'a EventLog,
    id: EventId,
    is_end: bool,
    woken: Woken,
}

impl Appended<'_> {
    /// Wakes the readers, with no lock held: a thread that wakes up needs the lock, and a wake is a user's code.
    /// Returns the event's id.
    pub(crate) fn wake(self) -> EventId {
        if self.woken.has_threads {
            self.log.appended.notify_all();
        }
        if self.is_end {
            // Threads that wait to append are refused now.
            self.log.read.notify_all();
        }
        self.woken.call();
        self.id
    }
}
