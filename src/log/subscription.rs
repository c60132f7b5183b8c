//! A cursor over one run's log: replay, then live, at the reader's own pace.

use super::event_log::{Awaited, EventLog, Limits, State, Wake, call};
use crate::sync::{AtomicBool, Ordering};
use crate::wire::EventId;
use crate::wire::{Frame, coalesce};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where a subscription begins.
#[derive(Clone, Debug, PartialEq, Eq)]
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

/// What happens to a reader that is slower than its run, when the log has to let go of what it has not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Overflow {
    /// The subscription ends with [`Lagged`]; resuming by id loses nothing that the log still holds.
    #[default]
    Disconnect,
    /// A gap event tells how many are lost; then it goes on with the oldest that is held.
    Gap,
    /// What is read at once has consecutive text of one speaker in one event; then as `Gap`.
    Coalesce,
    /// Whoever emits waits for the reader, at most so long for one event; then as `Gap`.
    Block(Duration),
}

/// The reader was too slow, and its policy is [`Overflow::Disconnect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lagged {
    /// The sequence number that it would have read next.
    pub next: u64,
    /// The oldest that the log holds.
    pub oldest: u64,
}

impl fmt::Display for Lagged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the reader is too slow: it was to read event {}, the log begins with event {}",
            self.next, self.oldest
        )
    }
}

impl std::error::Error for Lagged {}

/// What a read found.
#[derive(Clone, Debug)]
pub enum Read {
    /// Events, at least one, in their order.
    Events(Vec<Arc<Frame>>),
    /// None within the time.
    TimedOut,
    /// None, and there will be none: the terminal event was read, or the subscription is closed.
    Ended,
}

/// A place in a log: what is read next, and what its reader has still to be told. Whoever reads brings the log's state.
#[derive(Clone, Debug)]
pub(crate) struct Cursor {
    /// The sequence number to read next.
    next: u64,
    /// A start that the log does not hold, and which the reader has not been told about.
    missed: Option<Missed>,
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

    /// The sequence number to read next.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// How many events are lost to a reader that goes on here; what it was promised and cannot have counts as none.
    fn lost(&self, state: &State) -> u64 {
        let pinned = state.pinned(self.next).count() as u64;
        state.oldest().saturating_sub(self.next + pinned)
    }

    /// What is there, at most `most`, but one event at least, if there is one. If the log has let go of what comes next,
    /// a gap event says so. Returns also how many events are lost.
    pub(crate) fn take(&mut self, state: &mut State, most: Limits) -> (Vec<Arc<Frame>>, u64) {
        let oldest = state.oldest();
        let mut frames = Vec::new();
        let mut lost = 0;
        let requested = self.missed.take();
        if self.next < oldest || requested.is_some() {
            // Lifecycle events are never lost. The gap stands behind them: in order, and right before what is held.
            lost = self.lost(state);
            frames.extend(state.pinned(self.next).cloned());
            let unknown = matches!(requested, Some(Missed { unknown: true, .. }));
            if lost > 0 || unknown {
                let requested =
                    requested.map_or_else(|| (self.next - 1).to_string(), |missed| missed.start);
                frames.push(state.gap(&requested, lost));
            }
            self.next = self.next.max(oldest);
        }
        let mut bytes = 0;
        for frame in state.frames(self.next, most.events) {
            bytes += frame.len();
            if bytes > most.bytes && bytes > frame.len() {
                break;
            }
            frames.push(Arc::clone(frame));
            self.next += 1;
        }
        (frames, lost)
    }
}

