//! Which runs are live, and which have ended not long ago.

use super::finished::FinishedRuns;
use super::observer::{Observer, Observers};
use super::open_error::OpenError;
use super::options::Options;
use super::run::{Owner, Run};
use super::stats::{OldestRun, ReaderStats, RunsStats};
use crate::log::{EventLog, Limits, WouldBlock};
use crate::run_id::RunId;
use crate::sync::{AtomicBool, AtomicU64, Condvar, Mutex, MutexGuard, Ordering};
use crate::threads::background;
use crate::threads::timer::{self, Alarm, Due};
use rustc_hash::{FxHashMap, FxHashSet};
use std::sync::{Arc, Weak};
use std::time::Instant;

/// Which runs are live, and which ended not long ago.
///
/// It knows no sink: a thread that drops the last reference to a table never waits for one.
pub(super) struct Table {
    /// Protects which runs there are. Under it: map operations; never a log's, a token's or the timer's lock, never a
    /// drop of a run. A run that ends leaves the live runs under its log's lock: this lock comes after a log's.
    state: Mutex<State>,
    /// The last run that had left the live runs has settled.
    settled: Condvar,
    /// Whether any run is live. Stored under the lock, read without it. Relaxed, no partner: it publishes nothing, and
    /// a thread that has heard of a run, in whichever way, also sees this.
    has_live: AtomicBool,
    /// Relaxed, no partner: a count.
    late: AtomicU64,
    /// Protects the list of the observers. Under it: its copy.
    observers: Mutex<Observers>,
    /// Whether there is an observer. Relaxed, no partner: the list is read under its lock.
    is_observed: AtomicBool,
    this: Weak<Self>,
}

#[derive(Default)]
struct State {
    options: Options,
    /// The ids of runs that are just being made.
    opening: FxHashSet<RunId>,
    live: FxHashMap<RunId, Arc<Run>>,
    /// By the number of a live run: the live runs that end with it, by their numbers.
    children: FxHashMap<u64, FxHashMap<u64, Arc<Run>>>,
    finished: FinishedRuns,
    /// The logs of runs that cannot be found any more and whose readers have not read all.
    forgotten: Vec<Weak<EventLog>>,
    /// How many runs have left the live runs and have not settled: their terminal event is not in the log yet, or the
    /// sinks do not know of it yet.
    leaving: usize,
    /// How many ids were ever taken, also for runs that were not opened in the end.
    reserved: u64,
    opened: u64,
    shut_down: bool,
    /// When the timer looks for finished runs to forget.
    alarm: Option<Alarm>,
}

impl State {
    /// Whether it is this run, and no other of its id, that is live.
    fn is_live(&self, run: &Run) -> bool {
        let live = self.live.get(run.id());
        live.is_some_and(|live| live.number() == run.number())
    }

    /// The bytes that readers of forgotten runs have still to read.
    fn forgotten_bytes(&mut self) -> u64 {
        self.forgotten.retain(|log| log.strong_count() > 0);
        let logs = self.forgotten.iter().filter_map(Weak::upgrade);
        logs.map(|log| log.held_bytes()).sum()
    }

    /// Takes out what is beyond the bounds: first the events that readers of forgotten runs have still to read, then
    /// finished runs; of both the oldest first.
    fn expire(&mut self) -> Expired {
        let mut expired = Expired::default();
        let forgotten = self.shed(&mut expired);
        let bounds = self.options.bounds();
        self.finished.expire(bounds, forgotten, &mut expired.runs);
        expired
    }

    /// Takes out the logs of forgotten runs that are beyond the bound in bytes. Returns the bytes of those that stay.
    fn shed(&mut self, expired: &mut Expired) -> u64 {
        let mut bytes = self.forgotten_bytes();
        while bytes > 0 && bytes + self.finished.bytes() > self.options.finished_bytes {
            if let Some(log) = self.forgotten.remove(0).upgrade() {
                bytes = bytes.saturating_sub(log.held_bytes());
                expired.logs.push(log);
            }
            if self.forgotten.is_empty() {
                return 0;
            }
        }
        bytes
    }
}

