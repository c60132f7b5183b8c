//! Which runs are live, and which have ended not long ago.

use crate::background;
use crate::cancelled::Cancelled;
use crate::run::{Home, Run};
use crate::run_id::RunId;
use crate::sync::{AtomicBool, AtomicU64, Mutex, MutexGuard, Ordering};
use crate::timer::{self, Alarm, Due};
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Why a run was not opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// A run of this id is live.
    Live(RunId),
    /// The run that it was to be a part of is not live.
    NoParent(RunId),
    /// The run that it was to be a part of was cancelled, for this reason.
    ParentCancelled(RunId, Cancelled),
    /// The table was shut down.
    ShutDown,
    /// The system refuses the thread that watches deadlines.
    NoTimer,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Live(id) => write!(
                f,
                "run {id} is live: it must end before another of this id begins"
            ),
            Self::NoParent(id) => write!(f, "the parent run {id} is not live"),
            Self::ParentCancelled(id, why) => write!(f, "the parent run {id} was {why}"),
            Self::ShutDown => f.write_str("the runs were shut down: none is opened any more"),
            Self::NoTimer => f.write_str("the system refuses the thread that watches deadlines"),
        }
    }
}

impl std::error::Error for OpenError {}

/// How many runs the table has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunsStats {
    /// Runs without a terminal event.
    pub live: usize,
    /// Finished runs that can still be read.
    pub finished: usize,
    /// Runs that were ever opened.
    pub opened: u64,
    /// Events and annotations that came to their [`Run`] after its end: refused, not kept.
    pub late: u64,
}

/// Apart from the sinks, so that whoever holds it for a moment never comes to wait for one.
pub(crate) struct Table {
    grace: Duration,
    max_finished: usize,
    /// Protects which runs there are. Under it: map operations; never a log's, a token's or the timer's lock, never a
    /// drop of a run. A run that ends is moved under its log's lock: this one comes after that.
    state: Mutex<State>,
    /// Whether any run is live. Stored under the lock; read without it, relaxed: whoever has heard of a run, in
    /// whichever way, also sees this, and it publishes nothing else.
    has_live: AtomicBool,
    /// Relaxed, no partner: a count.
    late: AtomicU64,
    this: Weak<Self>,
}

#[derive(Default)]
struct State {
    /// Ids that are taken by a run that is just being made.
    opening: FxHashSet<RunId>,
    live: FxHashMap<RunId, Arc<Run>>,
    finished: FxHashMap<RunId, Arc<Run>>,
    /// The finished runs in the order of their ends: when, which, of what generation.
    ended: VecDeque<(Instant, RunId, u64)>,
    /// How many ids were ever taken, also for runs that were not opened in the end.
    reserved: u64,
    opened: u64,
    shut_down: bool,
    /// When the oldest finished run may go, or before.
    alarm: Option<Alarm>,
}

impl State {
    /// Whether it is this run, and no other of its id, that is live.
    fn is_live(&self, run: &Run) -> bool {
        let live = self.live.get(run.id());
        live.is_some_and(|live| live.number() == run.number())
    }
}