/// A reader's place in a run's log. For one thread at a time; dropping it leaves nothing behind.
pub struct Subscription {
    place: Closer,
    cursor: Cursor,
    overflow: Overflow,
    lost: u64,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("next", &self.cursor.next)
            .field("overflow", &self.overflow)
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

/// Ends one [`Subscription`] from any thread, also while another reads from it. It keeps the log, not the subscription.
#[derive(Clone)]
pub struct Closer(Arc<Place>);

struct Place {
    log: Arc<EventLog>,
    /// What the log knows the subscription by.
    id: u64,
    /// Set under the log's lock, and read under it by whoever acts on it; without it, only to be told.
    closed: AtomicBool,
}

impl Closer {
    /// Ends the subscription: a read that waits returns [`Read::Ended`] at once, as do all reads after it, and producers
    /// no longer wait for it. The [`Wake`] of an asynchronous reader is called, so that it comes and finds the end.
    ///
    /// Blocks for one operation on the log at most. Closing again does nothing.
    pub fn close(&self) {
        if let Some(wake) = self.take_away() {
            call(wake);
        }
    }

    /// Whether the subscription was closed, or dropped, or has lagged.
    pub fn is_closed(&self) -> bool {
        // Relaxed, no partner: it publishes nothing.
        self.0.closed.load(Ordering::Relaxed)
    }

    /// Closes it; the wake that waited.
    fn take_away(&self) -> Option<Wake> {
        let mut state = self.0.log.lock();
        let was_closed = self.0.closed.swap(true, Ordering::Relaxed);
        let id = self.0.id;
        state.awaited.retain(|awaited| awaited.subscription != id);
        if let Some(next) = state.readers.remove(&id) {
            self.0.log.was_read_up_to(&mut state, next);
        }
        let wake = remove_wake(&mut state, id);
        drop(state);
        if !was_closed {
            self.0.log.was_closed();
        }
        wake
    }
}

impl fmt::Debug for Closer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Closer")
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

impl EventLog {
    /// Follows the log from `start` on. What is appended from this moment on is not missed, and nothing comes twice.
    pub fn subscribe(self: &Arc<Self>, start: &Start, overflow: Overflow) -> Subscription {
        let mut state = self.lock();
        let id = state.next_subscription;
        state.next_subscription += 1;
        let cursor = place(&state, start);
        state.readers.insert(id, cursor.next);
        if let Overflow::Block(patience) = overflow {
            state.awaited.push(Awaited {
                subscription: id,
                next: cursor.next,
                patience,
                given_up: false,
            });
        }
        drop(state);
        Subscription {
            place: Closer(Arc::new(Place {
                log: Arc::clone(self),
                id,
                closed: AtomicBool::new(false),
            })),
            cursor,
            overflow,
            lost: 0,
        }
    }
}

impl Subscription {
    /// Reads what is there, at most `most` (a number of events, or [`Limits`]), waiting for the first event at most
    /// `timeout`; without one, until there is an event or an end. One event is read whatever its size.
    ///
    /// # Errors
    ///
    /// [`Lagged`] with [`Overflow::Disconnect`]; the subscription is closed then.
    pub fn read(
        &mut self,
        most: impl Into<Limits>,
        timeout: Option<Duration>,
    ) -> Result<Read, Lagged> {
        let most = most.into();
        let end = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let place = self.closer();
        let log = &place.0.log;
        let mut state = log.lock();
        loop {
            if place.is_closed() {
                return Ok(Read::Ended);
            }
            let frames = self.take(&mut state, most)?;
            if !frames.is_empty() {
                drop(state);
                return Ok(self.taken(frames));
            }
            if state.ended {
                return Ok(Read::Ended);
            }
            if end.is_some_and(|end| Instant::now() >= end) {
                return Ok(Read::TimedOut);
            }
            log.wait_for_more(&mut state, end);
        }
    }

    /// As [`read`](Self::read), for a thread that must not wait: `None`, and nothing has happened, if the log's lock is
    /// taken.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn try_read(&mut self, most: impl Into<Limits>) -> Option<Result<Read, Lagged>> {
        let place = self.closer();
        let mut state = place.0.log.try_lock()?;
        if place.is_closed() {
            return Some(Ok(Read::Ended));
        }
        let frames = match self.take(&mut state, most.into()) {
            Ok(frames) => frames,
            Err(lagged) => return Some(Err(lagged)),
        };
        let ended = state.ended;
        drop(state);
        Some(Ok(match (frames.is_empty(), ended) {
            (false, _) => self.taken(frames),
            (true, true) => Read::Ended,
            (true, false) => Read::TimedOut,
        }))
    }

