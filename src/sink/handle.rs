//! The handle of a running sink: its name, its counters, and how it is flushed and closed.

use super::Sink;
use super::backlog::{Backlog, Hold, Released};
use super::follow::Follow;
use super::follower::{Follower, Note};
use super::queue::{Pusher, queue};
use crate::log::{EventLog, Outline};
use crate::sync::{AtomicBool, AtomicU64, Condvar, Mutex, MutexGuard, Ordering, yield_now};
use crate::threads::timer::{self, Alarm, Due};
use rustc_hash::FxHashMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Weak};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

/// How long a sink may still write after its last handle was dropped.
const PATIENCE: Duration = Duration::from_secs(5);

/// So many runs with news are in the queue at most, 16 bytes each; beyond that the follower looks at all runs.
const LONGEST_QUEUE: usize = 1 << 20;

/// The counters of a sink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SinkStats {
    /// Events that the sink has taken.
    pub written: u64,
    /// Events that the sink will never get: a log or the backlog let go of them before the sink took them.
    pub dropped: u64,
    /// Calls of the sink that failed or panicked. What was not taken is offered again.
    pub errors: u64,
    /// Ended runs that the sink has not taken to their end.
    pub waiting: usize,
    /// The bytes of encoded events that are held for these runs.
    pub waiting_bytes: u64,
}

/// Counts order nothing and have no partner: relaxed throughout.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) written: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) errors: AtomicU64,
}

/// What a sink's follower shares with the logs and with the sink's handle.
pub(crate) struct Shared {
    name: String,
    queue: Pusher<Note>,
    pub(super) counts: Counts,
    /// How many threads are about to put a run into the queue: they have marked the run, and may not have pushed it yet.
    /// A thread that finds a run marked relies on the thread that marked it. So before a flush or a stop is pushed, this
    /// must have been zero: its increment comes before the mark (Release, read by Acquire), its decrement (Release) after
    /// the push, and [`wait_for_announcements`](Self::wait_for_announcements) reads it (Acquire).
    announcing: AtomicU64,
    /// Set once the sink was asked to end: it is told of nothing more. Relaxed, no partner: news that comes at that
    /// moment may be told or not.
    is_closing: AtomicBool,
    /// Protects when the sink is to end at the latest.
    ends_at: Mutex<Option<Instant>>,
    /// Protects the text of the latest error.
    last_error: Mutex<Option<String>>,
    /// Protects which runs the sink follows, by their numbers: those that are live, and those that it has not taken to
    /// their end. Under it: map operations. The queue has the numbers only, so that a sink that hangs keeps no run there.
    follows: Mutex<FxHashMap<u64, Arc<Follow>>>,
    /// Set when the queue was too long for a run's number: then the follower looks at all runs. Relaxed, no partner: the
    /// queue's end is found later than this is set.
    is_flooded: AtomicBool,
    /// Protects the ended runs that are held for the sink, and when the oldest is let go of. Under it: operations on
    /// these, with a run's progress and its log's lock below it; no call of the sink, and no drop of a log.
    backlog: Mutex<(Backlog, Option<Alarm>)>,
    /// Protects the end of the follower's thread: set once the thread is done, to whether the sink has taken everything.
    done: Mutex<Option<bool>>,
    is_done: Condvar,
    this: Weak<Self>,
}

impl Shared {
    /// Adds a run that has no event yet.
    pub(super) fn add(&self, follow: &Arc<Follow>) {
        // A sink that was asked to end, and is still in the list of sinks, would keep the run for ever.
        if !self.is_closing.load(Ordering::Relaxed) {
            let mut follows = self.follows.lock();
            follows.insert(follow.number(), Arc::clone(follow));
        }
    }

    pub(super) fn find(&self, number: u64) -> Option<Arc<Follow>> {
        self.follows.lock().get(&number).cloned()
    }

    /// All runs that the sink follows, if some of them may have news that the queue does not tell of.
    pub(super) fn flooded(&self) -> Vec<Arc<Follow>> {
        if !self.is_flooded.swap(false, Ordering::Relaxed) {
            return Vec::new();
        }
        self.follows.lock().values().cloned().collect()
    }

