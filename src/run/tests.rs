//! Tests of runs that look at one table.
#![expect(clippy::unwrap_used, reason = "a test may, and its helpers")]

use super::{OpenError, Options, Run, RunState, Runs};
use crate::cancel::CancelKind;
use crate::log::{Ended, Overflow, Read, Start};
use crate::wire::{EncodedBody, EventKind};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(30);

fn open(runs: &Runs, id: i64) -> Arc<Run> {
    runs.open(id).unwrap()
}

fn say(run: &Run) -> Result<crate::EventId, Ended> {
    run.emit(&EncodedBody::from_json(
        EventKind::LLM_STREAM,
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
            .map(|frame| frame.kind().to_string())
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
    assert_eq!(runs.open(1).unwrap_err(), OpenError::Live(1.into()));
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
    let child = runs.builder("child").parent(&parent).open().unwrap();
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
    let late = runs.builder("late").parent(&parent).open();
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
    assert_eq!(runs.open(9).unwrap_err(), OpenError::ShutDown);
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
    let log = Arc::clone(&open(&runs, 1).log);
    assert!(log.terminal().is_none());
    drop(runs);
    assert_eq!(
        log.terminal().unwrap().event().unwrap().data["error"],
        "abandoned"
    );
}
