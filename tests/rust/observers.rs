//! Observers: they hear what happens to runs, each thing once, and may use the library while they are told.

#![expect(clippy::unwrap_used, reason = "a test may, and its helpers")]

use crate::options;
use llm_callback::{
    CancelKind, Closer, EncodedBody, EventKind, Lagged, Limits, Observer, Overflow, Run, RunId,
    RunState, Runs, Start,
};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Notes what it hears, and looks at the run, which takes the run's locks.
#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl Notes {
    fn add(&self, note: String) {
        self.0.lock().unwrap().push(note);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Observer for Notes {
    fn opened(&self, run: &Arc<Run>) {
        self.add(format!("opened {} {}", run.id(), run.state()));
    }

    fn ended(&self, run: &Run) {
        self.add(format!("ended {} {}", run.id(), run.state()));
    }

    fn late(&self, run: &Run) {
        self.add(format!("late {} {}", run.id(), run.log().size().appended));
    }

    fn lagged(&self, run: &RunId, lagged: Lagged) {
        self.add(format!("lagged {run} {} {}", lagged.next, lagged.oldest));
    }
}

/// Notes whether the subscription whose lag it hears of is closed by then.
#[derive(Default)]
struct AsksTheCloser {
    closer: Mutex<Option<Closer>>,
    is_closed: Mutex<Vec<bool>>,
}

impl Observer for AsksTheCloser {
    fn lagged(&self, _run: &RunId, _lagged: Lagged) {
        let closer = self.closer.lock().unwrap();
        let is_closed = closer.as_ref().unwrap().is_closed();
        self.is_closed.lock().unwrap().push(is_closed);
    }
}

/// Panics at everything that it hears.
struct Panics;

impl Observer for Panics {
    fn opened(&self, _run: &Arc<Run>) {
        panic!("on purpose")
    }

    fn ended(&self, _run: &Run) {
        panic!("on purpose")
    }
}

fn token() -> EncodedBody {
    EncodedBody::from_json(EventKind::LLM_STREAM, b"null", br#"{"content":"x"}"#)
}

/// An observer hears of each opening, each end, each late event and each reader that lagged, once, and an observer that
/// panics keeps nobody from hearing.
#[test]
fn observers_hear_everything_once() {
    let runs = Runs::new(options(|options| options.limits = Limits::from(4)));
    let notes = Arc::new(Notes::default());
    runs.observe(Arc::new(Panics));
    runs.observe(Arc::clone(&notes) as Arc<dyn Observer>);

    let run = runs.open(1).unwrap();
    let part = runs
        .builder("part")
        .parent(&run)
        .pending(true)
        .open()
        .unwrap();
    assert_eq!(notes.take(), ["opened 1 pending", "opened part pending"]);

    let mut slow = run.subscribe(&Start::Live, Overflow::Disconnect);
    for _ in 0..6 {
        run.emit(&token()).unwrap();
    }
    assert!(slow.read(1, Some(Duration::ZERO)).is_err());
    assert!(slow.read(1, Some(Duration::ZERO)).is_ok());
    assert_eq!(notes.take(), ["lagged 1 2 4"]);

    // The run that ends with its parent ends first.
    assert!(run.complete("done").unwrap());
    assert!(!run.fail("too", "late"));
    assert_eq!(notes.take(), ["ended part cancelled", "ended 1 completed"]);
    assert!(run.emit(&token()).is_err() && run.try_emit(&token()).is_err());
    assert!(!run.annotate("too late").unwrap());
    assert_eq!(notes.take(), ["late 1 8"; 3]);
    assert_eq!((part.state(), runs.stats().late), (RunState::Cancelled, 3));

    // Its deadline has passed: it ends before it starts.
    let late = runs.builder("late").deadline(Instant::now());
    assert_eq!(late.open().unwrap().state(), RunState::Cancelled);
    assert_eq!(
        notes.take(),
        ["opened late pending", "ended late cancelled"]
    );

    let open = runs.open(2).unwrap();
    runs.shutdown("going home", Duration::ZERO);
    assert!(runs.open(3).is_err());
    assert_eq!(notes.take(), ["opened 2 pending", "ended 2 cancelled"]);
    assert!(!open.cancel(CancelKind::User, "too late"));
    assert_eq!(notes.take(), [""; 0]);
}

/// A subscription that has lagged is closed before the observers hear of its lag.
#[test]
fn a_lag_is_told_of_a_closed_subscription() {
    let runs = Runs::new(options(|options| options.limits = Limits::from(4)));
    let asks = Arc::new(AsksTheCloser::default());
    runs.observe(Arc::clone(&asks) as Arc<dyn Observer>);
    let run = runs.open(1).unwrap();
    for wait in [Some(Duration::ZERO), None] {
        let mut slow = run.subscribe(&Start::Live, Overflow::Disconnect);
        *asks.closer.lock().unwrap() = Some(slow.closer());
        for _ in 0..6 {
            run.emit(&token()).unwrap();
        }
        let is_lagged = match wait {
            Some(wait) => slow.read(1, Some(wait)).is_err(),
            None => slow.try_read(1).is_err(),
        };
        assert!(is_lagged);
    }
    assert_eq!(*asks.is_closed.lock().unwrap(), [true, true]);
}
