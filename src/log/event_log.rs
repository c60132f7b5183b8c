//! One run's ordered, bounded log, and the subscriptions that read it at their own pace.
//!
//! A subscription is a cursor over the one log: any number of readers see everything, replay costs nothing, and memory
//! does not grow with readers. An event is encoded once, when it is appended.

use super::subscription::Cursor;
use crate::run_id::RunId;
use crate::sync::{AtomicU64, Condvar, Mutex, MutexGuard, Ordering};
use crate::wire::{Body, Frame, Head};
use crate::wire::{EventId, Word};
use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How much a log holds; the oldest events make room for new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// So many events. The first one, which is the run's `lifecycle.started`, and the terminal one are held beyond it.
    pub events: usize,
    /// So many bytes of encoded events. The newest event is held whatever its size.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            events: 10_000,
            bytes: 16 << 20,
        }
    }
}

impl From<usize> for Limits {
    /// So many events, of any size.
    fn from(events: usize) -> Self {
        Self {
            events,
            bytes: usize::MAX,
        }
    }
}

impl Limits {
    pub(crate) fn at_least_one(self) -> Self {
        Self {
            events: self.events.max(1),
            ..self
        }
    }
}

/// The log has its terminal event: nothing comes after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended;

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the run has ended: the event was not appended")
    }
}

impl std::error::Error for Ended {}

/// Called after each append, with no lock held; the argument tells whether the event was the terminal one.
pub(crate) type Notify = Box<dyn Fn(bool) + Send + Sync>;

/// What an asynchronous reader leaves to be woken by, once, on the thread that appends, with no lock held.
pub type Wake = Box<dyn FnOnce() + Send>;

/// A run's events in their order. Shared as `Arc<EventLog>`; readable after its end.
pub struct EventLog {
    /// Protects the frames and all that says which are held. Under it: no user code, no waiting but on the conditions
    /// below, no I/O.
    state: Mutex<State>,
    /// Something was appended, or the log ended.
    appended: Condvar,
    /// A subscription that producers wait for has read on, or is gone.
    read: Condvar,
    limits: Limits,
    /// The bytes of the encoded events that are held. Stored under the lock; relaxed, no partner: a figure.
    held_bytes: AtomicU64,
    notify: Option<Notify>,
}

/// What a log holds of a run's own life: its first event, if that is a lifecycle event, and its terminal event.
#[derive(Clone)]
pub(crate) struct Outline {
    head: Head,
    first: Option<Arc<Frame>>,
    last: Arc<Frame>,
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
        let mut frames: Vec<_> = self
            .first
            .into_iter()
            .filter(|frame| frame.sequence() > sequence)
            .collect();
        let read = frames.last().map_or(sequence, |frame| frame.sequence());
        let end = self.last.id();
        let lost = end.sequence.saturating_sub(read + 1);
        if lost > 0 {
            let gap = self.head.gap(end.ms, &read.to_string(), Some(end), lost);
            frames.push(Arc::new(gap));
        }
        if end.sequence > read {
            frames.push(self.last);
        }
        frames
    }
}

/// What was read for a cursor.
pub(crate) struct ReadAt {
    pub(crate) frames: Vec<Arc<Frame>>,
    /// How many events the log had let go of before.
    pub(crate) lost: u64,
    /// Whether the terminal event is among the frames, or was read before.
    pub(crate) is_end: bool,
}

/// The place of a subscription that producers wait for.
pub(crate) struct Awaited {
    pub(crate) subscription: u64,
    /// The sequence number that it reads next.
    pub(crate) next: u64,
    pub(crate) patience: Duration,
    /// It has been waited for in vain, and has not read since.
    pub(crate) given_up: bool,
}

pub(crate) struct State {
    head: Head,
    /// The latest events, oldest first, without holes.
    held: VecDeque<Arc<Frame>>,
    /// The first event, if it is a lifecycle event and older than those.
    pinned: Option<Arc<Frame>>,
    bytes: usize,
    /// The sequence number of the next event. The first is 1.
    pub(crate) next: u64,
    /// Of the first event.
    pub(crate) first_ms: Option<u64>,
    last_ms: u64,
    pub(crate) ended: bool,
    /// What comes before all else, if nothing was appended yet: see [`EventLog::unopened`].
    opening: Option<Body>,
    /// How many events readers were told to have lost.
    pub(crate) lost: u64,
    /// How many threads wait on `appended`.
    waiting: usize,
    pub(crate) wakes: Vec<(u64, Wake)>,
    /// Where the subscriptions are that producers wait for.
    pub(crate) awaited: Vec<Awaited>,
    pub(crate) next_subscription: u64,
    /// The subscriptions that are open, and the sequence number that each reads next.
    pub(crate) readers: FxHashMap<u64, u64>,
    for_whom: For,
    /// How many sinks have still to read the log, though its run has ended.
    holds: usize,
    /// Nobody is waited for any more: the run was asked to stop.
    is_hurried: bool,
}

