//! The runs of a process: opened, found, cancelled and shut down, with the sinks that all their events go to.

use crate::cancel::{CancelToken, NoTimer};
use crate::cancelled::CancelKind;
use crate::event::Word;
use crate::event_log::{EventLog, Limits, Tap};
use crate::object::Object;
use crate::run::{Home, Run, lifecycle};
use crate::run_id::RunId;
use crate::sink::{Feed, Outlet, SinkStats};
use crate::sync::Mutex;
use crate::table::{OpenError, RunsStats, Table};
use serde_json::value::RawValue;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How much a table remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How much each run's log holds.
    pub limits: Limits,
    /// How long a finished run can still be found and read. When the time is over it goes, whether or not anybody looks:
    /// the thread that watches deadlines also watches for this.
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

/// How a run is opened. `Opening::default()` is a run of its own without a deadline, that starts at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Opening<'a> {
    /// The live run that it is to be a part of: this one, not a later one of the same id.
    pub parent: Option<&'a Arc<Run>>,
    /// When it is cancelled, unless it has ended.
    pub deadline: Option<Instant>,
    /// The data of its `lifecycle.started`, to which `parent_run_id` is added. What is no object becomes
    /// `{"data": …}`.
    pub data: Option<&'a RawValue>,
    /// Whether it is to wait for [`Run::start`], or the first event, and end unstarted if it is cancelled before.
    pub pending: bool,
}

/// The sinks, and what the next run's log gets of them.
#[derive(Default)]
struct Sinks {
    outlets: Vec<Outlet>,
    feeds: Arc<[Feed]>,
}

struct Inner {
    limits: Limits,
    /// Before the sinks, so that the last words of runs that go with it are written.
    table: Arc<Table>,
    /// Protects the list of the sinks. Under it: list operations; nobody waits for a sink under it.
    sinks: Mutex<Sinks>,
}

/// The runs of a process, or of a part of it. Cloning it gives another handle of the same table; all methods may be
/// called from any thread. Dropping the last handle abandons the live runs and waits for the sinks.
///
/// In the child of a fork a lock of the table may be held by a thread that is not there, and the sinks' threads are
/// not there either. A host that forks puts a new table in the place of its old one there, and gives the old one to
/// [`std::mem::forget`]: so nobody waits for the sinks, and the runs of the parent are never dropped. Handles of these
/// runs, if there are any, must not be used in the child but to be dropped.
#[derive(Clone)]
pub struct Runs(Arc<Inner>);