/// What is beyond a table's bounds.
#[derive(Default)]
struct Expired {
    /// Runs that cannot be found any more.
    runs: Vec<Arc<Run>>,
    /// Logs that hold only lifecycle events from now on, even if readers have still to read the others.
    logs: Vec<Arc<EventLog>>,
}

impl Table {
    pub(super) fn new(options: Options) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            state: Mutex::new(State {
                options,
                ..State::default()
            }),
            settled: Condvar::new(),
            has_live: AtomicBool::new(false),
            late: AtomicU64::new(0),
            observers: Mutex::default(),
            is_observed: AtomicBool::new(false),
            this: this.clone(),
        })
    }

    pub(super) fn options(&self) -> Options {
        self.state.lock().options
    }

    /// Changes the bounds. The logs of open runs keep their limits.
    pub(super) fn configure(&self, change: impl FnOnce(&mut Options)) {
        let mut state = self.state.lock();
        change(&mut state.options);
        let alarm = state.alarm.take();
        let expired = state.expire();
        self.unlock(state);
        if let Some(alarm) = alarm {
            timer::disarm(alarm);
        }
        drop(self.forget(expired));
    }

    /// Reserves the id for a run that is about to be made.
    pub(super) fn reserve(
        &self,
        id: &RunId,
        parent: Option<&Arc<Run>>,
    ) -> Result<Reserved<'_>, OpenError> {
        let mut state = self.state.lock();
        let expired = state.expire();
        let reserved = self.reserve_in(&mut state, id, parent);
        drop(state);
        drop(self.forget(expired));
        reserved
    }

    fn reserve_in(
        &self,
        state: &mut State,
        id: &RunId,
        parent: Option<&Arc<Run>>,
    ) -> Result<Reserved<'_>, OpenError> {
        if state.shut_down {
            return Err(OpenError::ShutDown);
        }
        if state.live.contains_key(id) || state.opening.contains(id) {
            return Err(OpenError::Live(id.clone()));
        }
        if let Some(max_live) = state.options.max_live
            && state.live.len() + state.opening.len() >= max_live
        {
            return Err(OpenError::TooMany(max_live));
        }
        let parent = match parent {
            None => None,
            Some(parent) => {
                let live = state.live.get(parent.id());
                // This very run: a run of another table may have the same id and number.
                let live = live.filter(|live| Arc::ptr_eq(live, parent));
                let live = live.ok_or_else(|| OpenError::NoParent(parent.id().clone()))?;
                Some(Arc::clone(live))
            }
        };
        let before = state.finished.get(id).cloned();
        state.reserved += 1;
        state.opening.insert(id.clone());
        Ok(Reserved {
            table: self,
            id: id.clone(),
            limits: state.options.limits,
            parent,
            before,
            number: state.reserved,
            is_open: true,
        })
    }

    /// The latest run of this id, live or finished.
    pub(super) fn get(&self, id: &RunId) -> Option<Arc<Run>> {
        let mut state = self.state.lock();
        let expired = state.expire();
        let run = state.live.get(id).or_else(|| state.finished.get(id));
        let run = run.cloned();
        drop(state);
        drop(self.forget(expired));
        run
    }

    #[inline]
    pub(super) fn has_live(&self) -> bool {
        self.has_live.load(Ordering::Relaxed)
    }

    pub(super) fn live(&self, id: &RunId) -> Option<Arc<Run>> {
        self.state.lock().live.get(id).cloned()
    }

    pub(super) fn try_live(&self, id: &RunId) -> Result<Option<Arc<Run>>, WouldBlock> {
        let state = self.state.try_lock().ok_or(WouldBlock)?;
        Ok(state.live.get(id).cloned())
    }

    pub(super) fn all_live(&self) -> Vec<Arc<Run>> {
        self.state.lock().live.values().cloned().collect()
    }

    /// Accepts no run from now on. Returns the live runs.
    pub(super) fn shut(&self) -> Vec<Arc<Run>> {
        let mut state = self.state.lock();
        state.shut_down = true;
        state.live.values().cloned().collect()
    }

    /// Waits until every run that has left the live runs has its terminal event in its log, and the sinks know of it.
    /// At most until `end`: the thread that ends a run runs no user code meanwhile, but the system may not let it run.
    pub(super) fn wait_until_settled(&self, end: Option<Instant>) {
        let mut state = self.state.lock();
        while state.leaving > 0 {
            match end {
                None => self.settled.wait(&mut state),
                Some(end) if end <= Instant::now() => return,
                Some(end) => drop(self.settled.wait_until(&mut state, end)),
            }
        }
    }

    /// Forgets the runs beyond the bounds, and counts the others.
    pub(super) fn stats(&self) -> RunsStats {
        let mut state = self.state.lock();
        let expired = state.expire();
        drop(state);
        drop(self.forget(expired));
        let mut state = self.state.lock();
        let oldest = state.live.values().min_by_key(|run| run.number());
        let oldest = oldest.map(|run| OldestRun {
            id: run.id().clone(),
            opened_at: run.opened_at(),
        });
        RunsStats {
            live: state.live.len(),
            oldest,
            finished: state.finished.len(),
            finished_bytes: state.forgotten_bytes() + state.finished.bytes(),
            opened: state.opened,
            late: self.late.load(Ordering::Relaxed),
        }
    }

    /// How many runs are live; None if another thread has the lock.
    pub(super) fn try_len(&self) -> Option<usize> {
        Some(self.state.try_lock()?.live.len())
    }

    /// How many subscriptions there are. Takes the lock of each log in turn.
    pub(super) fn readers(&self) -> ReaderStats {
        let state = self.state.lock();
        let runs = state.live.values().chain(state.finished.iter());
        let found = runs.map(|run| Arc::clone(&run.log));
        let forgotten = state.forgotten.iter().filter_map(Weak::upgrade);
        let logs: Vec<_> = found.chain(forgotten).collect();
        drop(state);
        logs.iter().fold(ReaderStats::default(), |stats, log| {
            let (open, lag) = log.readers();
            ReaderStats {
                open: stats.open + open,
                lag: stats.lag.max(lag),
            }
        })
    }

    pub(super) fn observe(&self, observer: Arc<dyn Observer>) {
        self.observers.lock().add(observer);
        self.is_observed.store(true, Ordering::Relaxed);
    }

    /// The observers. Takes no lock if there is none: a thread that must not wait may ask, at a late event.
    pub(super) fn observers(&self) -> Observers {
        if self.is_observed.load(Ordering::Relaxed) {
            self.observers.lock().clone()
        } else {
            Observers::default()
        }
    }

    /// Drops the events of forgotten runs, but not those that readers have still to read within the bound. Takes the
    /// logs' locks. Returns the runs, for the caller to drop: destructors may do anything.
    fn forget(&self, expired: Expired) -> Vec<Arc<Run>> {
        expired.logs.iter().for_each(|log| log.shed());
        let logs = expired.runs.iter().map(|run| &run.log);
        let read: Vec<_> = logs
            .filter(|log| log.forget())
            .map(Arc::downgrade)
            .collect();
        if !read.is_empty() {
            let mut more = Expired::default();
            let mut state = self.state.lock();
            state.forgotten.extend(read);
            state.shed(&mut more);
            drop(state);
            more.logs.iter().for_each(|log| log.shed());
        }
        expired.runs
    }

    /// Sets the timer for the next finished run that is to be forgotten, if it is not set, and unlocks.
    fn unlock(&self, mut state: MutexGuard<'_, State>) {
        if state.alarm.is_some() {
            return;
        }
        let Some(at) = state.finished.expires_at(state.options.bounds()) else {
            return;
        };
        let alarm = Alarm::new(at);
        state.alarm = Some(alarm);
        drop(state);
        if !timer::arm(alarm, self.this.clone() as Weak<dyn Due>) {
            // The system refuses the thread. The next end asks again; until then runs are forgotten at each look into
            // the table.
            let mut state = self.state.lock();
            state.alarm = state.alarm.filter(|set| *set != alarm);
        }
    }
}