    /// The sink has nothing more to take of these runs.
    fn forget(&self, released: &Released) {
        if !released.follows.is_empty() {
            let mut follows = self.follows.lock();
            for follow in &released.follows {
                // Not the last reference: it is among the released ones.
                follows.remove(&follow.number());
            }
        }
    }

    /// Tells the follower that a run has news.
    pub(super) fn push(&self, follow: &Follow) {
        if self.is_closing.load(Ordering::Relaxed) {
            return;
        }
        if self.queue.len() < LONGEST_QUEUE {
            self.queue.push(Note::News(follow.number()));
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

    /// Waits until every run that was marked before this call is in the queue: as long as another thread takes from its
    /// mark to its push, and no longer than until `end`.
    fn wait_for_announcements(&self, end: Option<Instant>) {
        while self.announcing.load(Ordering::Acquire) > 0
            && end.is_none_or(|end| Instant::now() < end)
        {
            yield_now();
        }
    }

    /// Whether the sink is to end, and the time for that is over.
    pub(super) fn is_out_of_time(&self) -> bool {
        self.is_closing.load(Ordering::Relaxed)
            && self.ends_at().is_some_and(|end| Instant::now() >= end)
    }

    /// When the sink is to end at the latest.
    pub(super) fn ends_at(&self) -> Option<Instant> {
        *self.ends_at.lock()
    }

    /// Counts a call of the sink that failed.
    pub(super) fn has_failed(&self, error: &io::Error) {
        self.counts.errors.fetch_add(1, Ordering::Relaxed);
        *self.last_error.lock() = Some(error.to_string());
    }

    /// Holds the log of a run that has ended, until the sink has taken it or a bound lets it go.
    pub(super) fn hold(&self, follow: &Arc<Follow>, log: &Arc<EventLog>) {
        let mut backlog = self.backlog.lock();
        let released = backlog.0.hold(follow, log);
        self.unlock(backlog);
        self.forget(&released);
        drop(released);
    }

    /// Unlocks, after it has seen to it that the timer calls when the next log has been held for long enough.
    fn unlock(&self, mut backlog: MutexGuard<'_, (Backlog, Option<Alarm>)>) {
        if backlog.1.is_some() {
            return;
        }
        let Some(at) = backlog.0.expires_at() else {
            return;
        };
        let alarm = Alarm::new(at);
        backlog.1 = Some(alarm);
        drop(backlog);
        if !timer::arm(alarm, self.this.clone() as Weak<dyn Due>) {
            // The system refuses the thread: the next run that ends asks again.
            self.backlog.lock().1 = None;
        }
    }

    /// Lets go of the log of a run that the sink has taken to its end.
    pub(super) fn let_go(&self, number: u64) {
        let released = self.backlog.lock().0.remove(number);
        let follow = self.follows.lock().remove(&number);
        drop((released, follow));
    }

    /// What is left of a run whose log was let go of.
    pub(super) fn outline(&self, number: u64) -> Option<Outline> {
        self.backlog.lock().0.outline(number)
    }

    /// The sink takes no more. `is_done`: it has taken all that it was told of, and what live runs say later is not its.
    pub(super) fn close(&self, is_done: bool) {
        let mut backlog = self.backlog.lock();
        let released = backlog.0.close();
        let alarm = backlog.1.take();
        drop(backlog);
        let follows = std::mem::take(&mut *self.follows.lock());
        if !is_done {
            for follow in follows.values() {
                follow.give_up_live();
            }
        }
        drop((released, follows));
        if let Some(alarm) = alarm {
            timer::disarm(alarm);
        }
    }

    fn stats(&self) -> SinkStats {
        let (waiting, waiting_bytes) = self.backlog.lock().0.size();
        let counts = &self.counts;
        SinkStats {
            written: counts.written.load(Ordering::Relaxed),
            dropped: counts.dropped.load(Ordering::Relaxed),
            errors: counts.errors.load(Ordering::Relaxed),
            waiting,
            waiting_bytes,
        }
    }
}

impl Due for Shared {
    fn due(self: Arc<Self>) {
        let mut backlog = self.backlog.lock();
        backlog.1 = None;
        let released = backlog.0.expire();
        self.unlock(backlog);
        drop(released);
    }
}

/// A running sink: its thread, and how to speak to it. A clone is the same sink. Dropping the last one asks the sink to
/// end within five seconds, and does not wait: [`close`](Self::close) does.
#[derive(Clone)]
pub struct SinkHandle(Arc<Owner>);

/// Asks the sink to end when nobody can speak to it any more.
struct Owner {
    shared: Arc<Shared>,
    /// The sink's thread, which must not wait for itself.
    thread: ThreadId,
}

impl fmt::Debug for SinkHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SinkHandle")
            .field("name", &self.name())
            .finish_non_exhaustive()
    }
}

