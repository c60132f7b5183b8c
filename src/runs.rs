//! The table of live and recently finished runs.

use crate::cancel::{CancelKind, CancelToken};
use crate::event::Word;
use crate::event_log::{EventLog, Limits, Tap};
use crate::run::{Run, lifecycle};
use crate::run_id::RunId;
use crate::sink::{Outlet, SinkStats};
use crate::sync::Mutex;
use rustc_hash::{FxHashMap, FxHashSet};
use serde_json::{Map, Value};
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How much a table remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How much each run's log holds.
    pub limits: Limits,
    /// How long a finished run can still be found and read.
    pub grace: Duration,
    /// How many finished runs can be found at most; the one that ended first goes first.
    pub finished: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            grace: Duration::from_secs(300),
            finished: 1_000,
        }
    }
}

/// Why a run was not opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// A run of this id is live.
    Live(RunId),
    /// The run that it was to be a part of is not live.
    NoParent(RunId),
    /// The table was shut down.
    ShutDown,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Live(id) => write!(
                f,
                "run {id} is live: it must end before another of this id begins"
            ),
            Self::NoParent(id) => write!(f, "the parent run {id} is not live"),
            Self::ShutDown => f.write_str("the runs were shut down: none is opened any more"),
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
}

#[derive(Default)]
struct Table {
    /// Ids that are taken by a run that is just being made.
    opening: FxHashSet<RunId>,
    live: FxHashMap<RunId, Arc<Run>>,
    finished: FxHashMap<RunId, Arc<Run>>,
    /// The finished runs in the order of their ends: when, which, of what generation.
    ended: VecDeque<(Instant, RunId, u64)>,
    shut_down: bool,
}

impl Table {
    /// Takes out the finished runs that are too old or too many. They are dropped by the caller, outside the lock.
    fn expire(&mut self, options: &Options) -> Vec<Arc<Run>> {
        let mut expired = Vec::new();
        while let Some((at, id, generation)) = self.ended.front() {
            if self.ended.len() <= options.finished && at.elapsed() < options.grace {
                break;
            }
            // A later generation may have taken its place.
            if self
                .finished
                .get(id)
                .is_some_and(|latest| latest.generation() == *generation)
            {
                expired.extend(self.finished.remove(id));
            }
            self.ended.pop_front();
        }
        expired
    }
}

struct Inner {
    options: Options,
    /// Who gets every run's events.
    outlets: Arc<[Outlet]>,
    /// Protects the table. Under it: map operations; never a log's or a token's lock, never a drop of a run.
    table: Mutex<Table>,
}

/// The runs of a process, or of a part of it. Cloning it gives another handle of the same table.
#[derive(Clone)]
pub struct Runs(Arc<Inner>);