impl fmt::Debug for Runs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stats = self.0.table.stats_as_is();
        f.debug_tuple("Runs").field(&stats).finish()
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
            limits: options.limits,
            table: Table::new(options.grace, options.finished),
            sinks: Mutex::default(),
        }))
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
        let above = reserved.parent.as_ref().map(|run| run.token());
        let token = match (above, opening.deadline) {
            (None, None) => Ok(CancelToken::new()),
            (None, Some(deadline)) => CancelToken::try_with_deadline(deadline),
            (Some(above), None) => Ok(above.child()),
            (Some(above), Some(deadline)) => above.try_child_with_deadline(deadline),
        };
        let token = token.map_err(|NoTimer| OpenError::NoTimer)?;
        if let (Some(above), Some(parent)) = (above, opening.parent)
            && token
                .cancelled()
                .is_some_and(|why| why.kind == CancelKind::Parent)
        {
            let why = above.cancelled().expect("a child of it is");
            return Err(OpenError::ParentCancelled(parent.id().clone(), why));
        }
        let before = reserved.before.as_ref();
        // A clock that went back must not give out ids of the generation before again.
        let earliest = before.and_then(|run| run.log().last_id());
        let log = EventLog::unopened(
            &id,
            self.0.limits,
            self.tap(),
            lifecycle(
                Word::STARTED,
                opening.parent.map(|parent| parent.id()),
                data,
            ),
            earliest.map_or(0, |id| id.ms + 1),
        );
        let generation = before.map_or(1, |run| run.generation() + 1);
        let home: Weak<dyn Home> = Arc::downgrade(&self.0.table) as _;
        let run = Run::new(
            id,
            (generation, reserved.number),
            opening.parent.map(|parent| parent.id().clone()),
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

    /// Asks every live run to stop, ends each with its terminal event, lets none be opened any more, and waits until
    /// the sinks have written what they were offered, at most for `patience` in all. Whether they have.
    ///
    /// First every run is asked and has its end, then the tokens' callbacks run, on this thread: one that blocks keeps
    /// this call from returning, and no run from ending. A sink that has not written all in time goes on by itself, and
    /// nobody waits for it again but the next call of this.
    pub fn shutdown(&self, reason: &str, patience: Duration) -> bool {
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
        // All that they will ever be offered is there.
        let stopping: Vec<_> = {
            let mut sinks = self.0.sinks.lock();
            sinks.outlets.iter_mut().map(Outlet::stop).collect()
        };
        for mark in marks {
            mark.call();
        }
        let end = Instant::now().checked_add(patience);
        let all = stopping.iter().all(|sink| sink.wait_until(end));
        if !all {
            let mut sinks = self.0.sinks.lock();
            sinks.outlets.iter_mut().for_each(Outlet::detach);
        }
        all
    }

    /// How many runs there are.
    pub fn stats(&self) -> RunsStats {
        self.0.table.stats()
    }

    /// Gives every event of the runs that are opened from now on to this sink too, in each run's order.
    ///
    /// # Errors
    ///
    /// The sink, if there is one of its name.
    pub fn add_sink(&self, outlet: Outlet) -> Result<(), Outlet> {
        let mut sinks = self.0.sinks.lock();
        if sinks.outlets.iter().any(|its| its.name() == outlet.name()) {
            return Err(outlet);
        }
        let feeds = sinks.feeds.iter().cloned();
        sinks.feeds = feeds.chain([outlet.feed()]).collect();
        sinks.outlets.push(outlet);
        Ok(())
    }

    /// Takes the sink of this name away, waits until it has written what it was offered, and says what it did.
    ///
    /// What runs that are live say after that does not reach it. If it hangs, so does this.
    pub fn remove_sink(&self, name: &str) -> Option<SinkStats> {
        let outlet = {
            let mut sinks = self.0.sinks.lock();
            let mut names = sinks.outlets.iter().map(Outlet::name);
            let place = names.position(|its| its == name)?;
            let outlet = sinks.outlets.remove(place);
            sinks.feeds = sinks.outlets.iter().map(Outlet::feed).collect();
            outlet
        };
        Some(outlet.close())
    }

    /// What the sinks have done, by name.
    pub fn sinks(&self) -> Vec<(String, SinkStats)> {
        let sinks = self.0.sinks.lock();
        let outlets = sinks.outlets.iter();
        outlets
            .map(|outlet| (outlet.name().to_owned(), outlet.stats()))
            .collect()
    }

    fn tap(&self) -> Option<Tap> {
        let feeds = Arc::clone(&self.0.sinks.lock().feeds);
        (!feeds.is_empty()).then(|| -> Tap {
            Box::new(move |frame| feeds.iter().for_each(|feed| feed.offer(frame)))
        })
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
    use serde_json::json;
    use std::io;
    use std::sync::mpsc;

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
        assert_eq!(
            runs.stats(),
            RunsStats {
                finished: 3,
                opened: 3,
                ..RunsStats::default()
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
            open(&few, id).complete(&json!({})).unwrap();
        }
        assert_eq!(
            few.stats(),
            RunsStats {
                finished: 2,
                opened: 5,
                ..RunsStats::default()
            }
        );
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
        let runs = Runs::default();
        runs.add_sink(outlet).unwrap();
        let run = open(&runs, 1);
        assert!(runs.open(1, Opening::default()).is_err());
        let elsewhere = open(&Runs::default(), 1);
        assert!(runs.open(2, below(&elsewhere)).is_err());
        run.complete(&"text").unwrap();
        assert!(runs.shutdown("going home", LONG));
        assert!(runs.open(3, Opening::default()).is_err());
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
        let log = Arc::clone(open(&runs, 1).log());
        assert!(log.terminal().is_none());
        drop(runs);
        assert_eq!(
            log.terminal().unwrap().event().unwrap().data["error"],
            "abandoned"
        );
    }
}
