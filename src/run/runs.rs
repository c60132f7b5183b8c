//! The runs of a process: opened, found, cancelled and shut down, with the sinks that all their events go to.

use super::run::{Home, Parent, Run, lifecycle};
use super::table::{OpenError, Options, ReaderStats, RunsStats, Table};
use crate::cancel::CancelKind;
use crate::cancel::{CancelToken, NoTimer};
use crate::log::EventLog;
use crate::run_id::RunId;
use crate::sink::{Flushing, Shared, SinkHandle, Stopping, notify};
use crate::sync::Mutex;
use crate::wire::Object;
use crate::wire::Word;
use serde_json::value::RawValue;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How a run is opened. `Opening::default()` is a run of its own without a deadline, that starts at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Opening<'a> {
    /// The live run that it is to be a part of: this one, not a later one of the same id.
    pub parent: Option<&'a Arc<Run>>,
    /// Whether it goes on after its parent's end, which otherwise cancels it, as [`CancelKind::Parent`]. A cancel of the
    /// live parent reaches it all the same.
    pub detached: bool,
    /// When it is cancelled, unless it has ended.
    pub deadline: Option<Instant>,
    /// The data of its `lifecycle.started`, to which `parent_run_id` is added. What is no object becomes
    /// `{"data": …}`.
    pub data: Option<&'a RawValue>,
    /// Whether it is to wait for [`Run::start`], or the first event, and end unstarted if it is cancelled before.
    pub pending: bool,
}

/// The sinks, and what the next run's log tells of its events.
#[derive(Default)]
struct Sinks {
    handles: Vec<SinkHandle>,
    shared: Arc<[Arc<Shared>]>,
}

impl Sinks {
    fn share(&mut self) {
        self.shared = self.handles.iter().map(SinkHandle::shared).collect();
    }
}

/// How long sinks are waited for when the last handle of a table is dropped.
const PATIENCE: Duration = Duration::from_secs(5);

impl Drop for Sinks {
    fn drop(&mut self) {
        // Also those of which somebody keeps a handle.
        let end = Instant::now().checked_add(PATIENCE);
        let stopping: Vec<_> = self.handles.iter().map(|sink| sink.stop(end)).collect();
        for sink in &stopping {
            sink.wait_until(end);
        }
    }
}

struct Inner {
    /// Before the sinks, so that the last words of runs that go with it are written.
    table: Arc<Table>,
    /// Protects the list of the sinks. Under it: list operations; nobody waits for a sink under it.
    sinks: Mutex<Sinks>,
}

/// The runs of a process, or of a part of it. Cloning it gives another handle of the same table; all methods may be
/// called from any thread. Dropping the last handle abandons the live runs and waits for the sinks, five seconds at most.
///
/// In the child of a fork a lock of the table may be held by a thread that is not there, and the sinks' threads are
/// not there either. A host that forks puts a new table in the place of its old one there, and gives the old one to
/// [`std::mem::forget`]: so nobody waits for the sinks, and the runs of the parent are never dropped. Handles of these
/// runs, if there are any, must not be used in the child but to be dropped.
#[derive(Clone)]
pub struct Runs(Arc<Inner>);

impl fmt::Debug for Runs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runs")
            .field("live", &self.0.table.try_len())
            .finish_non_exhaustive()
    }
}

impl Default for Runs {
    fn default() -> Self {
        Self::new(Options::default())
    }
}

impl Runs {
    /// An empty table.
    pub fn new(options: Options) -> Self {
        Self(Arc::new(Inner {
            table: Table::new(options),
            sinks: Mutex::default(),
        }))
    }

    /// How much the table keeps.
    pub fn options(&self) -> Options {
        self.0.table.options()
    }

    /// Changes how much the table keeps; `change` is called under the table's lock. What is beyond the new bounds is
    /// forgotten at once. The logs of runs that were opened before keep their limits.
    pub fn configure(&self, change: impl FnOnce(&mut Options)) {
        self.0.table.configure(change);
    }