/// Clones are equal, and nothing else.
impl PartialEq for SinkHandle {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for SinkHandle {}

impl SinkHandle {
    /// Starts the sink's thread. The sink gets the events of the runs that are opened after [`Runs::add_sink`].
    ///
    /// # Errors
    ///
    /// The system's error if it refuses the thread, and [`io::ErrorKind::InvalidInput`] for a name with a NUL in it.
    ///
    /// [`Runs::add_sink`]: crate::Runs::add_sink
    pub fn start<S: Sink>(name: &str, sink: S, hold: Hold) -> io::Result<Self> {
        if name.contains('\0') {
            let what = format!("the name of a sink must not contain NUL: {name:?}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let (pusher, taker) = queue();
        let shared = Arc::new_cyclic(|this| Shared {
            name: name.to_owned(),
            queue: pusher,
            counts: Counts::default(),
            announcing: AtomicU64::new(0),
            is_closing: AtomicBool::new(false),
            ends_at: Mutex::default(),
            last_error: Mutex::default(),
            follows: Mutex::default(),
            is_flooded: AtomicBool::new(false),
            backlog: Mutex::new((Backlog::new(hold), None)),
            done: Mutex::default(),
            is_done: Condvar::new(),
            this: this.clone(),
        });
        let done = Done {
            shared: Arc::clone(&shared),
            has_all: false,
        };
        let mut work = Some((Follower::new(sink, &shared, taker), done));
        let thread = spawn(&format!("llm-callback {name}"), move || {
            S::run_thread(&mut || {
                if let Some((follower, mut done)) = work.take() {
                    done.has_all = follower.run();
                }
            });
        })?;
        Ok(Self(Arc::new(Owner { shared, thread })))
    }

    /// The name that the sink was started with.
    pub fn name(&self) -> &str {
        &self.0.shared.name
    }

    /// The sink's counters so far, also after its end. Never waits for the sink.
    pub fn stats(&self) -> SinkStats {
        self.0.shared.stats()
    }

    /// The text of the latest error of the sink, if there was one.
    pub fn last_error(&self) -> Option<String> {
        self.0.shared.last_error.lock().clone()
    }

    /// Has the sink take every event whose emit returned before this call, and flush. Returns true once the sink has;
    /// false if it has not within `timeout`, is closed, or if this is the sink's own thread. Blocks, with no lock held.
    pub fn flush(&self, timeout: Duration) -> bool {
        let end = Instant::now().checked_add(timeout);
        self.flushing(end).wait_until(end).unwrap_or(false)
    }

    /// Stops the sink once it has taken every event whose emit returned before this call, at most after `patience`. What
    /// it has not taken by then counts as dropped. Returns true if the sink has taken everything.
    ///
    /// Blocks. A call of the sink that does not return is left to itself, with the sink's thread. Closing again waits
    /// again, and returns the same. On the sink's own thread it does not wait, and returns false.
    pub fn close(&self, patience: Duration) -> bool {
        let end = Instant::now().checked_add(patience);
        let stopping = self.stop(end);
        stopping
            .wait_until(end)
            .unwrap_or_else(|| stopping.give_up())
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.0.shared)
    }

    /// Asks the sink to flush.
    pub(crate) fn flushing(&self, end: Option<Instant>) -> Flushing {
        let shared = &self.0.shared;
        shared.wait_for_announcements(end);
        let flushing = Flushing::default();
        if self.0.is_here() {
            flushing.settle(false);
        } else {
            shared
                .queue
                .push(Note::Flush(AskedToFlush(flushing.clone())));
        }
        flushing
    }

    /// Asks the sink to end until `end`, once it has taken what was appended before. The earliest of several ends counts.
    pub(crate) fn stop(&self, end: Option<Instant>) -> Stopping {
        self.0.stop(end)
    }
}

impl Owner {
    /// Whether this is the sink's own thread.
    fn is_here(&self) -> bool {
        self.thread == std::thread::current().id()
    }