    /// What the reader gets for what it has taken from the log.
    fn taken(&self, frames: Vec<Arc<Frame>>) -> Read {
        Read::Events(match self.overflow {
            Overflow::Coalesce => coalesce(&frames),
            Overflow::Block(_) => {
                self.place.0.log.was_read();
                frames
            }
            Overflow::Disconnect | Overflow::Gap => frames,
        })
    }

    /// Leaves `wake` to be called once, when there is something to read or the subscription is closed; false, and not
    /// kept, if that is so already.
    ///
    /// For asynchronous readers: nothing waits. A later call replaces it; dropping the subscription takes it away.
    pub fn wake_when_readable(&self, wake: Wake) -> bool {
        let mut state = self.place.0.log.lock();
        let readable = self.is_closed()
            || self.cursor.missed.is_some()
            || state.ended
            || self.cursor.next < state.next;
        let replaced = remove_wake(&mut state, self.place.0.id);
        if !readable {
            state.wakes.push((self.place.0.id, wake));
        }
        drop(state);
        drop(replaced);
        !readable
    }

    /// Takes back what [`wake_when_readable`](Self::wake_when_readable) has left, if it was not called: it is dropped.
    pub fn forget_wake(&self) {
        let wake = remove_wake(&mut self.place.0.log.lock(), self.place.0.id);
        drop(wake);
    }

    /// Whether every read from now on returns [`Read::Ended`]; `None`, for a thread that must not wait, if the log's
    /// lock is taken.
    pub fn try_is_ended(&self) -> Option<bool> {
        if self.is_closed() {
            return Some(true);
        }
        let state = self.place.0.log.try_lock()?;
        Some(state.ended && self.cursor.missed.is_none() && self.cursor.next >= state.next)
    }

    /// What ends this subscription from any thread.
    #[must_use]
    pub fn closer(&self) -> Closer {
        self.place.clone()
    }

    /// Ends the subscription. See [`Closer::close`].
    pub fn close(&self) {
        self.place.close();
    }

    /// Whether it was closed, or has lagged.
    pub fn is_closed(&self) -> bool {
        self.place.is_closed()
    }

    /// How many events this subscription was told to have lost, by gaps.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// What is there for this reader, and its new place.
    fn take(&mut self, state: &mut State, most: Limits) -> Result<Vec<Arc<Frame>>, Lagged> {
        let (id, before) = (self.place.0.id, self.cursor.next);
        if self.overflow == Overflow::Disconnect && self.cursor.missed.is_none() {
            let oldest = state.oldest();
            if self.cursor.lost(state) > 0 {
                self.place.0.closed.store(true, Ordering::Relaxed);
                state.readers.remove(&id);
                return Err(Lagged {
                    next: before,
                    oldest,
                });
            }
        }
        let (frames, lost) = self.cursor.take(state, most.at_least_one());
        self.lost += lost;
        state.lost += lost;
        let next = self.cursor.next;
        if next != before {
            state.readers.insert(id, next);
            self.place.0.log.was_read_up_to(state, before);
        }
        if let Some(awaited) = state
            .awaited
            .iter_mut()
            .find(|awaited| awaited.subscription == id)
        {
            awaited.next = next;
            awaited.given_up = false;
        }
        Ok(frames)
    }
}

impl Drop for Subscription {
    /// Nobody is left to read: a wake that waits is dropped, not called.
    fn drop(&mut self) {
        drop(self.place.take_away());
    }
}

fn remove_wake(state: &mut State, subscription: u64) -> Option<Wake> {
    let place = state.wakes.iter().position(|(id, _)| *id == subscription)?;
    Some(state.wakes.swap_remove(place).1)
}