/// Whom an ended run's log holds its events for, sinks aside.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    /// For whoever finds the run.
    Anybody,
    /// The run cannot be found any more: for the subscriptions that are open.
    Readers,
    /// For nobody: what the subscriptions have still to read is beyond a bound.
    Nobody,
}

/// Milliseconds since 1970.
fn clock() -> u64 {
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

impl State {
    /// The sequence number of the oldest event that is held, the pinned one aside.
    pub(crate) fn oldest(&self) -> u64 {
        self.next - self.held.len() as u64
    }

    /// How many threads wait for an event.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// The held frames from `sequence` on, oldest first, at most `max`.
    pub(crate) fn frames(&self, sequence: u64, max: usize) -> impl Iterator<Item = &Arc<Frame>> {
        let skip = usize::try_from(sequence.saturating_sub(self.oldest())).unwrap_or(usize::MAX);
        self.held.range(skip.min(self.held.len())..).take(max)
    }

    /// The pinned event, if it is not before `sequence`.
    pub(crate) fn pinned(&self, sequence: u64) -> impl Iterator<Item = &Arc<Frame>> {
        self.pinned
            .iter()
            .filter(move |frame| frame.sequence() >= sequence)
    }

    /// The frame of `id`, if it is held.
    pub(crate) fn find(&self, id: EventId) -> Option<&Arc<Frame>> {
        let frame = if id.sequence < self.oldest() {
            self.pinned(id.sequence).next()
        } else {
            self.frames(id.sequence, 1).next()
        };
        frame.filter(|frame| frame.id() == id)
    }

    /// Tells one reader what it has missed.
    pub(crate) fn gap(&mut self, requested: &str, lost: u64) -> Arc<Frame> {
        let oldest = self.held.front().map(|frame| frame.id());
        Arc::new(self.head.gap(self.now(), requested, oldest, lost))
    }

    /// The sequence number below which everything has to go to make room for so many bytes more.
    fn goes(&self, limits: Limits, more: usize) -> u64 {
        let (mut events, mut bytes) = (self.held.len(), self.bytes);
        for frame in &self.held {
            if events < limits.events && bytes.saturating_add(more) <= limits.bytes {
                break;
            }
            events -= 1;
            bytes -= frame.len();
        }
        self.next - events as u64
    }

    /// The time in milliseconds, which does not go back within a run, whatever the clock does.
    fn now(&self) -> u64 {
        clock().max(self.last_ms)
    }

    /// Appends, at `ms` by the clock.
    fn push(&mut self, ms: u64, body: &Body, limits: Limits) -> EventId {
        self.last_ms = ms.max(self.last_ms);
        self.first_ms.get_or_insert(self.last_ms);
        let terminal = body.word().is_terminal();
        let frame = Arc::new(self.head.frame(self.last_ms, self.next, body));
        // A terminal event is one more than the bounds allow, and takes nothing from those who read slowly.
        if !terminal {
            let goes = self.goes(limits, frame.len());
            while self.oldest() < goes {
                self.drop_oldest();
            }
        }
        self.next += 1;
        self.bytes += frame.len();
        self.ended = terminal;
        let id = frame.id();
        self.held.push_back(frame);
        id
    }

    /// How many events the slowest open subscription has not read.
    fn lag(&self) -> u64 {
        let slowest = self.readers.values().min();
        slowest.map_or(0, |next| self.next.saturating_sub(*next))
    }

    /// Lets go of what every open subscription has read, if nobody else can come: the terminal event stays. `by` is where
    /// the reader was that has read on.
    pub(crate) fn drop_what_was_read(&mut self, by: u64) {
        // Only the slowest reader leaves anything behind when it reads on.
        if self.for_whom == For::Anybody || self.holds > 0 || by > self.oldest() {
            return;
        }
        let slowest = self.readers.values().min().copied();
        let end = slowest.unwrap_or(self.next).min(self.next - 1);
        while self.oldest() < end {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(frame) = self.held.pop_front() {
            self.bytes -= frame.len();
            // What a user calls so later is an event as any other.
            if frame.is_lifecycle() && frame.sequence() == 1 {
                self.pinned = Some(frame);
            }
        }
    }
}

impl EventLog {
    /// An empty log of the run `run_id`.
    pub fn new(run_id: &RunId, limits: Limits) -> Arc<Self> {
        Self::make(run_id, limits, None, 0, |_| None)
    }

    /// An empty log whose first event will be `opening`, appended by [`open`](Self::open) or together with the first
    /// event that anybody appends; only a first event that is `lifecycle.cancelled` takes its place. No event is older
    /// than `earliest`, in milliseconds. `notify` makes what is called after each append.
    pub(crate) fn unopened(
        run_id: &RunId,
        limits: Limits,
        opening: Body,
        earliest: u64,
        notify: impl FnOnce(&Weak<Self>) -> Option<Notify>,
    ) -> Arc<Self> {
        Self::make(run_id, limits, Some(opening), earliest, notify)
    }

    fn make(
        run_id: &RunId,
        limits: Limits,
        opening: Option<Body>,
        last_ms: u64,
        notify: impl FnOnce(&Weak<Self>) -> Option<Notify>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            state: Mutex::new(State {
                head: Head::new(run_id),
                held: VecDeque::new(),
                pinned: None,
                bytes: 0,
                next: 1,
                first_ms: None,
                last_ms,
                ended: false,
                opening,
                lost: 0,
                waiting: 0,
                wakes: Vec::new(),
                awaited: Vec::new(),
                next_subscription: 0,
                readers: FxHashMap::default(),
                for_whom: For::Anybody,
                holds: 0,
                is_hurried: false,
            }),
            appended: Condvar::new(),
            read: Condvar::new(),
            limits,
            held_bytes: AtomicU64::new(0),
            notify: notify(this),
        })
    }

    /// Appends an event and wakes whoever waits for one. A terminal event (see
    /// [`Word::is_terminal`](crate::Word::is_terminal)) ends the log; of several threads that append one, one does.
    ///
    /// Blocks only while a subscription with [`Overflow::Block`](crate::Overflow::Block) has not read what would have
    /// to go, at most as long as that allows, and never for a terminal event, for which nothing has to go. Thread-safe;
    /// the order of appending is the order of sequence numbers and of delivery. The [`Wake`]s of asynchronous readers
    /// run before it returns.
    ///
    /// # Errors
    ///
    /// [`Ended`] after the terminal event.
    pub fn append(&self, body: &Body) -> Result<EventId, Ended> {
        self.append_with(body, || || ()).map(|(id, ())| id)
    }

    /// As [`append`](Self::append), for a thread that must not wait: `None`, and nothing has happened, if the log's
    /// lock is taken or a subscription would have to be waited for.
    pub fn try_append(&self, body: &Body) -> Option<Result<EventId, Ended>> {
        let ms = clock();
        let state = self.state.try_lock()?;
        if state.ended {
            return Some(Err(Ended));
        }
        if !state.awaited.is_empty() && !body.word().is_terminal() && self.has_to_wait(&state, body)
        {
            return None;
        }
        Some(Ok(self.append_to(state, ms, body, || || ()).0))
    }

    /// As `append`; calls `before` under the log's lock, before anybody can see the event, then what it returns, with no
    /// lock held and before anybody is woken. Gives back what that returns.
    pub(crate) fn append_with<R, A: FnOnce() -> R>(
        &self,
        body: &Body,
        before: impl FnOnce() -> A,
    ) -> Result<(EventId, R), Ended> {
        let mut ms = clock();
        let mut state = self.state.lock();
        if !state.awaited.is_empty() && !body.word().is_terminal() {
            self.wait_for_readers(&mut state, body, Instant::now(), None);
            ms = clock();
        }
        if state.ended {
            return Err(Ended);
        }
        Ok(self.append_to(state, ms, body, before))
    }

    /// As [`append`](Self::append), for a caller that waits in slices: `None`, and nothing has happened, if those who
    /// would lose something by this event have not read on within `timeout`, and may still be waited for, as they are
    /// since `since`.
    pub(crate) fn append_within(
        &self,
        body: &Body,
        since: Instant,
        timeout: Duration,
    ) -> Option<Result<EventId, Ended>> {
        let until = Instant::now().checked_add(timeout);
        let mut state = self.state.lock();
        if !self.wait_for_readers(&mut state, body, since, until) {
            return None;
        }
        if state.ended {
            return Some(Err(Ended));
        }
        Some(Ok(self.append_to(state, clock(), body, || || ()).0))
    }

    /// From now on no producer waits for a reader: what a `Block` subscription has not read is lost to it as in a gap.
    pub(crate) fn hurry(&self) {
        self.state.lock().is_hurried = true;
        self.read.notify_all();
    }

    /// Appends the first event of a log that was made with [`unopened`](Self::unopened); whether this call did.
    pub(crate) fn open(&self) -> bool {
        let ms = clock();
        let mut state = self.state.lock();
        let Some(opening) = state.opening.take() else {
            return false;
        };
        self.append_to(state, ms, &opening, || || ());
        true
    }

    /// As [`append_with`](Self::append_with), if the log still waits for its first event.
    ///
    /// The event is made then, under the log's lock.
    pub(crate) fn append_unopened<R, A: FnOnce() -> R>(
        &self,
        body: impl FnOnce() -> Body,
        before: impl FnOnce() -> A,
    ) -> Option<(EventId, R)> {
        let ms = clock();
        let state = self.state.lock();
        let is_first = state.opening.is_some();
        is_first.then(|| self.append_to(state, ms, &body(), before))
    }

    fn append_to<R, A: FnOnce() -> R>(
        &self,
        mut state: MutexGuard<'_, State>,
        ms: u64,
        body: &Body,
        before: impl FnOnce() -> A,
    ) -> (EventId, R) {
        let after = before();
        if let Some(opening) = state.opening.take()
            && body.word() != Word::CANCELLED
        {
            state.push(ms, &opening, self.limits);
        }
        let id = state.push(ms, body, self.limits);
        self.note_bytes(&state);
        let ended = state.ended;
        let waiting = state.waiting > 0;
        let wakes = std::mem::take(&mut state.wakes);
        drop(state);
        if let Some(notify) = &self.notify {
            notify(ended);
        }
        let kept = after();
        // Outside the lock: who wakes up needs it, and a wake is somebody else's code.
        if waiting {
            self.appended.notify_all();
        }
        if ended {
            // Whoever waits to emit is refused now.
            self.read.notify_all();
        }
        for (_, wake) in wakes {
            call(wake);
        }
        (id, kept)
    }

    /// The terminal event, once it is there.
    pub fn terminal(&self) -> Option<Arc<Frame>> {
        let state = self.state.lock();
        state.ended.then(|| state.held.back().cloned()).flatten()
    }

    /// Whether the first event is still to come, and the word of the terminal event, once it is there.
    pub(crate) fn stage(&self) -> (bool, Option<Word>) {
        let state = self.state.lock();
        let last = state.held.back().map(|frame| frame.word());
        (state.opening.is_some(), last.filter(|_| state.ended))
    }

    /// Waits for the terminal event, at most `timeout`; whether it is there.
    pub fn wait_for_end(&self, timeout: Option<Duration>) -> bool {
        let end = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut state = self.state.lock();
        while !state.ended {
            if end.is_some_and(|end| Instant::now() >= end) {
                return false;
            }
            self.wait_for_more(&mut state, end);
        }
        true
    }

    /// The sequence number of the latest event; 0 if there is none.
    pub(crate) fn last_sequence(&self) -> u64 {
        self.state.lock().next - 1
    }

    /// The bytes of the encoded events that the log holds. Does not block.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes.load(Ordering::Relaxed)
    }

    fn note_bytes(&self, state: &State) {
        let pinned = state.pinned.as_ref().map_or(0, |frame| frame.len());
        let bytes = (state.bytes + pinned) as u64;
        self.held_bytes.store(bytes, Ordering::Relaxed);
    }

    /// How many subscriptions are open, and how many events the slowest of them has not read.
    pub(crate) fn readers(&self) -> (usize, u64) {
        let state = self.state.lock();
        (state.readers.len(), state.lag())
    }

    /// Reads for a cursor that the log does not know; at most `most`, but one event at least, if there is one.
    pub(crate) fn read_at(&self, cursor: &mut Cursor, most: Limits) -> ReadAt {
        let mut state = self.state.lock();
        let (frames, lost) = cursor.take(&mut state, most);
        ReadAt {
            frames,
            lost,
            is_end: state.ended && cursor.next() >= state.next,
        }
    }

    /// The lifecycle events of an ended run.
    pub(crate) fn outline(&self) -> Outline {
        let state = self.state.lock();
        let last = state.held.back().cloned();
        let last = last.expect("it has ended: the terminal event is held");
        let first = state.pinned.as_ref().or(state.held.front());
        let is_first = |frame: &&Arc<Frame>| frame.is_lifecycle() && frame.sequence() == 1;
        Outline {
            head: state.head.clone(),
            first: first
                .filter(is_first)
                .filter(|first| !Arc::ptr_eq(first, &last))
                .cloned(),
            last,
        }
    }

    /// Nobody can find the log any more: from now on it holds only what an open subscription has still to read. Returns
    /// whether there is one.
    pub(crate) fn forget(&self) -> bool {
        let mut state = self.state.lock();
        state.for_whom = For::Readers;
        state.drop_what_was_read(0);
        self.note_bytes(&state);
        !state.readers.is_empty()
    }

    /// A sink has still to read the log: being forgotten takes nothing from it.
    pub(crate) fn hold(&self) {
        self.state.lock().holds += 1;
    }

    /// A sink that has held the log has read it, or given it up.
    pub(crate) fn let_go(&self) {
        let mut state = self.state.lock();
        state.holds -= 1;
        self.was_read_up_to(&mut state, 0);
        self.shed_if_unheld(&mut state);
    }

    /// Lets go of all but the lifecycle events, whoever has still to read them; but not before the sinks have.
    pub(crate) fn shed(&self) {
        let mut state = self.state.lock();
        state.for_whom = For::Nobody;
        self.shed_if_unheld(&mut state);
    }

    fn shed_if_unheld(&self, state: &mut State) {
        if state.for_whom != For::Nobody || state.holds > 0 {
            return;
        }
        while state.held.len() > 1 {
            state.drop_oldest();
        }
        self.note_bytes(state);
    }

    /// The id of the latest event.
    pub fn last_id(&self) -> Option<EventId> {
        self.state.lock().held.back().map(|frame| frame.id())
    }

    /// How many events its readers were told to have lost, by gaps; one that several lost counts for each.
    pub fn lost(&self) -> u64 {
        self.state.lock().lost
    }

    /// How many events were appended, and how many of them are held.
    pub fn len(&self) -> (u64, usize) {
        let state = self.state.lock();
        (
            state.next - 1,
            state.held.len() + usize::from(state.pinned.is_some()),
        )
    }

    /// Whether nothing was appended yet.
    pub fn is_empty(&self) -> bool {
        self.len().0 == 0
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, State>> {
        self.state.try_lock()
    }

    /// A subscription has read on, or is gone: what nobody else has to read may go.
    pub(crate) fn was_read_up_to(&self, state: &mut State, from: u64) {
        if state.for_whom != For::Anybody {
            state.drop_what_was_read(from);
            self.note_bytes(state);
        }
    }

    /// Waits until something is appended, at most until `end`; it may come back for no reason.
    pub(crate) fn wait_for_more(&self, state: &mut MutexGuard<'_, State>, end: Option<Instant>) {
        state.waiting += 1;
        if let Some(end) = end {
            self.appended.wait_until(state, end);
        } else {
            self.appended.wait(state);
        }
        state.waiting -= 1;
    }

    /// A subscription that producers wait for has read on, or is gone.
    pub(crate) fn was_read(&self) {
        self.read.notify_all();
    }

    /// A subscription was closed, perhaps one that waits.
    pub(crate) fn was_closed(&self) {
        self.appended.notify_all();
        self.read.notify_all();
    }

    /// Whether somebody reads too slowly for this event to be appended at once.
    fn has_to_wait(&self, state: &State, body: &Body) -> bool {
        let goes = state.goes(self.limits, state.head.most(body));
        let mut awaited = state.awaited.iter();
        !state.is_hurried && awaited.any(|awaited| !awaited.given_up && awaited.next < goes)
    }

    /// Waits until `until` for those who would lose something by this event; whether they are not waited for any more.
    fn wait_for_readers(
        &self,
        state: &mut MutexGuard<'_, State>,
        body: &Body,
        since: Instant,
        until: Option<Instant>,
    ) -> bool {
        while !state.ended && !state.is_hurried {
            let goes = state.goes(self.limits, state.head.most(body));
            let late = state
                .awaited
                .iter_mut()
                .filter(|awaited| !awaited.given_up && awaited.next < goes);
            let late: Vec<_> = late.collect();
            let Some(patience) = late.iter().map(|awaited| awaited.patience).max() else {
                break;
            };
            let now = Instant::now();
            let end = since.checked_add(patience);
            if end.is_some_and(|end| now >= end) {
                // Nobody waits for them again until they have read on.
                for awaited in late {
                    awaited.given_up = true;
                }
                break;
            }
            if until.is_some_and(|until| now >= until) {
                return false;
            }
            match end.into_iter().chain(until).min() {
                Some(end) => drop(self.read.wait_until(state, end)),
                None => self.read.wait(state),
            }
        }
        true
    }
}

/// Calls a wake. One that panics has told of it; the others are woken all the same.
pub(crate) fn call(wake: Wake) {
    let _ = catch_unwind(AssertUnwindSafe(wake));
}

impl fmt::Debug for EventLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("EventLog")
            .field("appended", &(state.next - 1))
            .field("held", &state.held.len())
            .field("ended", &state.ended)
            .finish_non_exhaustive()
    }
}