impl Due for Table {
    fn due(self: Arc<Self>) {
        let mut state = self.state.lock();
        state.alarm = None;
        let expired = state.expire();
        self.unlock(state);
        let forgotten = self.forget(expired);
        // Not on this thread: a run may hold a user's values, whose destructors may block.
        background::run(Box::new(|| drop((forgotten, self))));
    }
}

impl Owner for Table {
    fn leave(&self, run: &Run) -> Option<Vec<Arc<Run>>> {
        let mut state = self.state.lock();
        // A run that is not in this table must not remove another run of its id.
        if !state.is_live(run) {
            return None;
        }
        let run = state.live.remove(run.id())?;
        state.leaving += 1;
        let has_live = !state.live.is_empty();
        self.has_live.store(has_live, Ordering::Relaxed);
        if let Some(parent) = run.ends_with()
            && let Some(siblings) = state.children.get_mut(&parent)
        {
            // Not the last reference: this function has one.
            siblings.remove(&run.number());
            if siblings.is_empty() {
                state.children.remove(&parent);
            }
        }
        let children = state.children.remove(&run.number()).unwrap_or_default();
        state.finished.add(run);
        Some(children.into_values().collect())
    }

    fn settle(&self, run: &Run) -> Vec<Arc<Run>> {
        let mut state = self.state.lock();
        state.leaving -= 1;
        if state.leaving == 0 {
            self.settled.notify_all();
        }
        state.finished.weigh(run);
        let expired = state.expire();
        self.unlock(state);
        self.forget(expired)
    }