/// A start that the log does not hold.
#[derive(Clone, Debug)]
struct Missed {
    /// In the reader's words.
    start: String,
    /// Whether the log cannot tell how it relates to what it holds: then a gap is told even if nothing is lost.
    unknown: bool,
}

/// The cursor to begin with.
fn place(state: &State, start: &Start) -> Cursor {
    let missed = |next: u64, start: String, unknown: bool| {
        let is_missed = unknown || next < state.oldest();
        Cursor {
            next,
            missed: is_missed.then_some(Missed { start, unknown }),
        }
    };
    match start {
        Start::Live => Cursor::after(state.next - 1),
        Start::Beginning => missed(1, "start".to_owned(), false),
        Start::AfterSequence(sequence) if *sequence < state.next => {
            missed(sequence + 1, sequence.to_string(), false)
        }
        Start::AfterSequence(sequence) => missed(1, sequence.to_string(), true),
        Start::AfterId(id) if state.find(*id).is_some() => {
            missed(id.sequence + 1, id.to_string(), false)
        }
        // Let go of since, as far as can be told: not older than the run, and before what is held.
        Start::AfterId(id)
            if id.sequence < state.oldest() && state.first_ms.is_some_and(|ms| id.ms >= ms) =>
        {
            missed(id.sequence + 1, id.to_string(), false)
        }
        // Of another generation, or never given out.
        Start::AfterId(id) => missed(1, id.to_string(), true),
    }
}

#[cfg(all(test, not(loom)))]
#[expect(clippy::unwrap_used, reason = "a test may, and its helpers")]
mod tests {
    use super::*;
    use crate::log::event_log::Limits;
    use crate::wire::Body;
    use crate::wire::Word;
    use std::sync::mpsc;

    const FEW: Limits = Limits {
        events: 4,
        bytes: usize::MAX,
    };
    const AT_ONCE: Option<Duration> = Some(Duration::ZERO);

    fn log(limits: Limits) -> Arc<EventLog> {
        EventLog::new(&7.into(), limits)
    }