impl Table {
    pub(crate) fn new(grace: Duration, max_finished: usize) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            grace,
            max_finished,
            state: Mutex::new(State::default()),
            has_live: AtomicBool::new(false),
            late: AtomicU64::new(0),
            this: this.clone(),
        })
    }

    /// Takes the id for a run that is about to be made.
    pub(crate) fn reserve(
        &self,
        id: &RunId,
        parent: Option<&Arc<Run>>,
    ) -> Result<Reserved<'_>, OpenError> {
        // Dropped after the guard.
        let _expired;
        let mut state = self.state.lock();
        _expired = self.expire(&mut state);
        if state.shut_down {
            return Err(OpenError::ShutDown);
        }
        if state.live.contains_key(id) || state.opening.contains(id) {
            return Err(OpenError::Live(id.clone()));
        }
        let parent = match parent {
            None => None,
            Some(parent) => {
                let live = state.live.get(parent.id());
                let is_live = live.is_some_and(|live| Arc::ptr_eq(live, parent));
                Some(
                    is_live
                        .then_some(parent)
                        .ok_or_else(|| OpenError::NoParent(parent.id().clone()))?,
                )
            }
        };
        let (parent, before) = (parent.cloned(), state.finished.get(id).cloned());
        state.reserved += 1;
        state.opening.insert(id.clone());
        Ok(Reserved {
            table: self,
            id: id.clone(),
            parent,
            before,
            number: state.reserved,
            is_open: true,
        })
    }

    /// The latest run of this id, live or finished.
    pub(crate) fn get(&self, id: &RunId) -> Option<Arc<Run>> {
        let mut state = self.state.lock();
        let expired = self.expire(&mut state);
        let run = state.live.get(id).or_else(|| state.finished.get(id));
        let run = run.cloned();
        drop(state);
        drop(expired);
        run
    }

    #[inline]
    pub(crate) fn has_live(&self) -> bool {
        self.has_live.load(Ordering::Relaxed)
    }

    pub(crate) fn live(&self, id: &RunId) -> Option<Arc<Run>> {
        self.state.lock().live.get(id).cloned()
    }

    #[expect(
        clippy::option_option,
        reason = "two questions: may it be asked, and is there one"
    )]
    pub(crate) fn try_live(&self, id: &RunId) -> Option<Option<Arc<Run>>> {
        let state = self.state.try_lock()?;
        Some(state.live.get(id).cloned())
    }

    pub(crate) fn all_live(&self) -> Vec<Arc<Run>> {
        self.state.lock().live.values().cloned().collect()
    }

    /// Lets no run in any more; those that are live.
    pub(crate) fn shut(&self) -> Vec<Arc<Run>> {
        let mut state = self.state.lock();
        state.shut_down = true;
        state.live.values().cloned().collect()
    }

    /// How many runs there are, after those are gone whose time is over.
    pub(crate) fn stats(&self) -> RunsStats {
        let mut state = self.state.lock();
        let expired = self.expire(&mut state);
        let counts = self.count(&state);
        drop(state);
        drop(expired);
        counts
    }

    /// As [`stats`](Self::stats), as it is.
    pub(crate) fn stats_as_is(&self) -> RunsStats {
        self.count(&self.state.lock())
    }

    fn count(&self, state: &State) -> RunsStats {
        RunsStats {
            live: state.live.len(),
            finished: state.finished.len(),
            opened: state.opened,
            late: self.late.load(Ordering::Relaxed),
        }
    }

    /// Takes out the finished runs that are too old or too many. They are dropped by the caller, outside the lock.
    fn expire(&self, state: &mut State) -> Vec<Arc<Run>> {
        let mut expired = Vec::new();
        while let Some((at, id, generation)) = state.ended.front() {
            if state.ended.len() <= self.max_finished && at.elapsed() < self.grace {
                break;
            }
            // A later generation may have taken its place.
            if state
                .finished
                .get(id)
                .is_some_and(|latest| latest.generation() == *generation)
            {
                expired.extend(state.finished.remove(id));
            }
            state.ended.pop_front();
        }
        expired
    }

    /// Unlocks, after it has seen to it that the timer calls when the next finished run may go.
    fn unlock(&self, mut state: MutexGuard<'_, State>) {
        let next = match (state.alarm, state.ended.front()) {
            (None, Some((at, ..))) => at.checked_add(self.grace),
            _ => None,
        };
        state.alarm = state.alarm.or(next.map(Alarm::new));
        let alarm = state.alarm;
        drop(state);
        if let (Some(_), Some(alarm)) = (next, alarm) {
            // Where the system refuses the thread, runs go when somebody looks.
            timer::arm(alarm, self.this.clone() as Weak<dyn Due>);
        }
    }
}

impl Due for Table {
    fn due(self: Arc<Self>) {
        let mut state = self.state.lock();
        state.alarm = None;
        let expired = self.expire(&mut state);
        self.unlock(state);
        // Not here: with a run go values of a user's, whose destructors may block.
        background::run(Box::new(|| drop((expired, self))));
    }
}

impl Home for Table {
    fn has_ended(&self, run: &Run) -> Option<Arc<Run>> {
        let mut state = self.state.lock();
        // One that was never here, or is not any more, must not take another of its id along.
        if !state.is_live(run) {
            return None;
        }
        let run = state.live.remove(run.id())?;
        let has_live = !state.live.is_empty();
        self.has_live.store(has_live, Ordering::Relaxed);
        let (id, generation) = (run.id().clone(), run.generation());
        let replaced = state.finished.insert(id.clone(), run);
        state.ended.push_back((Instant::now(), id, generation));
        replaced
    }

    fn after_end(&self) -> Vec<Arc<Run>> {
        let mut state = self.state.lock();
        let expired = self.expire(&mut state);
        self.unlock(state);
        expired
    }

    fn was_late(&self) {
        self.late.fetch_add(1, Ordering::Relaxed);
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

/// An id that is taken for a run that is being made. Dropping it frees the id.
pub(crate) struct Reserved<'a> {
    table: &'a Table,
    id: RunId,
    /// The live run that it is to be a part of.
    pub(crate) parent: Option<Arc<Run>>,
    /// The finished run of the same id.
    pub(crate) before: Option<Arc<Run>>,
    /// Greater than that of every run whose id was taken before.
    pub(crate) number: u64,
    is_open: bool,
}

impl Reserved<'_> {
    /// Puts the run into the table, if nothing has come between: a [`shut`](Table::shut), or the end of its parent, which
    /// might not pass on to it what reaches those below.
    pub(crate) fn fill(mut self, run: &Arc<Run>) -> Result<(), OpenError> {
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
