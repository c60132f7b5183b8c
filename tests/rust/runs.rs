//! Runs, from their opening to their one end.

#![expect(clippy::unwrap_used, reason = "a test may, and its helpers")]

use llm_callback::{
    Body, CancelKind, Ended, Frame, OpenError, Opening, Options, Outlet, Overflow, Read, Run,
    RunId, RunState, Runs, Sink, Start, Word,
};
use proptest::prelude::*;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(60);
const PENDING: Opening<'_> = Opening {
    parent: None,
    deadline: None,
    data: None,
    pending: true,
};

fn open(runs: &Runs, id: i64) -> Arc<Run> {
    runs.open(id, Opening::default()).unwrap()
}

fn token() -> Body {
    Body::from_json(Word::LLM_STREAM, b"null", br#"{"content":"x"}"#)
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
        .map(|frame| frame.word().to_string());
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
    let opening = Opening {
        parent: Some(&parent),
        data: Some(&spelt),
        ..Opening::default()
    };
    let run = runs.open("two", opening).unwrap();
    let text = |frame: &Frame| String::from_utf8(frame.data().to_vec()).unwrap();
    let expected = r#"{"text":"\ud800","n":1.50,"parent_run_id":1}"#;
    assert_eq!(text(&frames(&run)[0]), expected);
    assert!(run.complete(&spelt).unwrap());
    assert_eq!(text(&frames(&run)[1]), expected);
    assert!(parent.complete(&raw(r#""\udfff""#)).unwrap());
    assert_eq!(text(&frames(&parent)[1]), r#"{"result":"\udfff"}"#);
    let odd = raw("[1]");
    let opening = Opening {
        data: Some(&odd),
        ..Opening::default()
    };
    let run = runs.open(3, opening).unwrap();
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
                    run.emit(&Body::from_json(Word::COMPLETED, b"null", b"{}"))
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
    let run = runs.open(7, PENDING).unwrap();
    assert!(run.annotate("by whom").unwrap());
    assert!(run.cancel(CancelKind::User, ""));
    let expected = json!({"annotation": "by whom", "kind": "user", "reason": ""});
    assert_eq!(data(&run).1, expected);
    // A run that has started goes on after a cancel, and may be annotated.
    let run = runs.open(9, PENDING).unwrap();
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
    let end = Body::from_json(Word::COMPLETED, b"null", b"{}");
    assert_eq!(run.try_emit(&end), None);
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
    let opening = Opening {
        parent: Some(&parent),
        ..Opening::default()
    };
    runs.cancel(parent.id(), CancelKind::Disconnect, "gone");
    let Err(OpenError::ParentCancelled(id, why)) = runs.open(2, opening) else {
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
    let opening = Opening {
        data: Some(&spelt),
        ..PENDING
    };
    let run = runs.open(1, opening).unwrap();
    assert_eq!(run.state(), RunState::Pending);
    assert!(runs.has_live() && run.log().is_empty());
    assert!(run.start() && run.start());
    assert_eq!(run.state(), RunState::Running);
    assert_eq!(data(&run).0, json!({"task": "t"}));
    assert_eq!(words(&run), ["lifecycle.started"]);

    let run = runs.open(2, PENDING).unwrap();
    assert_eq!(run.try_emit(&token()), None);
    run.emit(&token()).unwrap();
    assert_eq!(words(&run), ["lifecycle.started", "llm.stream"]);
    assert!(run.try_emit(&token()).unwrap().is_ok());
    run.cancel(CancelKind::User, "");
    assert_eq!(run.state(), RunState::Running);

    let run = runs.open(3, PENDING).unwrap();
    assert!(run.fail("early", "before it started"));
    assert_eq!(words(&run), ["lifecycle.started", "lifecycle.failed"]);
    assert!(!run.start());
}

/// A pending run that is asked to stop, by whomever, has that as its only event, and never starts.
#[test]
fn cancelled_pending_runs_never_start() {
    let runs = Runs::default();
    let parent = open(&runs, 0);
    let soon = Opening {
        deadline: Some(Instant::now() + Duration::from_millis(5)),
        ..PENDING
    };
    let past = Opening {
        deadline: Some(Instant::now()),
        ..Opening::default()
    };
    let child = Opening {
        parent: Some(&parent),
        ..PENDING
    };
    let all = [
        (runs.open(1, PENDING).unwrap(), "user"),
        (runs.open(2, PENDING).unwrap(), "disconnect"),
        (runs.open(3, child).unwrap(), "parent"),
        (runs.open(4, soon).unwrap(), "deadline"),
        (runs.open(5, past).unwrap(), "deadline"),
        (runs.open(6, PENDING).unwrap(), "user"),
    ];
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
    assert_eq!(first.try_emit(&token()), Some(Err(Ended)));
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

/// Passes on what it gets, once it is let.
struct Gate(mpsc::Receiver<()>, mpsc::Sender<(RunId, Word)>);

impl Sink for Gate {
    fn write(&mut self, frames: &[Arc<Frame>]) -> io::Result<()> {
        // Open as soon as the other end is gone.
        let _ = self.0.recv();
        for frame in frames {
            let event = frame.event()?;
            let sent = self.1.send((event.run_id, event.event));
            sent.map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn gate(name: &str) -> (Outlet, mpsc::Sender<()>, mpsc::Receiver<(RunId, Word)>) {
    let (open, gate) = mpsc::channel();
    let (sender, seen) = mpsc::channel();
    let outlet = Outlet::start(name, Gate(gate, sender), 100).unwrap();
    (outlet, open, seen)
}

/// A sink gets the events of the runs that are opened while it is there, whole, and nothing after it was taken away.
#[test]
fn sinks_come_and_go() {
    let runs = Runs::default();
    let before = open(&runs, 1);
    let (outlet, open_gate, seen) = gate("gate");
    drop(open_gate);
    runs.add_sink(outlet).unwrap();
    let during = open(&runs, 2);
    for run in [&before, &during] {
        run.emit(&token()).unwrap();
    }
    assert!(during.complete(&json!({})).unwrap());
    let late = open(&runs, 3);
    let (twin, ..) = gate("gate");
    assert_eq!(runs.add_sink(twin).unwrap_err().name(), "gate");
    assert!(runs.remove_sink("another").is_none());
    let stats = runs.remove_sink("gate").unwrap();
    assert_eq!((stats.written, stats.dropped), (4, 0));
    assert!(runs.remove_sink("gate").is_none() && runs.sinks().is_empty());
    late.emit(&token()).unwrap();
    drop(open(&runs, 4));
    let expected = [
        (2, Word::STARTED),
        (2, Word::LLM_STREAM),
        (2, Word::COMPLETED),
        (3, Word::STARTED),
    ];
    let seen: Vec<_> = seen.iter().collect();
    assert_eq!(seen, expected.map(|(id, word)| (RunId::Int(id), word)));
}

/// A sink can be taken away while runs go on and never stop to speak.
#[test]
fn a_sink_leaves_busy_runs() {
    let runs = Runs::default();
    let (outlet, open_gate, seen) = gate("gate");
    drop(open_gate);
    runs.add_sink(outlet).unwrap();
    let run = open(&runs, 1);
    std::thread::scope(|scope| {
        let speaking = scope.spawn(|| while run.emit(&token()).is_ok() {});
        assert_eq!(seen.recv_timeout(LONG).unwrap().1, Word::STARTED);
        let stats = runs.remove_sink("gate").unwrap();
        assert_eq!(stats.written, 1 + seen.iter().count() as u64);
        assert!(run.complete("").unwrap());
        speaking.join().unwrap();
    });
}

/// A log that outlives its table keeps no sink: dropping the table waits for the sinks, and the log for nobody.
#[test]
fn logs_outlive_sinks() {
    let (outlet, open_gate, seen) = gate("gate");
    drop(open_gate);
    let runs = Runs::default();
    runs.add_sink(outlet).unwrap();
    let run = open(&runs, 1);
    let log = Arc::clone(run.log());
    drop((run, runs));
    assert_eq!(log.terminal().unwrap().word(), Word::FAILED);
    assert_eq!(seen.iter().count(), 2);
}

/// Shutting down ends all runs before any callback runs, each in its own name, and waits for sinks so long and no longer.
#[test]
fn shutdown_ends_and_drains() {
    let runs = Runs::default();
    let (outlet, open_gate, seen) = gate("slow");
    runs.add_sink(outlet).unwrap();
    let parent = open(&runs, 1);
    let opening = Opening {
        parent: Some(&parent),
        ..PENDING
    };
    let all = [
        parent.clone(),
        open(&runs, 2),
        runs.open(3, opening).unwrap(),
    ];
    let called = Arc::new(AtomicUsize::new(0));
    for run in &all {
        let (all, called) = (all.clone(), Arc::clone(&called));
        run.token().on_cancel(move |why| {
            assert_eq!(why.kind, CancelKind::Shutdown);
            assert!(all.iter().all(|run| run.state() == RunState::Cancelled));
            called.fetch_add(1, Ordering::Relaxed);
        });
    }
    assert!(!runs.shutdown("going home", Duration::from_millis(1)));
    assert_eq!(called.load(Ordering::Relaxed), 3);
    assert_eq!(
        runs.open(4, Opening::default()).unwrap_err(),
        OpenError::ShutDown
    );
    assert_eq!(words(&all[2]), ["lifecycle.cancelled"]);
    drop(open_gate);
    assert!(runs.shutdown("again", LONG) && runs.shutdown("again", Duration::ZERO));
    assert_eq!(seen.iter().count(), 5);
    assert_eq!(runs.sinks()[0].1.written, 5);
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
/// not what its callbacks hold; a run that is part of it is still reached.
#[test]
fn ended_runs_are_left_alone() {
    let runs = Runs::default();
    let top = open(&runs, 1);
    let deadline = Instant::now() + LONG;
    let part_of = |parent| Opening {
        parent: Some(parent),
        deadline: Some(deadline),
        ..Opening::default()
    };
    let done = runs.open(2, part_of(&top)).unwrap();
    let below = runs.open(3, part_of(&done)).unwrap();
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
    assert_eq!(below.token().cancelled().unwrap().kind, CancelKind::Parent);
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
    let runs = Runs::new(Options {
        grace: Duration::from_millis(5),
        ..Options::default()
    });
    let logs: Vec<_> = (0..3)
        .map(|id| {
            let run = open(&runs, id);
            assert!(run.complete(&json!({})).unwrap());
            Arc::downgrade(run.log())
        })
        .collect();
    let end = Instant::now() + LONG;
    while logs.iter().any(|log| log.strong_count() > 0) {
        assert!(Instant::now() < end, "they stay");
        std::thread::yield_now();
    }
    assert_eq!(runs.stats().finished, 0);
}

#[derive(Clone, Copy, Debug)]
enum Operation {
    Open { pending: bool, below: Option<usize> },
    Start(usize),
    Emit(usize),
    Cancel(usize),
    Complete(usize),
    Fail(usize),
}

fn operation() -> impl Strategy<Value = Operation> {
    let run = || any::<prop::sample::Index>().prop_map(|index| index.index(6));
    prop_oneof![
        4 => (any::<bool>(), prop::option::weighted(0.8, run()))
            .prop_map(|(pending, below)| Operation::Open { pending, below }),
        2 => run().prop_map(Operation::Start),
        4 => run().prop_map(Operation::Emit),
        2 => run().prop_map(Operation::Cancel),
        1 => run().prop_map(Operation::Complete),
        1 => run().prop_map(Operation::Fail),
    ]
}

/// One run as the model has it.
struct Modelled {
    run: Arc<Run>,
    parent: Option<usize>,
    words: Vec<&'static str>,
    is_asked: bool,
    has_ended: bool,
}

impl Modelled {
    fn start(&mut self) {
        if self.words.is_empty() {
            self.words.push("lifecycle.started");
        }
    }

    fn end(&mut self, word: &'static str) -> bool {
        if self.has_ended {
            return false;
        }
        if !self.is_asked {
            self.start();
        }
        let word = if self.is_asked {
            "lifecycle.cancelled"
        } else {
            word
        };
        self.words.push(word);
        self.has_ended = true;
        true
    }
}

/// A cancel of one: it and all below it are asked, also below what has ended; what has not started ends by it.
fn ask(model: &mut [Modelled], index: usize) {
    let mut reached = vec![index];
    // Parents come before their children in the list.
    for (child, run) in model.iter().enumerate() {
        if run.parent.is_some_and(|parent| reached.contains(&parent)) {
            reached.push(child);
        }
    }
    for index in reached {
        let run = &mut model[index];
        run.is_asked |= !run.has_ended;
        if run.is_asked && run.words.is_empty() {
            run.end("");
        }
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
        let mut model: Vec<Modelled> = Vec::new();
        let mut late = 0;
        for operation in operations {
            match operation {
                Operation::Open { pending, below } => {
                    let id = RunId::from(i64::try_from(model.len()).unwrap());
                    let parent = below.filter(|parent| *parent < model.len());
                    let above = parent.map(|parent| model[parent].run.clone());
                    let opening = Opening { parent: above.as_ref(), pending, ..Opening::default() };
                    let opened = runs.open(id, opening);
                    let refused = parent.is_some_and(|parent| model[parent].has_ended || model[parent].is_asked);
                    prop_assert_eq!(opened.is_err(), refused);
                    let Ok(run) = opened else { continue };
                    let words = if pending { vec![] } else { vec!["lifecycle.started"] };
                    model.push(Modelled { run, parent, words, is_asked: false, has_ended: false });
                }
                Operation::Start(index) => {
                    let Some(run) = model.get_mut(index) else { continue };
                    prop_assert_eq!(run.run.start(), !run.has_ended);
                    run.start();
                }
                Operation::Emit(index) => {
                    let Some(run) = model.get_mut(index) else { continue };
                    prop_assert_eq!(run.run.emit(&token()).is_err(), run.has_ended);
                    if run.has_ended {
                        late += 1;
                    } else {
                        run.start();
                        run.words.push("llm.stream");
                    }
                }
                Operation::Cancel(index) => {
                    let Some(run) = model.get(index) else { continue };
                    let is_first = !run.has_ended && !run.is_asked;
                    prop_assert_eq!(run.run.cancel(CancelKind::User, ""), is_first);
                    if is_first {
                        ask(&mut model, index);
                    }
                }
                Operation::Complete(index) => {
                    let Some(run) = model.get_mut(index) else { continue };
                    prop_assert_eq!(run.run.complete("").unwrap(), run.end("lifecycle.completed"));
                }
                Operation::Fail(index) => {
                    let Some(run) = model.get_mut(index) else { continue };
                    prop_assert_eq!(run.run.fail("", ""), run.end("lifecycle.failed"));
                }
            }
            for run in &model {
                prop_assert_eq!(words(&run.run), run.words.as_slice());
                prop_assert_eq!(run.run.token().is_cancelled(), run.is_asked);
                let state = match run.words.last() {
                    None => "pending",
                    Some(word) if run.has_ended => &word["lifecycle.".len()..],
                    Some(_) => "running",
                };
                prop_assert_eq!(run.run.state().as_str(), state);
            }
            let live = model.iter().filter(|run| !run.has_ended).count();
            let stats = runs.stats();
            prop_assert_eq!((stats.live, stats.late, stats.opened), (live, late, model.len() as u64));
            prop_assert_eq!(runs.has_live(), live > 0);
        }
    }
}