impl fmt::Debug for Runs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Runs").field(&self.stats()).finish()
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
        Self::with_sinks(options, Vec::new())
    }

    /// An empty table, each of whose runs' events goes to these sinks too, in its order.
    pub fn with_sinks(options: Options, outlets: Vec<Outlet>) -> Self {
        Self(Arc::new(Inner {
            options,
            outlets: outlets.into(),
            table: Mutex::new(Table::default()),
        }))
    }

    /// Opens a run: its first event, `lifecycle.started` with `data`, is in its log before anybody can find it.
    ///
    /// Its token is a child of its parent's, with the deadline if there is one.
    ///
    /// # Errors
    ///
    /// See [`OpenError`]; then nothing has changed, and no event was emitted.
    pub fn open(
        &self,
        id: impl Into<RunId>,
        parent: Option<&RunId>,
        deadline: Option<Instant>,
        data: Map<String, Value>,
    ) -> Result<Arc<Run>, OpenError> {
        let id = id.into();
        let (above, generation) = self.reserve(&id, parent)?;
        let token = match (above, deadline) {
            (None, None) => CancelToken::new(),
            (None, Some(deadline)) => CancelToken::with_deadline(deadline),
            (Some(above), None) => above.child(),
            (Some(above), Some(deadline)) => above.child_with_deadline(deadline),
        };
        let log = EventLog::new(&id, self.0.options.limits, self.tap());
        let appended = log.append(&lifecycle(Word::STARTED, parent, Value::Object(data)));
        debug_assert!(appended.is_ok(), "a new log has not ended");
        let inner = Arc::downgrade(&self.0);
        let on_end = Box::new(move |run: &Run| {
            if let Some(inner) = inner.upgrade() {
                Self(inner).has_ended(run);
            }
        });
        let run = Arc::new(Run::new(
            id.clone(),
            generation,
            parent.cloned(),
            token,
            log,
            on_end,
        ));

        let mut table = self.0.table.lock();
        table.opening.remove(&id);
        table.live.insert(id, Arc::clone(&run));
        let shut_down = table.shut_down;
        drop(table);
        if shut_down {
            // shutdown() came in between, and did not see it.
            run.cancel(CancelKind::Shutdown, "the runs were shut down");
            run.finish_cancelled();
        }
        Ok(run)
    }

    /// Takes the id for a run that is about to be made: its parent's token, and its generation.
    fn reserve(
        &self,
        id: &RunId,
        parent: Option<&RunId>,
    ) -> Result<(Option<CancelToken>, u64), OpenError> {
        // Dropped after the guard.
        let _expired;
        let mut table = self.0.table.lock();
        _expired = table.expire(&self.0.options);
        if table.shut_down {
            return Err(OpenError::ShutDown);
        }
        if table.live.contains_key(id) || table.opening.contains(id) {
            return Err(OpenError::Live(id.clone()));
        }
        let above = match parent {
            None => None,
            Some(parent) => {
                let run = table
                    .live
                    .get(parent)
                    .ok_or_else(|| OpenError::NoParent(parent.clone()))?;
                Some(run.token().clone())
            }
        };
        let generation = table.finished.get(id).map_or(1, |run| run.generation() + 1);
        table.opening.insert(id.clone());
        Ok((above, generation))
    }

    /// The latest run of this id, live or finished.
    pub fn get(&self, id: &RunId) -> Option<Arc<Run>> {
        let mut table = self.0.table.lock();
        let expired = table.expire(&self.0.options);
        let run = table
            .live
            .get(id)
            .or_else(|| table.finished.get(id))
            .cloned();
        drop(table);
        drop(expired);
        run
    }

    /// The live runs, in no order.
    pub fn active(&self) -> Vec<Arc<Run>> {
        self.0.table.lock().live.values().cloned().collect()
    }

    /// Asks the live run of this id, and all below it, to stop; whether there is one, and this was the first to ask.
    pub fn cancel(&self, id: &RunId, kind: CancelKind, reason: &str) -> bool {
        let run = self.0.table.lock().live.get(id).cloned();
        run.is_some_and(|run| run.cancel(kind, reason))
    }

    /// Asks every live run to stop, ends each with its terminal event, and lets none be opened any more.
    pub fn shutdown(&self, reason: &str) {
        let live: Vec<_> = {
            let mut table = self.0.table.lock();
            table.shut_down = true;
            table.live.values().cloned().collect()
        };
        for run in &live {
            run.cancel(CancelKind::Shutdown, reason);
        }
        for run in live {
            run.finish_cancelled();
        }
    }

    /// How many runs there are.
    pub fn stats(&self) -> RunsStats {
        let mut table = self.0.table.lock();
        let expired = table.expire(&self.0.options);
        let stats = RunsStats {
            live: table.live.len(),
            finished: table.finished.len(),
        };
        drop(table);
        drop(expired);
        stats
    }

    /// What the sinks have done, by name.
    pub fn sinks(&self) -> Vec<(String, SinkStats)> {
        let outlets = self.0.outlets.iter();
        outlets
            .map(|outlet| (outlet.name().to_owned(), outlet.stats()))
            .collect()
    }

    fn tap(&self) -> Option<Tap> {
        let outlets = Arc::clone(&self.0.outlets);
        (!outlets.is_empty()).then(|| -> Tap {
            Box::new(move |frame| outlets.iter().for_each(|outlet| outlet.offer(frame)))
        })
    }

    fn has_ended(&self, run: &Run) {
        let mut table = self.0.table.lock();
        let Some(run) = table.live.remove(run.id()) else {
            return;
        };
        let replaced = table.finished.insert(run.id().clone(), Arc::clone(&run));
        table
            .ended
            .push_back((Instant::now(), run.id().clone(), run.generation()));
        let expired = table.expire(&self.0.options);
        drop(table);
        drop((replaced, expired));
    }
}

#[cfg(all(test, not(loom)))]
#[expect(clippy::unwrap_used, reason = "a test may, and its helpers")]
mod tests {
    use super::*;
    use crate::event_log::Ended;
    use crate::frame::{Body, Frame};
    use crate::run::RunState;
    use crate::sink::Sink;
    use crate::subscription::{Overflow, Read, Start};
    use std::io;
    use std::sync::mpsc;