    /// Opens a run: its first event, `lifecycle.started`, is in its log before any other.
    ///
    /// Its token is a child of its parent's, with the deadline if there is one. A run that is asked to stop before it
    /// has started, also one whose deadline has passed already, ends at once, with `lifecycle.cancelled` as its only
    /// event: see [`Run::state`]. Does not block.
    ///
    /// # Errors
    ///
    /// See [`OpenError`]; then nothing has changed, and no event was emitted.
    #[expect(clippy::missing_panics_doc, reason = "raw JSON is JSON")]
    pub fn open(&self, id: impl Into<RunId>, opening: Opening<'_>) -> Result<Arc<Run>, OpenError> {
        let id = id.into();
        let data = opening.data.map_or_else(Object::empty, |data| {
            Object::encode(data, "data").expect("it is JSON")
        });
        let reserved = self.0.table.reserve(&id, opening.parent)?;
        let parent = reserved.parent.clone();
        let above = parent.as_ref().map(|run| run.token());
        let token = match (above, opening.deadline) {
            (None, None) => Ok(CancelToken::new()),
            (None, Some(deadline)) => CancelToken::try_with_deadline(deadline),
            (Some(above), None) => Ok(above.child()),
            (Some(above), Some(deadline)) => above.try_child_with_deadline(deadline),
        };
        let token = token.map_err(|NoTimer| OpenError::NoTimer)?;
        if let (Some(above), Some(parent)) = (above, &parent)
            && token
                .cancelled()
                .is_some_and(|why| why.kind == CancelKind::Parent)
        {
            let parent = parent.id().clone();
            return Err(match above.cancelled() {
                Some(why) => OpenError::ParentCancelled(parent, why),
                // The parent has ended meanwhile, and its token passes on the cancel of a run above it.
                None => OpenError::NoParent(parent),
            });
        }
        let before = reserved.before.as_ref();
        // A clock that went back must not give out ids of the generation before again.
        let earliest = before.and_then(|run| run.log().last_id());
        let generation = before.map_or(1, |run| run.generation() + 1);
        let sinks = Arc::clone(&self.0.sinks.lock().shared);
        let log = EventLog::unopened(
            &id,
            reserved.limits,
            lifecycle(
                Word::STARTED,
                parent.as_ref().map(|parent| parent.id()),
                data,
            ),
            earliest.map_or(0, |id| id.ms + 1),
            |log| notify(&sinks, (&id, generation, reserved.number), log),
        );
        let home: Weak<dyn Home> = Arc::downgrade(&self.0.table) as _;
        let run = Run::new(
            id,
            (generation, reserved.number),
            parent.map(|parent| Parent {
                id: parent.id().clone(),
                number: parent.number(),
                is_detached: opening.detached,
            }),
            token,
            log,
            home,
        );
        if let Err(refused) = reserved.fill(&run) {
            run.discard();
            return Err(refused);
        }
        if opening.pending {
            run.end_unstarted_on_cancel();
        } else {
            run.start();
        }
        Ok(run)
    }

    /// Whether any run is live. One relaxed atomic load: for a host that asks at every event and mostly has none.
    #[inline]
    pub fn has_live(&self) -> bool {
        self.0.table.has_live()
    }

    /// The live run of this id, also one that has not started.
    pub fn live(&self, id: &RunId) -> Option<Arc<Run>> {
        self.0.table.live(id)
    }

    /// As [`live`](Self::live), for a thread that must not wait: `None` if the table's lock is taken.
    pub fn try_live(&self, id: &RunId) -> Option<Option<Arc<Run>>> {
        self.0.table.try_live(id)
    }

    /// The latest run of this id, live or finished.
    pub fn get(&self, id: &RunId) -> Option<Arc<Run>> {
        self.0.table.get(id)
    }

    /// The live runs, in no order.
    pub fn active(&self) -> Vec<Arc<Run>> {
        self.0.table.all_live()
    }

    /// Asks the live run of this id, and all below it, to stop; whether there is one, and this was the first to ask.
    /// See [`Run::cancel`].
    pub fn cancel(&self, id: &RunId, kind: CancelKind, reason: &str) -> bool {
        self.live(id).is_some_and(|run| run.cancel(kind, reason))
    }

    /// Asks every live run to stop, ends each with its terminal event, lets none be opened any more, and stops the sinks
    /// once they have taken every event, at most after `patience` in all. Returns true if they have in time.
    ///
    /// First every run is asked and has its end, then the tokens' callbacks run, on this thread: a callback that blocks
    /// keeps this call from returning, but no run from ending. What a sink has not taken in time counts as dropped. A
    /// call of a sink that does not return is left to itself.
    pub fn shutdown(&self, reason: &str, patience: Duration) -> bool {
        let end = Instant::now().checked_add(patience);
        let ending = self.ending(reason, end);
        let has_all = ending.wait_until(end);
        if has_all.is_none() {
            ending.give_up();
        }
        has_all.unwrap_or(false)
    }