    fn text(log: &EventLog, text: &str) -> EventId {
        let data = format!(r#"{{"content":"{text}"}}"#);
        log.append(&Body::from_json(Word::LLM_STREAM, b"null", data.as_bytes()))
            .unwrap()
    }

    fn lifecycle(log: &EventLog, word: Word) -> EventId {
        log.append(&Body::from_json(word, b"null", b"{}")).unwrap()
    }

    fn end(log: &EventLog) -> EventId {
        log.append(&Body::from_json(Word::COMPLETED, b"null", b"{}"))
            .unwrap()
    }

    fn sequences(read: Result<Read, Lagged>) -> Vec<u64> {
        match read.unwrap() {
            Read::Events(frames) => frames.iter().map(|frame| frame.sequence()).collect(),
            Read::TimedOut => panic!("timed out"),
            Read::Ended => Vec::new(),
        }
    }

    /// A reader from the beginning sees what was there and what comes, in order, once, and then the end.
    #[test]
    fn replay_then_live() {
        let log = log(Limits::default());
        text(&log, "a");
        let mut reader = log.subscribe(&Start::Beginning, Overflow::Disconnect);
        let mut live = log.subscribe(&Start::Live, Overflow::Disconnect);
        text(&log, "b");
        assert_eq!(sequences(reader.read(10, AT_ONCE)), [1, 2]);
        assert_eq!(sequences(live.read(10, AT_ONCE)), [2]);
        assert!(matches!(reader.read(10, AT_ONCE), Ok(Read::TimedOut)));
        end(&log);
        assert_eq!(sequences(reader.read(10, AT_ONCE)), [3]);
        assert!(matches!(reader.read(10, None), Ok(Read::Ended)));
        assert!(matches!(reader.read(10, None), Ok(Read::Ended)));
    }

    /// Whoever comes after the end reads all of it, and the end.
    #[test]
    fn a_finished_log_is_read_to_the_end() {
        let log = log(Limits::default());
        let first = text(&log, "a");
        let last = end(&log);
        assert_eq!(
            log.append(&Body::from_json(Word::LLM_STREAM, b"null", b"{}")),
            Err(crate::Ended)
        );
        assert_eq!(
            sequences(
                log.subscribe(&Start::Beginning, Overflow::Gap)
                    .read(9, None)
            ),
            [1, 2]
        );
        assert_eq!(
            sequences(
                log.subscribe(&Start::AfterId(first), Overflow::Gap)
                    .read(9, None)
            ),
            [2]
        );
        assert_eq!(
            sequences(
                log.subscribe(&Start::AfterId(last), Overflow::Gap)
                    .read(9, None)
            ),
            [0; 0]
        );
        assert_eq!(
            sequences(log.subscribe(&Start::Live, Overflow::Gap).read(9, None)),
            [0; 0]
        );
    }

    /// Of what a bounded log lets go of, a slow reader with `Gap` is told how much, and lifecycle events it still gets.
    #[test]
    fn a_gap_is_told() {
        let log = log(FEW);
        let mut reader = log.subscribe(&Start::Beginning, Overflow::Gap);
        lifecycle(&log, Word::STARTED);
        for _ in 0..6 {
            text(&log, "x");
        }
        let Ok(Read::Events(frames)) = reader.read(10, AT_ONCE) else {
            panic!("no events")
        };
        let gap = frames[1].event().unwrap();
        assert_eq!(frames[1].word(), Word::STREAM_GAP);
        assert_eq!(
            (&gap.data["requested"], &gap.data["lost"]),
            (&"0".into(), &2.into())
        );
        assert_eq!(gap.data["oldest"], frames[2].id().to_string());
        assert_eq!(frames[0].word(), Word::STARTED);
        let rest: Vec<_> = frames[2..].iter().map(|frame| frame.sequence()).collect();
        assert_eq!(rest, [4, 5, 6, 7]);
        assert_eq!(log.len(), (7, 5));
    }

    /// A slow reader with `Disconnect` ends, and resumes by id without a loss if the log still holds what follows.
    #[test]
    fn a_lagging_reader_is_disconnected() {
        let log = log(FEW);
        let mut reader = log.subscribe(&Start::Live, Overflow::Disconnect);
        let ids: Vec<_> = (0..6).map(|_| text(&log, "x")).collect();
        assert_eq!(
            reader.read(10, None).unwrap_err(),
            Lagged { next: 1, oldest: 3 }
        );
        assert!(matches!(reader.read(10, None), Ok(Read::Ended)));
        let mut resumed = log.subscribe(&Start::AfterId(ids[2]), Overflow::Disconnect);
        assert_eq!(sequences(resumed.read(10, AT_ONCE)), [4, 5, 6]);
    }

    /// A start that the log does not hold, or never gave out, is answered by a gap event and all that is held.
    #[test]
    fn an_unknown_start_is_a_gap() {
        let log = log(FEW);
        let ids: Vec<_> = (0..6).map(|_| text(&log, "x")).collect();
        let other = EventId {
            ms: ids[5].ms + 1,
            ..ids[5]
        };
        let future = EventId {
            sequence: 99,
            ..ids[5]
        };
        for (start, lost) in [
            (Start::AfterId(ids[0]), 1),
            (Start::AfterId(other), 2),
            (Start::AfterId(future), 2),
            (Start::AfterSequence(0), 2),
            (Start::AfterSequence(50), 2),
            (Start::Beginning, 2),
        ] {
            let mut reader = log.subscribe(&start, Overflow::Disconnect);
            let Ok(Read::Events(frames)) = reader.read(10, AT_ONCE) else {
                panic!("no events")
            };
            assert_eq!(frames[0].event().unwrap().data["lost"], lost, "{start:?}");
            let rest: Vec<_> = frames[1..].iter().map(|frame| frame.sequence()).collect();
            assert_eq!(rest, [3, 4, 5, 6], "{start:?}");
        }
    }

    /// With `Coalesce`, text that waits for the reader comes in one event.
    #[test]
    fn waiting_text_is_merged() {
        let log = log(Limits::default());
        let mut reader = log.subscribe(&Start::Live, Overflow::Coalesce);
        for word in ["a", "b", "c"] {
            text(&log, word);
        }
        let Ok(Read::Events(frames)) = reader.read(10, AT_ONCE) else {
            panic!("no events")
        };
        assert_eq!(frames.len(), 1);
        assert_eq!(frames[0].event().unwrap().data["content"], "abc");
        assert_eq!(frames[0].sequence(), 3);
    }

    /// With `Block`, whoever emits waits for the reader and nothing is lost; without one that reads, only so long.
    #[test]
    fn a_producer_waits() {
        let log = log(FEW);
        let mut reader = log.subscribe(&Start::Live, Overflow::Block(Duration::from_secs(30)));
        let producer = {
            let log = Arc::clone(&log);
            std::thread::spawn(move || {
                for _ in 0..100 {
                    text(&log, "x");
                }
                end(&log);
            })
        };
        let mut seen = Vec::new();
        loop {
            let read = sequences(reader.read(3, Some(Duration::from_secs(30))));
            if read.is_empty() {
                break;
            }
            seen.extend(read);
        }
        producer.join().unwrap();
        assert_eq!(seen, (1..=101).collect::<Vec<_>>());

        let log = self::log(FEW);
        let mut idle = log.subscribe(&Start::Live, Overflow::Block(Duration::from_millis(1)));
        for _ in 0..6 {
            text(&log, "x");
        }
        let Ok(Read::Events(frames)) = idle.read(10, AT_ONCE) else {
            panic!("no events")
        };
        assert_eq!(frames[0].word(), Word::STREAM_GAP);
        drop(idle);
        text(&log, "nobody to wait for");
        assert!(log.lock().awaited.is_empty());
    }

    /// A reader that waits is woken by an event, and by the end.
    #[test]
    fn waiting_ends_with_an_event() {
        let log = log(Limits::default());
        let (told, hears) = mpsc::channel();
        let reader = {
            let log = Arc::clone(&log);
            std::thread::spawn(move || {
                let mut reader = log.subscribe(&Start::Beginning, Overflow::Disconnect);
                loop {
                    let read = sequences(reader.read(1, Some(Duration::from_secs(30))));
                    if read.is_empty() {
                        break;
                    }
                    told.send(read[0]).unwrap();
                }
            })
        };
        text(&log, "a");
        assert_eq!(hears.recv_timeout(Duration::from_secs(30)), Ok(1));
        end(&log);
        assert_eq!(hears.recv_timeout(Duration::from_secs(30)), Ok(2));
        reader.join().unwrap();
    }

    /// A wake is called once, when there is something to read; a closed or dropped subscription leaves none behind.
    #[test]
    fn wakes_are_called_once() {
        let log = log(Limits::default());
        let (woken, wakes) = mpsc::channel();
        let wake = |name: &'static str| -> Wake {
            let woken = woken.clone();
            Box::new(move || woken.send(name).unwrap())
        };
        let mut reader = log.subscribe(&Start::Live, Overflow::Disconnect);
        assert!(reader.wake_when_readable(wake("replaced")));
        assert!(reader.wake_when_readable(wake("called")));
        let dropped = log.subscribe(&Start::Live, Overflow::Disconnect);
        assert!(dropped.wake_when_readable(wake("dropped")));
        drop(dropped);
        text(&log, "a");
        text(&log, "b");
        assert_eq!(wakes.try_iter().collect::<Vec<_>>(), ["called"]);
        assert!(!reader.wake_when_readable(wake("not needed")));
        assert_eq!(sequences(reader.read(10, AT_ONCE)), [1, 2]);
        assert!(reader.wake_when_readable(wake("closed")));
        reader.close();
        reader.close();
        assert_eq!(wakes.try_iter().collect::<Vec<_>>(), ["closed"]);
        assert!(!reader.wake_when_readable(wake("not needed")));
        end(&log);
        assert_eq!(wakes.try_iter().count(), 0);
        assert!(log.lock().wakes.is_empty());
    }

