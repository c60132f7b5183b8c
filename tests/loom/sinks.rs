//! Sinks: an end that races a shutdown and the sink's follower, an event that races a flush.

use llm_callback::{
    Batch, EncodedBody, EventKind, Followed, Hold, Refused, Run, RunState, Runs, Sink, SinkHandle,
};
use loom::thread;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Notes the words that it is told. No lock of loom's: the follower has written them before anybody looks.
struct Words(Arc<Mutex<Vec<EventKind>>>);

impl Sink for Words {
    fn write(&mut self, batch: &Batch<'_>) -> Result<(), Refused> {
        let words = batch.frames().iter().map(|frame| frame.kind().clone());
        self.0.lock().unwrap().extend(words);
        Ok(())
    }

    fn ended(&mut self, _run: &Followed) {}

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn with_sink() -> (Runs, Arc<Mutex<Vec<EventKind>>>) {
    let runs = Runs::default();
    let words = Arc::new(Mutex::new(Vec::new()));
    let sink = SinkHandle::start("words", Words(Arc::clone(&words)), Hold::default()).unwrap();
    runs.add_sink(sink).unwrap();
    (runs, words)
}

fn open(runs: &Runs, pending: bool) -> Arc<Run> {
    runs.builder(1).pending(pending).open().unwrap()
}

fn model(body: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    // Three threads, one of which is the sink's.
    builder.preemption_bound = Some(2);
    builder.check(body);
}

/// A run that another thread ends while the table is shut down has its terminal event in the sink, last, and once.
#[test]
fn end_against_shutdown_against_follower() {
    model(|| {
        let (runs, words) = with_sink();
        let run = open(&runs, true);
        let ending = {
            let run = run.clone();
            thread::spawn(move || run.complete("done").unwrap())
        };
        assert!(runs.shutdown("", Duration::MAX));
        let words = words.lock().unwrap().clone();
        ending.join().unwrap();
        let end = run.log().terminal().unwrap().kind().clone();
        let ends = words.iter().filter(|word| word.is_terminal()).count();
        assert_eq!((words.last(), ends), (Some(&end), 1), "{words:?}");
    });
}

/// A run that is opened while the table is shut down is refused, or has its terminal event in the sink.
#[test]
fn open_against_shutdown_against_follower() {
    model(|| {
        let (runs, words) = with_sink();
        let opening = {
            let runs = runs.clone();
            thread::spawn(move || runs.open(1).ok())
        };
        assert!(runs.shutdown("", Duration::MAX));
        let run = opening.join().unwrap();
        let words = words.lock().unwrap();
        match run {
            Some(run) => {
                assert_eq!(run.state(), RunState::Cancelled);
                assert_eq!(words.last(), Some(&EventKind::CANCELLED), "{words:?}");
            }
            None => assert_eq!(*words, []),
        }
    });
}

/// An event that was appended before a flush is written when the flush returns, also if another thread has told the sink
/// of the run's news, and not quite yet.
#[test]
fn emit_against_flush_against_follower() {
    model(|| {
        let (runs, words) = with_sink();
        let run = open(&runs, true);
        let emitting = {
            let run = run.clone();
            thread::spawn(move || run.start())
        };
        let body = EncodedBody::from_json(EventKind::LLM_STREAM, b"null", b"{}");
        run.emit(&body).unwrap();
        assert!(runs.flush(Duration::MAX));
        assert_eq!(
            *words.lock().unwrap(),
            [EventKind::STARTED, EventKind::LLM_STREAM],
            "not flushed"
        );
        emitting.join().unwrap();
        assert!(runs.shutdown("", Duration::MAX));
    });
}

/// When somebody has seen a run's end, a flush has the sink take the terminal event, though another thread has ended the
/// run and the sink may not know of it yet.
#[test]
fn seen_end_against_flush() {
    model(|| {
        let (runs, words) = with_sink();
        let run = open(&runs, true);
        let ending = {
            let run = run.clone();
            thread::spawn(move || run.complete("done").unwrap())
        };
        if run.state() == RunState::Completed {
            assert!(runs.flush(Duration::MAX));
            let words = words.lock().unwrap().clone();
            assert_eq!(words.last(), Some(&EventKind::COMPLETED));
        }
        assert!(ending.join().unwrap());
        assert!(runs.shutdown("", Duration::MAX));
    });
}
