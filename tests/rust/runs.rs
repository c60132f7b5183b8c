//! Runs, from their opening to their one end.

#![expect(clippy::unwrap_used, reason = "a test may, and its helpers")]

use crate::options;
use llm_callback::{
    CancelKind, EncodedBody, Ended, EventKind, Frame, OpenError, Overflow, Read, Run, RunState,
    Runs, Start, TryAppendError,
};
use proptest::prelude::*;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(60);

fn open(runs: &Runs, id: i64) -> Arc<Run> {
    runs.open(id).unwrap()
}

fn token() -> EncodedBody {
    EncodedBody::from_json(EventKind::LLM_STREAM, b"null", br#"{"content":"x"}"#)
}

fn raw(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned()).unwrap()
}

fn frames(run: &Run) -> Vec<Arc<Frame>> {
    let mut reader = run.subscribe(&Start::Beginning, Overflow::Gap);
    match reader.read(usize::MAX, Some(Duration::ZERO)).unwrap() {
        Read::Events(frames) => frames,
        Read::TimedOut | Read::Ended => Vec::new(),
    }
}

fn words(run: &Run) -> Vec<String> {
    let words = frames(run)
        .into_iter()
        .map(|frame| frame.kind().to_string());
    words.collect()
}

/// The data of the first event, and of the last.
fn data(run: &Run) -> (Value, Value) {
    let frames = frames(run);
    let data = |frame: &Frame| frame.event().unwrap().data;
    (data(&frames[0]), data(&frames[frames.len() - 1]))
}