    fn ended(&self, run: &Run) {
        self.observers().tell(|observer| observer.ended(run));
    }

    fn was_late(&self, run: &Run) {
        self.late.fetch_add(1, Ordering::Relaxed);
        self.observers().tell(|observer| observer.late(run));
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        let alarm = self.state.lock().alarm;
        if let Some(alarm) = alarm {
            timer::disarm(alarm);
        }
    }
}

/// An id that is reserved for a run that is being made. Dropping it frees the id.
pub(super) struct Reserved<'a> {
    table: &'a Table,
    id: RunId,
    /// How much the run's log is to hold.
    pub(super) limits: Limits,
    /// The live parent.
    pub(super) parent: Option<Arc<Run>>,
    /// The finished run of the same id.
    pub(super) before: Option<Arc<Run>>,
    /// Greater than that of every run whose id was taken before.
    pub(super) number: u64,
    is_open: bool,
}

impl Reserved<'_> {
    /// Puts the run into the table, unless the table was [`shut`](Table::shut) meanwhile, or the parent has ended: a
    /// cancel of an ended parent might not reach the run.
    pub(super) fn fill(mut self, run: &Arc<Run>) -> Result<(), OpenError> {
        let mut state = self.table.state.lock();
        state.opening.remove(&self.id);
        self.is_open = false;
        if state.shut_down {
            return Err(OpenError::ShutDown);
        }
        if let Some(parent) = &self.parent
            && !state.is_live(parent)
        {
            return Err(OpenError::NoParent(parent.id().clone()));
        }
        if let Some(parent) = run.ends_with() {
            let siblings = state.children.entry(parent).or_default();
            siblings.insert(run.number(), Arc::clone(run));
        }
        state.opened += 1;
        state.live.insert(self.id.clone(), Arc::clone(run));
        self.table.has_live.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if self.is_open {
            self.table.state.lock().opening.remove(&self.id);
        }
    }
}