    /// Closed from another thread, a read that waits has its end, and a producer that waits for it goes on.
    #[test]
    fn a_closer_ends_a_waiting_read() {
        let log = log(FEW);
        let mut reader = log.subscribe(&Start::Live, Overflow::Block(Duration::from_secs(60)));
        let closer = reader.closer();
        for _ in 0..4 {
            text(&log, "x");
        }
        let producer = {
            let log = Arc::clone(&log);
            std::thread::spawn(move || text(&log, "waits").sequence)
        };
        closer.close();
        closer.clone().close();
        assert!(reader.is_closed() && closer.is_closed());
        assert_eq!(producer.join().unwrap(), 5);
        assert!(matches!(reader.read(1, None), Ok(Read::Ended)));

        let mut idle = log.subscribe(&Start::Live, Overflow::Gap);
        let closer = idle.closer();
        let waiting = std::thread::spawn(move || idle.read(1, Some(Duration::from_secs(60))));
        while log.lock().waiting() == 0 {
            std::thread::yield_now();
        }
        closer.close();
        assert!(matches!(waiting.join().unwrap(), Ok(Read::Ended)));
    }

    /// Who must not wait is told so, and nothing has happened: of a lock that is taken, of a reader that is waited for.
    #[test]
    fn trying_never_waits() {
        let log = log(FEW);
        let body = Body::from_json(Word::LLM_STREAM, b"null", b"{}");
        let held = log.lock();
        assert_eq!(log.try_append(&body), None);
        drop(held);
        let mut reader = log.subscribe(&Start::Live, Overflow::Block(Duration::from_secs(60)));
        for sequence in 1..=4 {
            let id = log.try_append(&body).unwrap().unwrap();
            assert_eq!(id.sequence, sequence);
        }
        assert_eq!(log.try_append(&body), None);
        assert_eq!(sequences(reader.read(1, AT_ONCE)), [1]);
        assert_eq!(log.try_append(&body).unwrap().unwrap().sequence, 5);
        // A terminal event takes nothing from anybody.
        assert_eq!(log.try_append(&body), None);
        let end = Body::from_json(Word::COMPLETED, b"null", b"{}");
        assert_eq!(log.try_append(&end).unwrap().unwrap().sequence, 6);
        assert_eq!(log.try_append(&body), Some(Err(crate::Ended)));
    }

    /// What a reader lost is counted, for it and for the log.
    #[test]
    fn losses_are_counted() {
        let log = log(FEW);
        let mut reader = log.subscribe(&Start::Live, Overflow::Gap);
        for _ in 0..6 {
            text(&log, "x");
        }
        assert_eq!((reader.lost(), log.lost()), (0, 0));
        assert!(reader.read(10, AT_ONCE).is_ok());
        assert_eq!((reader.lost(), log.lost()), (2, 2));
    }

    /// An event that is larger than the log's bound in bytes is held, alone.
    #[test]
    fn the_newest_event_is_held() {
        let log = log(Limits {
            events: 10,
            bytes: 1,
        });
        let mut reader = log.subscribe(&Start::Live, Overflow::Gap);
        text(&log, "a");
        text(&log, &"b".repeat(1000));
        let Ok(Read::Events(frames)) = reader.read(10, AT_ONCE) else {
            panic!("no events")
        };
        assert_eq!(frames.len(), 2);
        assert_eq!(frames[1].sequence(), 2);
    }
}