    fn open(runs: &Runs, id: i64) -> Arc<Run> {
        runs.open(id, None, None, Map::new()).unwrap()
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
        assert!(run.complete(&Map::new()).unwrap());
        assert!(!run.complete(&Map::new()).unwrap());
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
            runs.open(1, None, None, Map::new()).unwrap_err(),
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
        let child = runs
            .open("child", Some(parent.id()), None, Map::new())
            .unwrap();
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
        assert!(
            runs.open("late", Some(&"gone".into()), None, Map::new())
                .is_err()
        );
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
        assert_eq!(
            runs.stats(),
            RunsStats {
                live: 0,
                finished: 3
            }
        );
    }

    /// A table remembers so many finished runs, and for so long.
    #[test]
    fn finished_runs_are_forgotten() {
        let few = Runs::new(Options {
            finished: 2,
            ..Options::default()
        });
        for id in 0..5 {
            open(&few, id).complete(&Map::new()).unwrap();
        }
        assert_eq!(
            few.stats(),
            RunsStats {
                live: 0,
                finished: 2
            }
        );
        assert!(few.get(&2.into()).is_none() && few.get(&3.into()).is_some());

        let brief = Runs::new(Options {
            grace: Duration::ZERO,
            ..Options::default()
        });
        open(&brief, 1).complete(&Map::new()).unwrap();
        assert!(brief.get(&1.into()).is_none());
        assert_eq!(brief.stats(), RunsStats::default());
    }

    /// Shutting down ends every run with its terminal event, and none is opened after it.
    #[test]
    fn shutdown_ends_all() {
        let runs = Runs::default();
        let all: Vec<_> = (0..5).map(|id| open(&runs, id)).collect();
        all[0].complete(&Map::new()).unwrap();
        runs.shutdown("going home");
        assert!(
            all[1..]
                .iter()
                .all(|run| run.state() == RunState::Cancelled)
        );
        assert_eq!(all[0].state(), RunState::Completed);
        assert_eq!(
            runs.open(9, None, None, Map::new()).unwrap_err(),
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
                                0 => run.complete(&Map::new()).unwrap(),
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

    /// Opening a run that is refused emits nothing, to no sink; one that is not is seen from its first event on.
    #[test]
    fn a_refused_run_says_nothing() {
        struct Words(mpsc::Sender<String>);
        impl Sink for Words {
            fn write(&mut self, frames: &[Arc<Frame>]) -> io::Result<()> {
                frames
                    .iter()
                    .try_for_each(|frame| self.0.send(frame.word().to_string()))
                    .map_err(io::Error::other)
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (sender, words) = mpsc::channel();
        let outlet = Outlet::start("words", Words(sender), 100).unwrap();
        let runs = Runs::with_sinks(Options::default(), vec![outlet]);
        let run = open(&runs, 1);
        assert!(runs.open(1, None, None, Map::new()).is_err());
        assert!(
            runs.open(2, Some(&"gone".into()), None, Map::new())
                .is_err()
        );
        run.complete(&"text").unwrap();
        runs.shutdown("going home");
        assert!(runs.open(3, None, None, Map::new()).is_err());
        assert_eq!(
            run.log().terminal().unwrap().event().unwrap().data["result"],
            "text"
        );
        drop((run, runs));
        assert_eq!(
            words.iter().collect::<Vec<_>>(),
            ["lifecycle.started", "lifecycle.completed"]
        );
    }

    /// As soon as somebody has seen a run's end, another of its id can be opened.
    #[test]
    fn an_end_that_was_seen_is_an_end() {
        let runs = Runs::default();
        for generation in 1..if cfg!(miri) { 4 } else { 200 } {
            let run = open(&runs, 1);
            assert_eq!(run.generation(), generation);
            std::thread::scope(|scope| {
                scope.spawn(|| run.complete(&Map::new()).unwrap());
                assert!(run.wait(Some(Duration::from_secs(30))));
            });
        }
        let run = open(&runs, 1);
        std::thread::scope(|scope| {
            scope.spawn(|| run.complete(&Map::new()).unwrap());
            assert!(run.wait(Some(Duration::from_secs(30))));
            drop(open(&runs, 1));
        });
    }

    /// A run whose last handle goes before its end has failed, and its readers hear of it.
    #[test]
    fn an_abandoned_run_has_an_end() {
        let runs = Runs::default();
        let log = Arc::clone(open(&runs, 1).log());
        assert!(log.terminal().is_none());
        drop(runs);
        assert_eq!(
            log.terminal().unwrap().event().unwrap().data["error"],
            "abandoned"
        );
    }
}
