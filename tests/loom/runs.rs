//! Runs: an opening that races a shutdown, an end or a cancel; an end that races a cancel.

use llm_callback::{CancelKind, EncodedBody, EventKind, Run, RunState, Runs};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use std::time::Duration;

fn token() -> EncodedBody {
    EncodedBody::from_json(EventKind::LLM_STREAM, b"null", b"{}")
}

fn open(runs: &Runs, pending: bool) -> std::sync::Arc<Run> {
    runs.builder(1).pending(pending).open().unwrap()
}

/// Every run that is opened while the table is shut down has its end, as cancelled, and none is left live.
#[test]
fn shutdown_against_open() {
    loom::model(|| {
        let runs = Runs::default();
        let opening = {
            let runs = runs.clone();
            thread::spawn(move || runs.open(1).ok())
        };
        runs.shutdown("", Duration::ZERO);
        let run = opening.join().unwrap();
        assert_eq!(runs.stats().live, 0);
        assert!(!runs.has_live());
        if let Some(run) = run {
            assert_eq!(run.state(), RunState::Cancelled);
            assert!(run.log().size().appended <= 2);
        }
    });
}

/// A run of the same id is opened only after the end, and what comes from the handle of the older one is refused.
#[test]
fn finish_against_open() {
    loom::model(|| {
        let runs = Runs::default();
        let first = open(&runs, false);
        let ending = {
            let first = first.clone();
            thread::spawn(move || first.complete("done").unwrap())
        };
        let second = runs.open(1).ok();
        if let Some(second) = &second {
            assert!(first.emit(&token()).is_err());
            assert_eq!((second.generation(), second.log().size().appended), (2, 1));
            assert!(std::sync::Arc::ptr_eq(
                &runs.live(&1.into()).unwrap(),
                second
            ));
        }
        assert!(ending.join().unwrap());
        assert_eq!(first.log().size().appended, 2);
        assert_eq!(runs.has_live(), second.is_some());
    });
}

/// Whoever sees that a run has ended finds it live no more, and can open another of its id.
#[test]
fn seen_end_against_open() {
    loom::model(|| {
        let runs = Runs::default();
        let first = open(&runs, false);
        let ending = {
            let first = first.clone();
            thread::spawn(move || first.complete("done").unwrap())
        };
        if first.state() == RunState::Completed {
            assert!(!runs.has_live() && runs.live(&1.into()).is_none());
            assert_eq!(open(&runs, false).generation(), 2);
        }
        assert!(ending.join().unwrap());
        assert!(runs.get(&1.into()).is_some());
    });
}

/// If two threads end a run at once, one of them wins, with the annotations made before. `annotate` returns whether its
/// annotation made it into the terminal event.
#[test]
fn annotate_against_two_ends() {
    loom::model(|| {
        let runs = Runs::default();
        let run = open(&runs, false);
        assert!(run.annotate("early").unwrap());
        let ends = [(); 2].map(|()| {
            let run = run.clone();
            thread::spawn(move || run.fail("broken", ""))
        });
        let is_in = run.annotate("late").unwrap();
        let ends = ends.map(|end| end.join().unwrap());
        assert!(ends[0] != ends[1]);
        let last = run.log().terminal().unwrap();
        let data = std::str::from_utf8(last.data()).unwrap();
        let annotation = if is_in { "late" } else { "early" };
        assert!(data.contains(annotation), "{data}");
    });
}

/// A pending run that is cancelled while it starts either never starts, or starts and goes on until it is told.
#[test]
fn start_against_cancel() {
    loom::model(|| {
        let runs = Runs::default();
        let run = open(&runs, true);
        let cancelling = {
            let run = run.clone();
            thread::spawn(move || run.cancel(CancelKind::User, ""))
        };
        let has_started = run.start();
        assert!(cancelling.join().unwrap());
        let state = if has_started {
            RunState::Running
        } else {
            RunState::Cancelled
        };
        assert_eq!((run.state(), run.log().size().appended), (state, 1));
        assert_eq!(runs.has_live(), has_started);
    });
}

/// A token is cancelled exactly if its callback was called, also if its run ends meanwhile.
#[test]
fn finish_against_cancel() {
    loom::model(|| {
        let runs = Runs::default();
        let (run, calls) = (open(&runs, false), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&calls);
        run.token().on_cancel(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let cancelling = {
            let run = run.clone();
            thread::spawn(move || run.cancel(CancelKind::User, ""))
        };
        assert!(run.complete("done").unwrap());
        let was_first = cancelling.join().unwrap();
        let is_cancelled = run.token().is_cancelled();
        assert_eq!(was_first, is_cancelled);
        assert_eq!(calls.load(Ordering::Relaxed), usize::from(is_cancelled));
        // A cancel that the end knows of is known to the times too.
        let asked = run.state() == RunState::Cancelled;
        assert_eq!(run.times().requested.is_some(), asked);
    });
}

fn below(runs: &Runs, parent: &std::sync::Arc<Run>, id: i64) -> Option<std::sync::Arc<Run>> {
    runs.builder(id).parent(parent).open().ok()
}

/// A run that is opened while its parent ends is refused, or is cancelled by that end.
#[test]
fn finish_against_open_below() {
    loom::model(|| {
        let runs = Runs::default();
        let parent = open(&runs, false);
        let ending = {
            let parent = parent.clone();
            thread::spawn(move || parent.complete("done").unwrap())
        };
        let child = below(&runs, &parent, 2);
        assert!(ending.join().unwrap());
        assert!(!parent.token().is_cancelled());
        assert!(child.is_none_or(|child| child.token().is_cancelled()));
    });
}

/// A run that is opened while its parent ends and the run above that is cancelled is refused, or is cancelled; in no
/// order is there a panic.
#[test]
fn finish_against_cancel_above_against_open_below() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(|| {
        let runs = Runs::default();
        let top = open(&runs, false);
        let middle = below(&runs, &top, 2).unwrap();
        let ending = {
            let middle = middle.clone();
            thread::spawn(move || middle.complete("done").unwrap())
        };
        let cancelling = thread::spawn(move || top.cancel(CancelKind::User, ""));
        let bottom = below(&runs, &middle, 3);
        assert!(ending.join().unwrap() && cancelling.join().unwrap());
        assert!(bottom.is_none_or(|bottom| bottom.token().is_cancelled()));
    });
}