    fn stop(&self, end: Option<Instant>) -> Stopping {
        let shared = &self.shared;
        shared.wait_for_announcements(end);
        let mut ends_at = shared.ends_at.lock();
        *ends_at = ends_at.into_iter().chain(end).min();
        drop(ends_at);
        shared.is_closing.store(true, Ordering::Relaxed);
        shared.queue.push(Note::Stop);
        Stopping((!self.is_here()).then(|| Arc::clone(shared)))
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.stop(Instant::now().checked_add(PATIENCE));
    }
}

/// Tells whoever waits that the follower's thread is done, also if it panics.
struct Done {
    shared: Arc<Shared>,
    has_all: bool,
}

impl Drop for Done {
    fn drop(&mut self) {
        self.shared.close(self.has_all);
        *self.shared.done.lock() = Some(self.has_all);
        self.shared.is_done.notify_all();
    }
}

/// The end of a sink that was asked to end. None on the sink's own thread, which must not wait for itself.
#[must_use]
pub(crate) struct Stopping(Option<Arc<Shared>>);

impl Stopping {
    /// Waits for the end of the sink's thread, at most until `end`. Returns whether the sink has taken everything; None
    /// if its thread is not done.
    pub(crate) fn wait_until(&self, end: Option<Instant>) -> Option<bool> {
        match &self.0 {
            Some(shared) => wait_until_set(&shared.done, &shared.is_done, end),
            None => Some(false),
        }
    }

    /// Nobody waits any more: what the sink has not taken counts as dropped from now on. Returns false.
    pub(crate) fn give_up(&self) -> bool {
        if let Some(shared) = &self.0 {
            shared.close(false);
        }
        false
    }
}

/// A flush that somebody waits for.
#[derive(Clone, Default)]
pub(crate) struct Flushing(Arc<(Mutex<Option<bool>>, Condvar)>);

impl Flushing {
    /// The sink has flushed, or never will.
    fn settle(&self, is_flushed: bool) {
        let (settled, changed) = &*self.0;
        settled.lock().get_or_insert(is_flushed);
        changed.notify_all();
    }

    /// Waits until the sink has flushed, or it is certain that it will not, at most until `end`. Returns which of the
    /// two; None if neither.
    pub(crate) fn wait_until(&self, end: Option<Instant>) -> Option<bool> {
        let (settled, changed) = &*self.0;
        wait_until_set(settled, changed, end)
    }
}

/// A flush in the sink's queue. If it is dropped before the sink has flushed, the sink never will.
pub(super) struct AskedToFlush(Flushing);

impl AskedToFlush {
    pub(super) fn settle(self, is_flushed: bool) {
        self.0.settle(is_flushed);
    }
}

impl Drop for AskedToFlush {
    fn drop(&mut self) {
        self.0.settle(false);
    }
}

/// Waits until somebody sets the value, at most until `end`.
fn wait_until_set(
    value: &Mutex<Option<bool>>,
    is_set: &Condvar,
    end: Option<Instant>,
) -> Option<bool> {
    let mut value = value.lock();
    while value.is_none() {
        match end {
            None => is_set.wait(&mut value),
            Some(end) if end <= Instant::now() => break,
            Some(end) => drop(is_set.wait_until(&mut value, end)),
        }
    }
    *value
}

#[cfg(not(loom))]
fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<ThreadId> {
    Ok(crate::threads::spawn(name, body)?.thread().id())
}

/// No model has a sink that closes itself: any id but its own will do.
#[cfg(loom)]
#[expect(clippy::unnecessary_wraps, reason = "as outside of models")]
fn spawn(_name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<ThreadId> {
    loom::thread::spawn(body);
    let other = std::thread::spawn(|| ());
    Ok(other.thread().id())
}
