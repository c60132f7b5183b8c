//! Sinks: each follows every run's log, also when it fails, hangs, is slower than a run, or comes and goes.

#![expect(clippy::unwrap_used, reason = "a test may, and its helpers")]

use crate::options;
use llm_callback::{
    Batch, EncodedBody, EventKind, Followed, Hold, Limits, NdjsonFile, OpenError, Refused, Run,
    RunId, RunState, Runs, Sink, SinkHandle,
};
use proptest::prelude::*;
use serde_json::json;
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(60);
const GAP: EventKind = EventKind::STREAM_GAP;

/// What a sink was told: of which run, and what.
#[derive(Clone, Debug, PartialEq)]
enum Told {
    Opened,
    Event {
        sequence: u64,
        word: EventKind,
        /// Of a gap: how many are missing.
        lost: u64,
    },
    Ended,
}

type Log = Arc<Mutex<Vec<(RunId, u64, Told)>>>;

/// Notes what it is told. `before` is called before each batch, and may refuse all but so many of its events.
struct Probe<F> {
    told: Log,
    before: F,
}

impl<F: FnMut(&Batch<'_>) -> Result<(), usize> + Send + 'static> Probe<F> {
    fn note(&self, run: &Followed, told: Told) {
        let mut all = self.told.lock().unwrap();
        all.push((run.id().clone(), run.generation(), told));
    }
}

impl<F: FnMut(&Batch<'_>) -> Result<(), usize> + Send + 'static> Sink for Probe<F> {
    fn opened(&mut self, run: &Followed) {
        self.note(run, Told::Opened);
    }

    fn write(&mut self, batch: &Batch<'_>) -> Result<(), Refused> {
        let refused = (self.before)(batch).err();
        let frames = &batch.frames()[..refused.unwrap_or(usize::MAX).min(batch.frames().len())];
        for frame in frames {
            let event = frame.event().unwrap();
            assert_eq!(&event.run_id, batch.run().id());
            let lost = event.data["lost"].as_u64().unwrap_or(0);
            let told = Told::Event {
                sequence: frame.sequence(),
                word: frame.kind().clone(),
                lost,
            };
            self.note(batch.run(), told);
        }
        match refused {
            None => Ok(()),
            Some(_) => Err(Refused {
                taken: frames.last().map_or(0, |frame| frame.sequence()),
                error: io::Error::other("on purpose"),
            }),
        }
    }

    fn ended(&mut self, run: &Followed) {
        self.note(run, Told::Ended);
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn probe(
    hold: Hold,
    before: impl FnMut(&Batch<'_>) -> Result<(), usize> + Send + 'static,
) -> (SinkHandle, Log) {
    let told = Log::default();
    let probe = Probe {
        told: Arc::clone(&told),
        before,
    };
    (SinkHandle::start("probe", probe, hold).unwrap(), told)
}

fn willing() -> (SinkHandle, Log) {
    probe(Hold::default(), |_| Ok(()))
}

/// A sink that waits before its first batch until the sender is dropped; the receiver hears that it waits.
fn gated(hold: Hold) -> (SinkHandle, Log, mpsc::Sender<()>, mpsc::Receiver<()>) {
    let (open, gate) = mpsc::channel::<()>();
    let (waits, waiting) = mpsc::channel();
    let (handle, told) = probe(hold, move |_| {
        let _ = waits.send(());
        let _ = gate.recv();
        Ok(())
    });
    (handle, told, open, waiting)
}

fn open(runs: &Runs, id: i64) -> Arc<Run> {
    runs.open(id).unwrap()
}

fn token() -> EncodedBody {
    EncodedBody::from_json(EventKind::LLM_STREAM, b"null", br#"{"content":"x"}"#)
}

fn say(run: &Run, number: usize) {
    for _ in 0..number {
        run.emit(&token()).unwrap();
    }
}

fn told_of(told: &Log, id: i64) -> Vec<Told> {
    let told = told.lock().unwrap();
    let of_run = told.iter().filter(|(run, ..)| *run == RunId::Int(id));
    of_run.map(|(.., told)| told.clone()).collect()
}

fn words_of(told: &Log, id: i64) -> Vec<(u64, EventKind)> {
    let told = told_of(told, id);
    let events = told.iter().filter_map(|told| match told {
        Told::Event { sequence, word, .. } => Some((*sequence, word.clone())),
        Told::Opened | Told::Ended => None,
    });
    events.collect()
}

/// Fails unless the events are in order, none comes twice, each that is missing is told of by a gap, and the last is the
/// terminal one, at `last`. Returns how many are missing.
fn checked(told: &[Told], last: u64) -> u64 {
    let [Told::Opened, events @ .., Told::Ended] = told else {
        panic!("not opened first and ended last: {told:?}")
    };
    let (mut next, mut missing) = (1, 0);
    for event in events {
        let Told::Event {
            sequence,
            word,
            lost,
        } = event
        else {
            panic!("opened or ended twice: {told:?}")
        };
        if *word == GAP {
            assert!(*lost > 0, "{told:?}");
            missing += lost;
            next += lost;
        } else {
            assert_eq!(*sequence, next, "{told:?}");
            next += 1;
        }
    }
    assert_eq!(next, last + 1, "{told:?}");
    missing
}

/// A sink gets the events of the runs that are opened while it is there, whole, and nothing after it was taken away.
#[test]
fn sinks_come_and_go() {
    let runs = Runs::default();
    let before = open(&runs, 1);
    let (sink, told) = willing();
    runs.add_sink(sink.clone()).unwrap();
    let during = open(&runs, 2);
    for run in [&before, &during] {
        say(run, 1);
    }
    assert!(during.complete(&json!({})).unwrap());
    let late = open(&runs, 3);
    assert_eq!(runs.add_sink(willing().0).unwrap_err().name(), "probe");
    assert!(!runs.remove_sink(&willing().0));
    assert!(runs.remove_sink(&sink) && sink.close(LONG));
    let stats = sink.stats();
    assert_eq!((stats.written, stats.dropped, stats.waiting), (4, 0, 0));
    assert!(!runs.remove_sink(&sink) && runs.sinks().is_empty());
    assert!(!sink.flush(LONG) && sink.close(LONG));
    say(&late, 1);
    drop(open(&runs, 4));
    assert_eq!(told_of(&told, 1), []);
    assert_eq!(
        words_of(&told, 2),
        [
            (1, EventKind::STARTED),
            (2, EventKind::LLM_STREAM),
            (3, EventKind::COMPLETED)
        ]
    );
    assert_eq!(checked(&told_of(&told, 2), 3), 0);
    assert_eq!(words_of(&told, 3), [(1, EventKind::STARTED)]);
    assert_eq!(told_of(&told, 4), []);
}

/// Opening a run that is refused tells no sink of anything.
#[test]
fn a_refused_run_says_nothing() {
    let runs = Runs::default();
    let (handle, told) = willing();
    runs.add_sink(handle).unwrap();
    let run = open(&runs, 1);
    assert!(runs.open(1).is_err());
    let elsewhere = open(&Runs::default(), 1);
    assert!(runs.builder(2).parent(&elsewhere).open().is_err());
    run.complete(&"text").unwrap();
    assert!(runs.shutdown("going home", LONG));
    assert!(runs.open(3).is_err());
    assert_eq!(checked(&told_of(&told, 1), 2), 0);
    assert_eq!(told.lock().unwrap().len(), 4);
}

/// A sink can be taken away while runs go on and never stop to speak.
#[test]
fn a_sink_leaves_busy_runs() {
    let runs = Runs::default();
    let (sink, told, open_gate, waiting) = gated(Hold::default());
    drop(open_gate);
    runs.add_sink(sink.clone()).unwrap();
    let run = open(&runs, 1);
    std::thread::scope(|scope| {
        let speaking = scope.spawn(|| while run.emit(&token()).is_ok() {});
        waiting.recv_timeout(LONG).unwrap();
        assert!(runs.remove_sink(&sink) && sink.close(LONG));
        let stats = sink.stats();
        let words = words_of(&told, 1).into_iter();
        let written = words.filter(|(_, word)| *word != GAP).count() as u64;
        assert_eq!(stats.written, written);
        assert!(run.complete("").unwrap());
        speaking.join().unwrap();
    });
}

/// Dropping the table abandons its runs, and the sinks are told so before they go.
#[test]
fn abandoned_runs_reach_the_sinks() {
    let runs = Runs::default();
    let (handle, told) = willing();
    runs.add_sink(handle).unwrap();
    let run = open(&runs, 1);
    drop((run, runs));
    assert_eq!(
        words_of(&told, 1),
        [(1, EventKind::STARTED), (2, EventKind::FAILED)]
    );
}

/// Shutting down ends all runs before any callback runs, each in its own name, and waits for sinks so long and no longer:
/// what a sink has not taken by then counts as dropped.
#[test]
fn shutdown_ends_and_drains() {
    let runs = Runs::default();
    let (handle, told, open_gate, _waiting) = gated(Hold::default());
    runs.add_sink(handle).unwrap();
    let parent = open(&runs, 1);
    let all = [
        parent.clone(),
        open(&runs, 2),
        runs.builder(3)
            .parent(&parent)
            .pending(true)
            .open()
            .unwrap(),
    ];
    let called = Arc::new(AtomicUsize::new(0));
    for run in &all {
        let (all, called) = (all.clone(), Arc::clone(&called));
        run.token().on_cancel(move |why| {
            assert_eq!(why.kind, llm_callback::CancelKind::Shutdown);
            assert!(all.iter().all(|run| run.state() == RunState::Cancelled));
            called.fetch_add(1, Ordering::Relaxed);
        });
    }
    assert!(!runs.shutdown("going home", Duration::from_millis(1)));
    assert_eq!(called.load(Ordering::Relaxed), 3);
    assert_eq!(runs.open(4).unwrap_err(), OpenError::ShutDown);
    let size = all[2].log().size();
    assert_eq!((size.appended, size.held), (1, 1));
    drop(open_gate);
    assert!(!runs.shutdown("again", LONG), "not all is written");
    let stats = runs.sinks()[0].stats();
    assert_eq!(stats.written + stats.dropped, 5);
    assert_eq!(stats.written, told_events(&told));
}

fn told_events(told: &Log) -> u64 {
    let told = told.lock().unwrap();
    let is_event = |told: &Told| matches!(told, Told::Event { word, .. } if *word != GAP);
    told.iter().filter(|(.., told)| is_event(told)).count() as u64
}

/// Every run whose end races a shutdown has its terminal event in the sinks, last.
#[test]
fn ends_that_race_a_shutdown_reach_the_sinks() {
    const THREADS: i64 = 4;
    for _ in 0..if cfg!(miri) { 2 } else { 300 } {
        let runs = Runs::default();
        let (handle, told) = willing();
        runs.add_sink(handle).unwrap();
        let opened = std::thread::scope(|scope| {
            let threads = (0..THREADS).map(|thread| {
                let runs = &runs;
                scope.spawn(move || {
                    let mut ids = Vec::new();
                    for number in 0.. {
                        let id = thread + THREADS * number;
                        let Ok(run) = runs.open(id) else {
                            break;
                        };
                        ids.push(id);
                        let _ = run.emit(&token());
                        let _ = run.complete(&json!({}));
                    }
                    ids
                })
            });
            let threads: Vec<_> = threads.collect();
            std::thread::yield_now();
            assert!(runs.shutdown("", LONG));
            let ids = threads.into_iter().map(|thread| thread.join().unwrap());
            ids.collect::<Vec<_>>().concat()
        });
        let mut last = HashMap::new();
        for (id, _, event) in told.lock().unwrap().iter() {
            if let Told::Event { word, .. } = event {
                last.insert(id.clone(), word.clone());
            }
        }
        for id in opened {
            assert!(last[&RunId::Int(id)].is_terminal(), "run {id}");
        }
    }
}

/// A sink that panics is offered the same events again, and other runs go on meanwhile.
#[test]
fn a_sink_that_panics_is_offered_the_events_again() {
    let runs = Runs::default();
    let mut calls = 0;
    let (handle, told) = probe(Hold::default(), move |_| {
        calls += 1;
        assert_ne!(calls, 2, "on purpose");
        Ok(())
    });
    runs.add_sink(handle).unwrap();
    for id in 0..5 {
        let run = open(&runs, id);
        assert!(runs.flush(LONG));
        say(&run, 3);
        run.complete("").unwrap();
    }
    assert!(runs.flush(LONG));
    for id in 0..5 {
        assert_eq!(checked(&told_of(&told, id), 5), 0);
    }
    let sink = &runs.sinks()[0];
    assert_eq!((sink.stats().written, sink.stats().errors), (25, 1));
    assert_eq!(sink.last_error().unwrap(), "the sink panicked");
}

/// A sink that is slower than a run is told what the log has let go of, never of less than the run's first and last
/// event.
#[test]
fn a_slow_sink_has_an_explicit_gap() {
    let runs = Runs::new(options(|options| {
        options.limits = Limits::from(10);
    }));
    let (handle, told, open_gate, waiting) = gated(Hold::default());
    runs.add_sink(handle).unwrap();
    let run = open(&runs, 1);
    waiting.recv_timeout(LONG).unwrap();
    say(&run, 100);
    run.complete("").unwrap();
    drop(open_gate);
    assert!(runs.flush(LONG));
    let missing = checked(&told_of(&told, 1), 102);
    assert_eq!(missing, 90);
    let stats = runs.sinks()[0].stats();
    assert_eq!((stats.written, stats.dropped), (12, 90));
}

/// What ended runs hold for a sink that hangs stays within the bound; of each the sink gets the lifecycle events later.
#[test]
fn a_hung_sink_holds_a_bounded_number_of_bytes() {
    const RUNS: i64 = if cfg!(miri) { 5 } else { 50 };
    let hold = Hold {
        bytes: 40_000,
        ..Hold::default()
    };
    let runs = Runs::new(options(|options| {
        options.finished = 0;
    }));
    let (handle, told, open_gate, waiting) = gated(hold);
    runs.add_sink(handle).unwrap();
    for id in 0..RUNS {
        let run = open(&runs, id);
        say(&run, 30);
        if id == 0 {
            waiting.recv_timeout(LONG).unwrap();
        }
        run.complete("").unwrap();
        let stats = runs.sinks()[0].stats();
        // The lifecycle events of each run are held beyond the bound.
        let lifecycle = 2_000 * stats.waiting as u64;
        assert!(stats.waiting_bytes <= hold.bytes + lifecycle, "{stats:?}");
        assert_eq!(stats.waiting, usize::try_from(id).unwrap() + 1);
    }
    let hung = runs.sinks()[0].stats();
    drop(open_gate);
    assert!(runs.flush(LONG));
    let missing: u64 = (0..RUNS).map(|id| checked(&told_of(&told, id), 32)).sum();
    assert!(cfg!(miri) || missing > 0);
    let stats = runs.sinks()[0].stats();
    assert_eq!((stats.waiting, stats.waiting_bytes), (0, 0));
    assert_eq!(stats.dropped, missing);
    assert!(hung.dropped >= stats.dropped, "{hung:?} {stats:?}");
    let all = 32 * u64::try_from(RUNS).unwrap();
    assert_eq!(stats.written + stats.dropped, all);
}

/// A log is held for a sink that hangs for so long and no longer, though nothing else happens.
#[test]
fn a_hung_sink_holds_for_a_bounded_time() {
    let hold = Hold {
        time: Duration::from_millis(5),
        ..Hold::default()
    };
    let runs = Runs::new(options(|options| {
        options.finished = 0;
    }));
    let (handle, told, open_gate, waiting) = gated(hold);
    runs.add_sink(handle).unwrap();
    let run = open(&runs, 1);
    waiting.recv_timeout(LONG).unwrap();
    say(&run, 5);
    run.complete("").unwrap();
    drop(run);
    let end = Instant::now() + LONG;
    while runs.sinks()[0].stats().dropped < 5 {
        assert!(Instant::now() < end, "the log stays");
        std::thread::yield_now();
    }
    drop(open_gate);
    assert!(runs.flush(LONG));
    assert_eq!(checked(&told_of(&told, 1), 7), 5);
}

/// A flush returns once everything before it is written, and says so if a sink cannot.
#[test]
fn a_flush_waits_for_what_was_appended_before() {
    let runs = Runs::default();
    let is_refusing = Arc::new(AtomicUsize::new(0));
    let refusing = Arc::clone(&is_refusing);
    let (handle, told) = probe(Hold::default(), move |_| {
        if refusing.load(Ordering::Relaxed) == 1 {
            Err(0)
        } else {
            Ok(())
        }
    });
    runs.add_sink(handle).unwrap();
    let run = open(&runs, 1);
    for number in 1..if cfg!(miri) { 5 } else { 200 } {
        say(&run, 1);
        assert!(runs.flush(LONG));
        assert_eq!(words_of(&told, 1).len(), number + 1);
    }
    is_refusing.store(1, Ordering::Relaxed);
    say(&run, 1);
    assert!(!runs.flush(Duration::from_millis(5)));
    is_refusing.store(0, Ordering::Relaxed);
    assert!(runs.flush(LONG));
    let before = words_of(&told, 1).len();
    assert!(runs.flush(LONG));
    assert_eq!(words_of(&told, 1).len(), before);
}

/// A sink that is closed in the middle of a run says that it has not taken everything, each time, and what it has not
/// taken counts as dropped.
#[test]
fn a_sink_that_is_cut_off_says_so() {
    let runs = Runs::default();
    let (sink, told, open_gate, waiting) = gated(Hold::default());
    runs.add_sink(sink.clone()).unwrap();
    let run = open(&runs, 1);
    waiting.recv_timeout(LONG).unwrap();
    say(&run, 2_000);
    assert!(runs.remove_sink(&sink));
    assert!(!sink.close(Duration::from_millis(1)));
    assert_eq!(sink.stats().dropped, 2_001, "while it hangs");
    drop(open_gate);
    assert!(!sink.close(LONG) && !sink.flush(LONG));
    let stats = sink.stats();
    assert_eq!(stats.written + stats.dropped, 2_001, "{stats:?}");
    assert_eq!(stats.written, told_events(&told));
}

/// A file has all events of all runs, each run's in order, one a line, by the time the table is shut down.
#[test]
fn a_file_has_all_events() {
    let name = format!("llm-callback-{}-sinks", std::process::id());
    let folder = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("events.ndjson");
    let file = NdjsonFile::open(&path, u64::MAX).unwrap().synced();
    let runs = Runs::default();
    let handle = SinkHandle::start("file", file, Hold::default()).unwrap();
    runs.add_sink(handle).unwrap();
    let number = if cfg!(miri) { 20 } else { 1_000 };
    for id in 0..3 {
        say(&open(&runs, id), number);
    }
    assert!(runs.shutdown("done", LONG));
    let text = std::fs::read_to_string(&path).unwrap();
    for id in 0..3 {
        let events = text
            .lines()
            .map(|line| llm_callback::Event::from_json(line.as_bytes()).unwrap());
        let of_run = events.filter(|event| event.run_id == RunId::Int(id));
        let sequences: Vec<_> = of_run.map(|event| event.sequence).collect();
        assert_eq!(sequences, (1..=number as u64 + 2).collect::<Vec<_>>());
    }
    std::fs::remove_dir_all(folder).unwrap();
}

/// A name that no thread can have is an error.
#[test]
fn names_without_nul() {
    let probe = Probe {
        told: Log::default(),
        before: |_: &Batch<'_>| Ok(()),
    };
    let refused = SinkHandle::start("a\0b", probe, Hold::default()).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 1 } else { 64 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Whatever a sink refuses, and however small the logs are, it gets each run's events in order, once, with explicit
    /// gaps; and what is written and dropped adds up to what was said.
    #[test]
    fn a_sink_that_refuses_loses_nothing_silently(
        refusals in prop::collection::vec(prop::option::weighted(0.3, 0..4_usize), 0..40),
        says in prop::collection::vec((0..4_i64, 0..30_usize), 1..20),
        limit in 5..40_usize,
    ) {
        let runs = Runs::new(options(|options| {
            options.limits = Limits::from(limit);
            options.finished = 1;
        }));
        let mut refusals = refusals.into_iter();
        let (handle, told) = probe(Hold::default(), move |_| {
            refusals.next().flatten().map_or(Ok(()), Err)
        });
        runs.add_sink(handle).unwrap();
        let open: Vec<_> = (0..4).map(|id| open(&runs, id)).collect();
        for (id, number) in says {
            say(&open[usize::try_from(id).unwrap()], number);
        }
        for run in &open {
            run.complete("").unwrap();
        }
        prop_assert!(runs.flush(LONG));
        let (mut missing, mut said) = (0, 0);
        for (id, run) in (0..).zip(&open) {
            let last = run.log().size().appended;
            missing += checked(&told_of(&told, id), last);
            said += last;
        }
        let stats = runs.sinks()[0].stats();
        prop_assert_eq!((stats.dropped, stats.written), (missing, said - missing));
        prop_assert_eq!((stats.waiting, stats.waiting_bytes), (0, 0));
    }
}