    /// The first part of a [`shutdown`](Self::shutdown): all runs have ended, and the sinks are asked to end until `end`.
    pub(crate) fn ending(&self, reason: &str, end: Option<Instant>) -> Ending {
        let mut live = self.0.table.shut();
        // A run before its parent, whose cancel would reach it in the parent's name.
        live.sort_unstable_by_key(|run| std::cmp::Reverse(run.number()));
        let reason: Arc<str> = reason.into();
        let marks = live.iter().map(|run| {
            let token = run.token();
            token.mark(CancelKind::Shutdown, Arc::clone(&reason))
        });
        let marks: Vec<_> = marks.collect();
        for run in &live {
            run.finish_cancelled();
        }
        // A run that another thread is ending is live no more, and its terminal event may still be on its way.
        self.0.table.wait_until_settled(end);
        // All that the sinks will ever be told they have been told.
        let stopping: Vec<_> = {
            let sinks = self.0.sinks.lock();
            sinks.handles.iter().map(|sink| sink.stop(end)).collect()
        };
        for mark in marks {
            mark.call();
        }
        Ending(stopping)
    }

    /// Waits until the sinks have taken every event whose emit returned before this call, and the terminal event of every
    /// run that anybody has seen ended, and have flushed; at most for `timeout` in all. Returns true if they have.
    pub fn flush(&self, timeout: Duration) -> bool {
        let end = Instant::now().checked_add(timeout);
        let mut flushing = self.flushing(end).into_iter();
        flushing.all(|sink| sink.wait_until(end) == Some(true))
    }

    /// Waits until the sinks know of every end that anybody has seen.
    pub(crate) fn settle(&self, end: Option<Instant>) {
        self.0.table.wait_until_settled(end);
    }

    /// Asks every sink to flush.
    pub(crate) fn flushing(&self, end: Option<Instant>) -> Vec<Flushing> {
        self.settle(end);
        let sinks = self.sinks();
        sinks.iter().map(|sink| sink.flushing(end)).collect()
    }

    /// How many runs there are.
    pub fn stats(&self) -> RunsStats {
        self.0.table.stats()
    }

    /// How many subscriptions of this table's runs are open, and how far the slowest is behind. Locks each log in turn.
    pub fn readers(&self) -> ReaderStats {
        self.0.table.readers()
    }

    /// Gives the events of all runs that are opened from now on to this sink too, each run's in its order.
    ///
    /// # Errors
    ///
    /// The sink, if there is one of its name.
    pub fn add_sink(&self, sink: SinkHandle) -> Result<(), SinkHandle> {
        let mut sinks = self.0.sinks.lock();
        if sinks.handles.iter().any(|its| its.name() == sink.name()) {
            return Err(sink);
        }
        sinks.handles.push(sink);
        sinks.share();
        Ok(())
    }

    /// Removes a sink: it gets nothing of the runs that are opened from now on. Returns whether the sink was there.
    /// [Closing](SinkHandle::close) it is the caller's.
    pub fn remove_sink(&self, sink: &SinkHandle) -> bool {
        let mut sinks = self.0.sinks.lock();
        let Some(place) = sinks.handles.iter().position(|its| its == sink) else {
            return false;
        };
        // Not the last handle: the caller has one.
        sinks.handles.remove(place);
        sinks.share();
        true
    }

    /// The sinks, in the order in which they were added.
    pub fn sinks(&self) -> Vec<SinkHandle> {
        self.0.sinks.lock().handles.clone()
    }
}

/// The ends of the sinks that a shutdown waits for.
#[must_use]
pub(crate) struct Ending(Vec<Stopping>);

impl Ending {
    /// Waits for all sinks, at most until `end`. Returns whether they have taken everything; None if one is not done yet.
    pub(crate) fn wait_until(&self, end: Option<Instant>) -> Option<bool> {
        // All of them: a sink that is late must not keep another from being waited for.
        let ends: Vec<_> = self.0.iter().map(|sink| sink.wait_until(end)).collect();
        let all: Option<Vec<_>> = ends.into_iter().collect();
        all.map(|all| all.into_iter().all(|has_all| has_all))
    }

    /// Nobody waits any more: what the sinks have not taken counts as dropped from now on.
    pub(crate) fn give_up(&self) {
        for sink in &self.0 {
            sink.give_up();
        }
    }
}