/// A result, and what a run starts with, come through as they are spelt, lone surrogates and all.
#[test]
fn json_comes_through() {
    let runs = Runs::default();
    let spelt = raw(r#"{"text":"\ud800","parent_run_id":7,"n":1.50}"#);
    let parent = open(&runs, 1);
    let run = runs
        .builder("two")
        .parent(&parent)
        .data(&spelt)
        .unwrap()
        .open()
        .unwrap();
    let text = |frame: &Frame| String::from_utf8(frame.data().to_vec()).unwrap();
    let expected = r#"{"text":"\ud800","n":1.50,"parent_run_id":1}"#;
    assert_eq!(text(&frames(&run)[0]), expected);
    assert!(run.complete(&spelt).unwrap());
    assert_eq!(text(&frames(&run)[1]), expected);
    assert!(parent.complete(&raw(r#""\udfff""#)).unwrap());
    assert_eq!(text(&frames(&parent)[1]), r#"{"result":"\udfff"}"#);
    let odd = raw("[1]");
    let run = runs.builder(3).data(&odd).unwrap().open().unwrap();
    assert!(run.fail_with("broken").unwrap());
    assert_eq!(
        data(&run),
        (json!({"data": [1]}), json!({"error": "broken"}))
    );
    // What is no JSON leaves the run as it was.
    let run = open(&runs, 4);
    let unfit = std::collections::HashMap::from([((1, 2), 3)]);
    assert!(run.complete(&unfit).is_err() && run.fail_with(&unfit).is_err());
    assert_eq!(run.state(), RunState::Running);
}

/// A run that was asked to stop ends as cancelled, whatever ends it, and what came out of it is not lost.
#[test]
fn asked_to_stop_is_cancelled() {
    type End = fn(&Arc<Run>, &Value);
    let runs = Runs::default();
    let result = json!({"kind": "of its own", "text": "half"});
    let ends: [(End, Value); 5] = [
        (
            |run, result| assert!(run.complete(result).unwrap()),
            json!({"text": "half", "kind": "user", "reason": "enough"}),
        ),
        (
            |run, result| assert!(run.fail_with(result).unwrap()),
            json!({"text": "half", "kind": "user", "reason": "enough"}),
        ),
        (
            |run, _| assert!(run.fail("Interrupted", "by it")),
            json!({"kind": "user", "reason": "enough"}),
        ),
        (
            |run, _| assert!(run.finish_cancelled()),
            json!({"kind": "user", "reason": "enough"}),
        ),
        (
            |run, _| drop(run.scope()),
            json!({"kind": "user", "reason": "enough"}),
        ),
    ];
    for (id, (end, expected)) in (0..).zip(ends) {
        let run = open(&runs, id);
        assert!(run.cancel(CancelKind::User, "enough"));
        end(&run, &result);
        assert_eq!(run.state(), RunState::Cancelled);
        assert_eq!(data(&run).1, expected);
        assert!(!run.finish_cancelled());
        let times = run.times();
        assert!(times.requested.unwrap() <= times.finished.unwrap());
    }
}

/// What a run is annotated with is in its last event, however it ends; what comes with the end stands before it.
#[test]
fn annotations_come_with_the_end() {
    type End = fn(&Arc<Run>);
    let runs = Runs::default();
    let ends: [(End, Value); 7] = [
        (
            |run| assert!(run.complete(&json!({"result": 1, "used": 3})).unwrap()),
            json!({"result": 1, "used": 3, "error": 0, "kind": 0}),
        ),
        (
            |run| assert!(run.fail("broken", "")),
            json!({"used": 2, "error": "broken", "details": "", "kind": 0}),
        ),
        (
            |run| assert!(run.fail_with("broken").unwrap()),
            json!({"used": 2, "error": "broken", "kind": 0}),
        ),
        (
            |run| assert!(run.finish_cancelled()),
            json!({"used": 2, "error": 0, "kind": "user", "reason": "the run gave up"}),
        ),
        (
            |run| drop(run.scope()),
            json!({"used": 2, "error": 0, "kind": 0}),
        ),
        (
            |run| {
                assert!(run.cancel(CancelKind::Shutdown, "bye"));
                assert!(run.complete(&json!({"error": null})).unwrap());
            },
            json!({"used": 2, "error": null, "kind": "shutdown", "reason": "bye"}),
        ),
        (
            |run| {
                assert!(
                    run.emit(&EncodedBody::from_json(
                        EventKind::COMPLETED,
                        b"null",
                        b"{}"
                    ))
                    .is_ok()
                );
            },
            json!({}),
        ),
    ];
    for (id, (end, expected)) in (0..).zip(ends) {
        let run = open(&runs, id);
        assert!(run.annotate(&json!({"used": 1, "error": 0})).unwrap());
        assert!(run.annotate(&json!({"used": 2, "kind": 0})).unwrap());
        end(&run);
        let late = runs.stats().late;
        assert!(!run.annotate("too late").unwrap());
        assert_eq!(runs.stats().late, late + 1);
        assert_eq!(data(&run).1, expected);
    }
    let run = runs.builder(7).pending(true).open().unwrap();
    assert!(run.annotate("by whom").unwrap());
    assert!(run.cancel(CancelKind::User, ""));
    let expected = json!({"annotation": "by whom", "kind": "user", "reason": ""});
    assert_eq!(data(&run).1, expected);
    // A run that has started goes on after a cancel, and may be annotated.
    let run = runs.builder(9).pending(true).open().unwrap();
    assert!(run.start() && run.cancel(CancelKind::User, "enough"));
    assert!(run.annotate(&json!({"used": 1})).unwrap());
    assert!(run.complete(&json!({})).unwrap());
    let expected = json!({"used": 1, "kind": "user", "reason": "enough"});
    assert_eq!(data(&run).1, expected);
    // What is no JSON leaves it as it was.
    let run = open(&runs, 8);
    let _ = run.annotate(&raw(r#"{"text":"\ud800"}"#)).unwrap();
    let unfit = std::collections::HashMap::from([((1, 2), 3)]);
    assert!(run.annotate(&unfit).is_err());
    assert!(run.complete(&json!({})).unwrap());
    assert_eq!(frames(&run)[1].data(), br#"{"text":"\ud800"}"#);
}

/// A terminal word that is emitted ends its run, which is out of the live ones.
#[test]
fn an_emitted_end_is_an_end() {
    let runs = Runs::default();
    let run = open(&runs, 1);
    let end = EncodedBody::from_json(EventKind::COMPLETED, b"null", b"{}");
    assert_eq!(run.try_emit(&end), Err(TryAppendError::WouldBlock));
    run.emit(&end).unwrap();
    assert_eq!(run.state(), RunState::Completed);
    assert!(!runs.has_live());
    drop(open(&runs, 1));
}

/// A run whose parent was cancelled is not opened, and says nothing; its id is free.
#[test]
fn no_run_below_a_cancelled_one() {
    let runs = Runs::default();
    let parent = open(&runs, 1);
    runs.cancel(parent.id(), CancelKind::Disconnect, "gone");
    let Err(OpenError::ParentCancelled(id, why)) = runs.builder(2).parent(&parent).open() else {
        panic!("opened")
    };
    assert_eq!((&id, why.kind), (parent.id(), CancelKind::Disconnect));
    assert!(runs.get(&2.into()).is_none());
    drop(open(&runs, 2));
}

/// A pending run starts once, when it is told to or says its first word.
#[test]
fn pending_runs_start() {
    let runs = Runs::default();
    let spelt = raw(r#"{"task":"t"}"#);
    let run = runs
        .builder(1)
        .data(&spelt)
        .unwrap()
        .pending(true)
        .open()
        .unwrap();
    assert_eq!(run.state(), RunState::Pending);
    assert!(runs.has_live() && run.log().size().appended == 0);
    assert!(run.start() && run.start());
    assert_eq!(run.state(), RunState::Running);
    assert_eq!(data(&run).0, json!({"task": "t"}));
    assert_eq!(words(&run), ["lifecycle.started"]);

    let run = runs.builder(2).pending(true).open().unwrap();
    assert_eq!(run.try_emit(&token()), Err(TryAppendError::WouldBlock));
    run.emit(&token()).unwrap();
    assert_eq!(words(&run), ["lifecycle.started", "llm.stream"]);
    assert!(run.try_emit(&token()).is_ok());
    run.cancel(CancelKind::User, "");
    assert_eq!(run.state(), RunState::Running);

    let run = runs.builder(3).pending(true).open().unwrap();
    assert!(run.fail("early", "before it started"));
    assert_eq!(words(&run), ["lifecycle.started", "lifecycle.failed"]);
    assert!(!run.start());
}

/// A pending run that is asked to stop, by whomever, has that as its only event, and never starts.
#[test]
fn cancelled_pending_runs_never_start() {
    let runs = Runs::default();
    let parent = open(&runs, 0);
    let pending = |id: i64| runs.builder(id).pending(true);
    let soon = Instant::now() + Duration::from_millis(5);
    let all = [
        (pending(1), "user"),
        (pending(2), "disconnect"),
        (pending(3).parent(&parent), "parent"),
        (pending(4).deadline(soon), "deadline"),
        (runs.builder(5).deadline(Instant::now()), "deadline"),
        (pending(6), "user"),
    ];
    let all = all.map(|(builder, kind)| (builder.open().unwrap(), kind));
    assert!(all[0].0.cancel(CancelKind::User, ""));
    assert!(runs.cancel(&2.into(), CancelKind::Disconnect, ""));
    assert!(runs.cancel(parent.id(), CancelKind::User, ""));
    assert!(all[5].0.finish_cancelled());
    for (run, kind) in &all {
        assert!(run.wait(Some(LONG)));
        assert_eq!(run.state(), RunState::Cancelled);
        assert!(!run.start() && run.emit(&token()) == Err(Ended));
        assert_eq!(words(run), ["lifecycle.cancelled"]);
        assert_eq!(data(run).1["kind"], *kind);
    }
    assert_eq!(runs.active().len(), 1);
}

/// What comes after the end of a run is counted, also from handles of an older generation.
#[test]
fn late_events_are_counted() {
    let runs = Runs::default();
    let first = open(&runs, 1);
    assert!(first.complete(&json!({})).unwrap());
    let second = open(&runs, 1);
    assert_eq!(first.emit(&token()), Err(Ended));
    assert_eq!(first.try_emit(&token()), Err(TryAppendError::Ended));
    second.emit(&token()).unwrap();
    assert!(!first.fail("an end is", "no event that is late"));
    let stats = runs.stats();
    assert_eq!((stats.late, stats.opened, stats.live), (2, 2, 1));
}

/// A live run is found while it is live, also by a thread that must not wait.
#[test]
fn live_runs_are_found() {
    let runs = Runs::default();
    assert!(!runs.has_live() && runs.live(&1.into()).is_none());
    let run = open(&runs, 1);
    assert!(runs.has_live());
    assert!(Arc::ptr_eq(&runs.live(&1.into()).unwrap(), &run));
    assert!(runs.try_live(&1.into()).unwrap().is_some());
    assert!(run.complete("done").unwrap());
    assert!(!runs.has_live() && runs.live(&1.into()).is_none());
    assert!(runs.try_live(&1.into()).unwrap().is_none());
    assert!(runs.get(&1.into()).is_some());
}

/// A panic in one callback, or one that holds up the thread, leaves no run without its end.
#[test]
fn shutdown_survives_callbacks() {
    let runs = Runs::default();
    let all: Vec<_> = (0..3).map(|id| open(&runs, id)).collect();
    for run in &all {
        run.token().on_cancel(|_| panic!("on purpose"));
    }
    assert!(runs.shutdown("going home", LONG));
    assert!(all.iter().all(|run| run.state() == RunState::Cancelled));
}

/// After its end a run is reached by nobody: its deadline and its parent's cancel mark nothing and call nothing, also
/// not what its callbacks hold; a detached run that is part of it is still reached.
#[test]
fn ended_runs_are_left_alone() {
    let runs = Runs::default();
    let top = open(&runs, 1);
    let deadline = Instant::now() + LONG;
    let part_of_top = |id: i64| runs.builder(id).parent(&top).deadline(deadline);
    let done = part_of_top(2).open().unwrap();
    let below = part_of_top(3).parent(&done).detached(true).open().unwrap();
    let held = Arc::new(());
    for run in [&done, &below] {
        let holds = Arc::clone(&held);
        run.token().on_cancel(move |_| drop(holds));
    }
    assert!(done.complete(&json!({})).unwrap());
    assert_eq!(Arc::strong_count(&held), 2);
    assert!(top.cancel(CancelKind::User, "all"));
    assert!(!done.token().is_cancelled() && below.token().is_cancelled());
    assert_eq!(
        (done.state(), done.times().requested),
        (RunState::Completed, None)
    );
    assert!(!done.cancel(CancelKind::User, "late"));
    assert!(done.token().cancel(CancelKind::User, "by hand"));
    assert_eq!(done.times().requested, None);
    assert_eq!(below.token().reason().unwrap().kind, CancelKind::Parent);
}

/// The ids of a later generation are greater than those of the one before, though it was in the same millisecond.
#[test]
fn generations_are_in_order() {
    let runs = Runs::default();
    let mut last = None;
    for _ in 0..5 {
        let run = open(&runs, 1);
        for _ in 0..3 {
            let id = run.emit(&token()).unwrap();
            assert!(last < Some(id));
        }
        assert!(run.complete(&json!({})).unwrap());
        assert!(last < frames(&run).first().map(|frame| frame.id()));
        last = run.log().last_id();
    }
}

/// A finished run goes when its time is over, though nobody looks, opens or ends anything.
#[test]
fn finished_runs_go_by_themselves() {
    let runs = Runs::new(options(|options| {
        options.grace = Duration::from_millis(5);
    }));
    let ended: Vec<_> = (0..3)
        .map(|id| {
            let run = open(&runs, id);
            assert!(run.complete(&json!({})).unwrap());
            Arc::downgrade(&run)
        })
        .collect();
    let end = Instant::now() + LONG;
    while ended.iter().any(|run| run.strong_count() > 0) {
        assert!(Instant::now() < end, "they stay");
        std::thread::yield_now();
    }
    assert_eq!(runs.stats().finished, 0);
}

/// Opens a run, has it say so much, and ends it.
fn spoken(runs: &Runs, id: i64, number: usize) -> Arc<Run> {
    let run = open(runs, id);
    for _ in 0..number {
        run.emit(&token()).unwrap();
    }
    assert!(run.complete(&json!({})).unwrap());
    run
}

/// All finished runs together hold no more bytes than the bound, the latest ones; what nobody reads is freed, also where
/// somebody has kept the run.
#[test]
fn finished_runs_are_bounded_in_bytes() {
    let bound = 20_000;
    let runs = Runs::new(options(|options| {
        options.finished_bytes = bound;
    }));
    let kept: Vec<_> = (0..20).map(|id| spoken(&runs, id, 20)).collect();
    let stats = runs.stats();
    assert!(
        stats.finished_bytes <= bound && stats.finished > 0,
        "{stats:?}"
    );
    let held: u64 = kept.iter().map(|run| run.log().held_bytes()).sum();
    assert!(held < bound + 20 * 500, "{held}");
    let is_found = |run: &&Arc<Run>| runs.get(run.id()).is_some();
    assert_eq!(
        kept.iter().rev().take_while(is_found).count(),
        stats.finished
    );
    // Of a forgotten run that somebody kept, the last event is there, and a gap.
    assert_eq!(
        words(&kept[0]),
        ["lifecycle.started", "stream.gap", "lifecycle.completed"]
    );
}

/// The runs that others of their id have superseded are bounded as all finished ones are, though somebody has kept them.
#[test]
fn superseded_runs_are_bounded_in_bytes() {
    let bound = 20_000;
    let runs = Runs::new(options(|options| {
        options.finished_bytes = bound;
    }));
    let kept: Vec<_> = (0..20).map(|_| spoken(&runs, 1, 20)).collect();
    let stats = runs.stats();
    assert!(
        stats.finished_bytes <= bound && stats.finished == 1,
        "{stats:?}"
    );
    let held: u64 = kept.iter().map(|run| run.log().held_bytes()).sum();
    assert!(held < bound + 20 * 500, "{held}");
}

/// A reader that does not read keeps what it has not read of a forgotten run, within the bound; one that reads on frees
/// it.
#[test]
fn readers_of_forgotten_runs_are_bounded() {
    let runs = Runs::new(options(|options| {
        options.finished = 0;
        options.finished_bytes = 20_000;
    }));
    let mut readers = Vec::new();
    for id in 0..20 {
        let run = open(&runs, id);
        readers.push(run.subscribe(&Start::Beginning, Overflow::Gap));
        for _ in 0..20 {
            run.emit(&token()).unwrap();
        }
        assert!(run.complete(&json!({})).unwrap());
        let stats = runs.stats();
        assert!(stats.finished_bytes <= 20_000, "{stats:?}");
    }
    let open = runs.readers();
    assert_eq!((open.open > 0, open.lag), (true, 22));
    // The latest ones lost nothing, the first all but the lifecycle; each reads to its end.
    let lost: Vec<_> = readers
        .iter_mut()
        .map(|reader| {
            while let Read::Events(_) = reader.read(5, Some(Duration::ZERO)).unwrap() {}
            reader.lost()
        })
        .collect();
    assert_eq!((lost[0], lost[19]), (20, 0));
    assert!(runs.stats().finished_bytes < 20 * 1_000);
    drop(readers);
    assert_eq!((runs.readers().open, runs.stats().finished_bytes), (0, 0));
}

/// The bound on live runs holds, and is told; a run that ends makes room.
#[test]
fn live_runs_are_bounded() {
    let runs = Runs::new(options(|options| {
        options.max_live = Some(2);
    }));
    let (first, _second) = (open(&runs, 1), open(&runs, 2));
    let refused = runs.open(3).unwrap_err();
    assert_eq!(refused, OpenError::TooMany(2));
    assert_eq!(runs.stats().oldest.unwrap().id, 1.into());
    assert!(first.complete("").unwrap());
    assert_eq!(runs.stats().oldest.unwrap().id, 2.into());
    open(&runs, 3);
    runs.configure(|options| options.max_live = None);
    let _more: Vec<_> = (4..10).map(|id| open(&runs, id)).collect();
}

/// A bound on the number of finished runs counts each id once, though several of its generations have ended.
#[test]
fn superseded_generations_do_not_count() {
    let runs = Runs::new(options(|options| {
        options.finished = 3;
    }));
    spoken(&runs, 1, 0);
    for _ in 0..10 {
        spoken(&runs, 2, 0);
    }
    assert_eq!(runs.stats().finished, 2);
    assert!(runs.get(&1.into()).is_some());
}

/// The end of a parent, of whichever kind, cancels its children and all runs below them, but not a detached child.
#[test]
fn children_end_with_their_parent() {
    for is_failed in [false, true] {
        let runs = Runs::default();
        let top = open(&runs, 1);
        let below = |id: i64, parent: &Arc<Run>, detached: bool| {
            runs.builder(id)
                .parent(parent)
                .detached(detached)
                .open()
                .unwrap()
        };
        let (child, apart) = (below(2, &top, false), below(3, &top, true));
        let grandchild = below(4, &child, true);
        let ended = below(5, &top, false);
        assert!(ended.complete("").unwrap());
        if is_failed {
            assert!(top.fail("broken", ""));
        } else {
            assert!(top.complete("").unwrap());
        }
        let why = child.token().reason().unwrap();
        assert_eq!(why.kind, CancelKind::Parent);
        assert_eq!(&*why.message, "the parent run 1 has ended");
        assert!(grandchild.token().is_cancelled());
        assert!(!ended.token().is_cancelled() && !apart.token().is_cancelled());
        assert!(apart.complete("").unwrap());
        assert_eq!(apart.state(), RunState::Completed);
        assert!(child.complete("").unwrap());
        assert_eq!(child.state(), RunState::Cancelled);
    }
}

/// Annotations that are too large are refused whole, with a sentence, and the earlier ones stay.
#[test]
fn annotations_are_bounded() {
    let runs = Runs::default();
    let run = open(&runs, 1);
    assert!(run.annotate(&json!({"kept": 1})).unwrap());
    let large = "x".repeat(65_536);
    let refused = run.annotate(&json!({"large": large})).unwrap_err();
    assert!(refused.to_string().contains("65536 bytes"), "{refused}");
    let half = "x".repeat(40_000);
    assert!(run.annotate(&json!({"first": half})).unwrap());
    assert!(run.annotate(&json!({"second": half})).is_err());
    assert!(run.annotate(&json!({"first": 1, "also": 2})).unwrap());
    assert!(run.complete(&json!({})).unwrap());
    assert_eq!(data(&run).1, json!({"kept": 1, "first": 1, "also": 2}));
}

#[derive(Clone, Copy, Debug)]
enum Operation {
    Open {
        id: i64,
        pending: bool,
        below: Option<usize>,
        detached: bool,
        /// Whether its deadline has passed already.
        late: bool,
    },
    Start(usize),
    Emit(usize),
    Annotate(usize),
    Cancel(usize),
    Complete(usize),
    Fail(usize),
    Shutdown,
}

fn operation() -> impl Strategy<Value = Operation> {
    let run = || any::<prop::sample::Index>().prop_map(|index| index.index(8));
    let open = (
        0..5_i64,
        any::<bool>(),
        prop::option::weighted(0.7, run()),
        prop::bool::weighted(0.3),
        prop::bool::weighted(0.1),
    );
    prop_oneof![
        12 => open.prop_map(|(id, pending, below, detached, late)| Operation::Open {
            id, pending, below, detached, late
        }),
        4 => run().prop_map(Operation::Start),
        8 => run().prop_map(Operation::Emit),
        4 => run().prop_map(Operation::Annotate),
        4 => run().prop_map(Operation::Cancel),
        3 => run().prop_map(Operation::Complete),
        3 => run().prop_map(Operation::Fail),
        1 => Just(Operation::Shutdown),
    ]
}

/// One run as the model has it.
struct Modelled {
    run: Arc<Run>,
    id: i64,
    generation: u64,
    parent: Option<usize>,
    is_detached: bool,
    words: Vec<&'static str>,
    annotations: u64,
    is_asked: bool,
    has_ended: bool,
}

/// What the runs of one table are to do, without threads, logs or tokens.
#[derive(Default)]
struct Model {
    runs: Vec<Modelled>,
    is_shut_down: bool,
    late: u64,
}

impl Model {
    fn live(&self, id: i64) -> bool {
        self.runs.iter().any(|run| run.id == id && !run.has_ended)
    }

    /// Why a run is not opened, if it is not.
    fn refuses(&self, id: i64, parent: Option<usize>) -> Option<&'static str> {
        let parent = parent.map(|parent| &self.runs[parent]);
        if self.is_shut_down {
            Some("shut down")
        } else if self.live(id) {
            Some("live")
        } else if parent.is_some_and(|parent| parent.has_ended) {
            Some("no parent")
        } else if parent.is_some_and(|parent| parent.is_asked) {
            Some("cancelled parent")
        } else {
            None
        }
    }

    fn start(&mut self, index: usize) -> bool {
        let run = &mut self.runs[index];
        if run.words.is_empty() {
            run.words.push("lifecycle.started");
        }
        !run.has_ended
    }

    /// The end of a run, and with it of those that are part of it.
    fn end(&mut self, index: usize, word: &'static str) -> bool {
        if self.runs[index].has_ended {
            return false;
        }
        let is_asked = self.runs[index].is_asked;
        if !is_asked {
            self.start(index);
        }
        let run = &mut self.runs[index];
        run.words.push(if is_asked {
            "lifecycle.cancelled"
        } else {
            word
        });
        run.has_ended = true;
        for child in 0..self.runs.len() {
            let run = &self.runs[child];
            if run.parent == Some(index) && !run.is_detached && !run.has_ended {
                self.ask(child);
            }
        }
        true
    }

    /// A cancel of one run: it and all below it are asked, also below what has ended; a pending run ends by it.
    fn ask(&mut self, index: usize) {
        let mut reached = vec![index];
        // Parents come before their children in the list.
        for (child, run) in self.runs.iter().enumerate() {
            if run.parent.is_some_and(|parent| reached.contains(&parent)) {
                reached.push(child);
            }
        }
        for &index in &reached {
            let run = &mut self.runs[index];
            run.is_asked |= !run.has_ended;
        }
        for index in reached {
            if self.runs[index].is_asked && self.runs[index].words.is_empty() {
                self.end(index, "");
            }
        }
    }

    fn shut_down(&mut self) {
        self.is_shut_down = true;
        for run in &mut self.runs {
            run.is_asked |= !run.has_ended;
        }
        for index in 0..self.runs.len() {
            self.end(index, "");
        }
    }
}

fn refusal(error: &OpenError) -> &'static str {
    match error {
        OpenError::ShutDown => "shut down",
        OpenError::Live(_) => "live",
        OpenError::NoParent(_) => "no parent",
        OpenError::ParentCancelled(..) => "cancelled parent",
        _ => "another",
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 2 } else { 256 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Whatever is asked of runs in whichever order, each says exactly what a plain model says, and its state is what
    /// its last word says; what was cancelled before it started has never started.
    #[test]
    fn runs_behave_as_the_model(operations in prop::collection::vec(operation(), 0..60)) {
        let runs = Runs::default();
        let mut model = Model::default();
        for operation in operations {
            match operation {
                Operation::Open { id, pending, below, detached, late } => {
                    let parent = below.filter(|parent| *parent < model.runs.len());
                    let above = parent.map(|parent| model.runs[parent].run.clone());
                    let deadline = late.then(Instant::now);
                    let opened = runs
                        .builder(id)
                        .parent(above.as_ref())
                        .detached(detached)
                        .deadline(deadline)
                        .pending(pending)
                        .open();
                    prop_assert_eq!(opened.as_ref().err().map(refusal), model.refuses(id, parent));
                    let Ok(run) = opened else { continue };
                    let before = model.runs.iter().filter(|run| run.id == id).count() as u64;
                    model.runs.push(Modelled {
                        run, id, generation: before + 1, parent, is_detached: detached, words: vec![], annotations: 0,
                        is_asked: late, has_ended: false,
                    });
                    let index = model.runs.len() - 1;
                    if late {
                        model.end(index, "");
                    } else if !pending {
                        model.start(index);
                    }
                }
                Operation::Start(index) if index < model.runs.len() => {
                    prop_assert_eq!(model.runs[index].run.start(), model.start(index));
                }
                Operation::Emit(index) if index < model.runs.len() => {
                    let emitted = model.runs[index].run.emit(&token());
                    prop_assert_eq!(emitted.is_ok(), model.start(index));
                    if emitted.is_ok() {
                        model.runs[index].words.push("llm.stream");
                    } else {
                        model.late += 1;
                    }
                }
                Operation::Annotate(index) if index < model.runs.len() => {
                    let run = &mut model.runs[index];
                    let is_in = run.run.annotate(&json!({ "note": run.annotations + 1 })).unwrap();
                    prop_assert_eq!(is_in, !run.has_ended);
                    run.annotations += u64::from(is_in);
                    model.late += u64::from(!is_in);
                }
                Operation::Cancel(index) if index < model.runs.len() => {
                    let run = &model.runs[index];
                    let is_first = !run.has_ended && !run.is_asked;
                    prop_assert_eq!(run.run.cancel(CancelKind::User, ""), is_first);
                    if is_first {
                        model.ask(index);
                    }
                }
                Operation::Complete(index) if index < model.runs.len() => {
                    let is_end = model.runs[index].run.complete("").unwrap();
                    prop_assert_eq!(is_end, model.end(index, "lifecycle.completed"));
                }
                Operation::Fail(index) if index < model.runs.len() => {
                    let is_end = model.runs[index].run.fail("", "");
                    prop_assert_eq!(is_end, model.end(index, "lifecycle.failed"));
                }
                Operation::Shutdown => {
                    prop_assert!(runs.shutdown("", Duration::ZERO));
                    model.shut_down();
                }
                _ => {}
            }
            for run in &model.runs {
                prop_assert_eq!(words(&run.run), run.words.as_slice());
                prop_assert_eq!(run.run.token().is_cancelled(), run.is_asked);
                prop_assert_eq!(run.run.generation(), run.generation);
                let state = match run.words.last() {
                    None => "pending",
                    Some(word) if run.has_ended => &word["lifecycle.".len()..],
                    Some(_) => "running",
                };
                prop_assert_eq!(run.run.state().as_str(), state);
                if run.has_ended {
                    let note = data(&run.run).1["note"].as_u64().unwrap_or(0);
                    prop_assert_eq!(note, run.annotations);
                }
            }
            let live = model.runs.iter().filter(|run| !run.has_ended).count();
            let stats = runs.stats();
            let opened = model.runs.len() as u64;
            prop_assert_eq!((stats.live, stats.late, stats.opened), (live, model.late, opened));
            prop_assert_eq!(runs.has_live(), live > 0);
        }
    }
}