#[cfg(all(test, not(loom)))]
#[expect(clippy::unwrap_used, reason = "a test may, and its helpers")]
mod tests {
    use super::*;
    use crate::log::Ended;
    use crate::log::{Overflow, Read, Start};
    use crate::run::run::RunState;
    use crate::wire::Body;
    use serde_json::json;

    const LONG: Duration = Duration::from_secs(30);

    fn open(runs: &Runs, id: i64) -> Arc<Run> {
        runs.open(id, Opening::default()).unwrap()
    }

    fn below(parent: &Arc<Run>) -> Opening<'_> {
        Opening {
            parent: Some(parent),
            ..Opening::default()
        }
    }

    fn say(run: &Run) -> Result<crate::EventId, Ended> {
        run.emit(&Body::from_json(
            Word::LLM_STREAM,
            b"null",
            br#"{"content":"x"}"#,
        ))
    }

    fn words(run: &Run) -> Vec<String> {
        match run
            .subscribe(&Start::Beginning, Overflow::Gap)
            .read(usize::MAX, Some(Duration::ZERO))
            .unwrap()
        {
            Read::Events(frames) => frames
                .iter()
                .map(|frame| frame.word().to_string())
                .collect(),
            Read::TimedOut | Read::Ended => Vec::new(),
        }
    }

    /// A run begins with its lifecycle event, ends with one, and what comes later is refused.
    #[test]
    fn one_beginning_one_end() {
        let runs = Runs::default();
        let run = open(&runs, 1);
        say(&run).unwrap();
        assert_eq!(run.state(), RunState::Running);
        assert!(run.complete(&json!({})).unwrap());
        assert!(!run.complete(&json!({})).unwrap());
        assert!(!run.fail("late", "later"));
        assert!(!run.cancel(CancelKind::User, "too late"));
        assert_eq!(say(&run), Err(Ended));
        assert_eq!(run.state(), RunState::Completed);
        assert!(run.wait(None));
        assert_eq!(
            words(&run),
            ["lifecycle.started", "llm.stream", "lifecycle.completed"]
        );
    }

    /// A live id is taken; a finished one begins a new generation, and the old one's handles stay with the old log.
    #[test]
    fn generations_are_apart() {
        let runs = Runs::default();
        let first = open(&runs, 1);
        assert_eq!(
            runs.open(1, Opening::default()).unwrap_err(),
            OpenError::Live(1.into())
        );
        first.fail("broken", "badly");
        let second = open(&runs, 1);
        assert_eq!((first.generation(), second.generation()), (1, 2));
        assert_eq!(say(&first), Err(Ended));
        say(&second).unwrap();
        assert!(Arc::ptr_eq(&runs.get(&1.into()).unwrap(), &second));
        assert_eq!(words(&first), ["lifecycle.started", "lifecycle.failed"]);
    }

    /// A cancel reaches the run and its descendants and nothing else; an error that follows is its cancellation.
    #[test]
    fn cancel_reaches_descendants() {
        let runs = Runs::default();
        let (parent, other) = (open(&runs, 1), open(&runs, 2));
        let child = runs.open("child", below(&parent)).unwrap();
        assert!(runs.cancel(&1.into(), CancelKind::User, "enough"));
        assert!(!runs.cancel(&1.into(), CancelKind::User, "again"));
        assert!(!runs.cancel(&9.into(), CancelKind::User, "nobody"));
        assert!(child.token().is_cancelled() && !other.token().is_cancelled());
        assert!(child.fail("interrupted", "by its cancellation"));
        assert_eq!(child.state(), RunState::Cancelled);
        let end = child.log().terminal().unwrap().event().unwrap();
        assert_eq!(end.data["kind"], "parent");
        assert_eq!(end.data["parent_run_id"], 1);
        assert_eq!(parent.state(), RunState::Running);
        // The run that was there before is no parent, though one of its id is live.
        assert!(parent.finish_cancelled());
        let _later = open(&runs, 1);
        let late = runs.open("late", below(&parent));
        assert_eq!(late.unwrap_err(), OpenError::NoParent(1.into()));
    }

    /// Leaving a scope ends the run: well, as cancelled, or, in a panic, as failed.
    #[test]
    fn a_scope_ends_its_run() {
        let runs = Runs::default();
        let (well, stopped, broken) = (open(&runs, 1), open(&runs, 2), open(&runs, 3));
        drop(well.scope());
        stopped.cancel(CancelKind::User, "enough");
        drop(stopped.scope());
        let scope = broken.scope();
        let panicked = std::thread::spawn(move || {
            let _scope = scope;
            panic!("on purpose");
        });
        assert!(panicked.join().is_err());
        let states = [&well, &stopped, &broken].map(|run| run.state());
        assert_eq!(
            states,
            [RunState::Completed, RunState::Cancelled, RunState::Failed]
        );
        let counted = runs.stats();
        assert_eq!((counted.live, counted.finished, counted.opened), (0, 3, 3));
    }

    /// A table remembers so many finished runs, and for so long.
    #[test]
    fn finished_runs_are_forgotten() {
        let few = Runs::new(Options {
            finished: 2,
            ..Options::default()
        });
        for id in 0..5 {
            open(&few, id).complete(&json!({})).unwrap();
        }
        let stats = few.stats();
        assert_eq!((stats.live, stats.finished, stats.opened), (0, 2, 5));
        assert!(few.get(&2.into()).is_none() && few.get(&3.into()).is_some());

        let brief = Runs::new(Options {
            grace: Duration::ZERO,
            ..Options::default()
        });
        open(&brief, 1).complete(&json!({})).unwrap();
        assert!(brief.get(&1.into()).is_none());
        assert_eq!(brief.stats().finished, 0);
    }

    /// Shutting down ends every run with its terminal event, and none is opened after it.
    #[test]
    fn shutdown_ends_all() {
        let runs = Runs::default();
        let all: Vec<_> = (0..5).map(|id| open(&runs, id)).collect();
        all[0].complete(&json!({})).unwrap();
        assert!(runs.shutdown("going home", LONG));
        assert!(
            all[1..]
                .iter()
                .all(|run| run.state() == RunState::Cancelled)
        );
        assert_eq!(all[0].state(), RunState::Completed);
        assert_eq!(
            runs.open(9, Opening::default()).unwrap_err(),
            OpenError::ShutDown
        );
        assert_eq!(runs.stats().live, 0);
    }

    /// However many threads end a run at once, in whichever ways, it has one terminal event, and it is the last.
    #[test]
    fn one_end_from_many_threads() {
        for _ in 0..if cfg!(miri) { 3 } else { 200 } {
            let runs = Runs::default();
            let run = open(&runs, 1);
            let ends: usize = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..6)
                    .map(|number| {
                        let run = &run;
                        scope.spawn(move || {
                            let _ = say(run);
                            match number % 3 {
                                0 => run.complete(&json!({})).unwrap(),
                                1 => run.fail("error", "details"),
                                _ => run.finish_cancelled(),
                            }
                        })
                    })
                    .collect();
                threads
                    .into_iter()
                    .map(|thread| usize::from(thread.join().unwrap()))
                    .sum()
            });
            assert_eq!(ends, 1);
            let words = words(&run);
            let terminal =
                |word: &String| word.starts_with("lifecycle.") && word != "lifecycle.started";
            assert_eq!(words.iter().filter(|word| terminal(word)).count(), 1);
            assert!(words.last().is_some_and(terminal));
        }
    }

    /// As soon as somebody has seen a run's end, another of its id can be opened.
    #[test]
    fn an_end_that_was_seen_is_an_end() {
        let runs = Runs::default();
        for generation in 1..if cfg!(miri) { 4 } else { 200 } {
            let run = open(&runs, 1);
            assert_eq!(run.generation(), generation);
            std::thread::scope(|scope| {
                scope.spawn(|| run.complete(&json!({})).unwrap());
                assert!(run.wait(Some(Duration::from_secs(30))));
            });
        }
        let run = open(&runs, 1);
        std::thread::scope(|scope| {
            scope.spawn(|| run.complete(&json!({})).unwrap());
            assert!(run.wait(Some(Duration::from_secs(30))));
            drop(open(&runs, 1));
        });
    }

    /// A run whose last handle goes before its end has failed, and its readers hear of it.
    #[test]
    fn an_abandoned_run_has_an_end() {
        let runs = Runs::default();
        let log = Arc::clone(open(&runs, 1).event_log());
        assert!(log.terminal().is_none());
        drop(runs);
        assert_eq!(
            log.terminal().unwrap().event().unwrap().data["error"],
            "abandoned"
        );
    }
}
