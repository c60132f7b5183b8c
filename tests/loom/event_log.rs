//! The log: an end that races emissions, a reader that races both, a reader that waits.

use llm_callback::{
    EncodedBody, EventKind, EventLog, Limits, Overflow, Read, Start, TryAppendError,
};
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use std::sync::Arc;
use std::time::Duration;

fn body(word: EventKind) -> EncodedBody {
    EncodedBody::from_json(word, b"null", b"{}")
}

fn log() -> Arc<EventLog> {
    EventLog::new(&1.into(), Limits::default())
}

fn read_to_the_end(log: &Arc<EventLog>) -> Vec<u64> {
    let mut reader = log.subscribe(&Start::Beginning, Overflow::Disconnect);
    let mut sequences = Vec::new();
    while let Read::Events(frames) = reader.read(10, None).unwrap() {
        sequences.extend(frames.iter().map(|frame| frame.sequence()));
    }
    sequences
}

/// An event that races the end is in the log before it, or refused.
#[test]
fn emit_against_finish() {
    loom::model(|| {
        let log = log();
        let emitting = {
            let log = Arc::clone(&log);
            thread::spawn(move || log.append(&body(EventKind::LLM_STREAM)))
        };
        let end = log.append(&body(EventKind::COMPLETED)).unwrap();
        match emitting.join().unwrap() {
            Ok(id) => assert!(id.sequence < end.sequence),
            Err(_) => assert_eq!(end.sequence, 1),
        }
        assert_eq!(log.terminal().unwrap().id(), end);
    });
}

/// Of two ends one is the end.
#[test]
fn finish_against_finish() {
    loom::model(|| {
        let log = log();
        let failing = {
            let log = Arc::clone(&log);
            thread::spawn(move || log.append(&body(EventKind::FAILED)).is_ok())
        };
        let completed = log.append(&body(EventKind::COMPLETED)).is_ok();
        assert!(completed ^ failing.join().unwrap());
        assert_eq!(log.size().appended, 1);
    });
}

/// A reader that attaches while events come sees each of them once, in order, to the end.
#[test]
fn subscribe_against_emit() {
    loom::model(|| {
        let log = log();
        let emitting = {
            let log = Arc::clone(&log);
            thread::spawn(move || {
                log.append(&body(EventKind::LLM_STREAM)).unwrap();
                log.append(&body(EventKind::COMPLETED)).unwrap();
            })
        };
        // It waits for what has not come yet: a wake that got lost would be a deadlock.
        assert_eq!(read_to_the_end(&log), [1, 2]);
        emitting.join().unwrap();
    });
}

/// A log with room for one event.
fn small_log() -> Arc<EventLog> {
    let limits = Limits {
        events: 1,
        bytes: usize::MAX,
    };
    EventLog::new(&1.into(), limits)
}

/// Appends, on a thread of its own, events with the numbers 1 to `last`, of which the last ends the log.
fn appending(log: &Arc<EventLog>, last: u64) -> thread::JoinHandle<()> {
    let log = Arc::clone(log);
    thread::spawn(move || {
        for number in 1..=last {
            let word = if number == last {
                EventKind::COMPLETED
            } else {
                EventKind::LLM_STREAM
            };
            assert_eq!(log.append(&body(word)).unwrap().sequence, number);
        }
    })
}

/// A producer whose patience runs out at once goes on beside a reader that reads on: the reader gets every event in
/// order, or is told by a gap how many it has lost, and gets the last one in any case.
#[test]
fn patience_that_runs_out_against_read() {
    loom::model(|| {
        let log = small_log();
        let mut reader = log.subscribe(&Start::Live, Overflow::Block(Duration::ZERO));
        let appending = appending(&log, 3);
        let (mut seen, mut last) = (0, None);
        while let Read::Events(frames) = reader.read(1, None).unwrap() {
            for frame in frames
                .iter()
                .filter(|frame| *frame.kind() != EventKind::STREAM_GAP)
            {
                seen += 1;
                assert_eq!(frame.sequence(), seen + reader.lost());
                last = Some(frame.kind().clone());
            }
        }
        appending.join().unwrap();
        assert_eq!(
            (seen + reader.lost(), last),
            (3, Some(EventKind::COMPLETED))
        );
    });
}

/// Whom a producer has given up waiting for costs no other reader an event: the one whom it still waits for reads all.
#[test]
fn patience_with_one_reader_against_another_that_reads() {
    loom::model(|| {
        let log = small_log();
        let mut idle = log.subscribe(&Start::Live, Overflow::Block(Duration::ZERO));
        let mut reader = log.subscribe(&Start::Live, Overflow::Block(Duration::MAX));
        let appending = appending(&log, 3);
        let mut sequences = Vec::new();
        while let Read::Events(frames) = reader.read(1, None).unwrap() {
            sequences.extend(frames.iter().map(|frame| frame.sequence()));
        }
        appending.join().unwrap();
        assert_eq!((sequences, reader.lost()), (vec![1, 2, 3], 0));
        // Beyond the gap are the two that are held: the terminal one is one more than there is room for.
        let Read::Events(frames) = idle.read(10, None).unwrap() else {
            panic!("it is told of its gap");
        };
        assert_eq!((frames.len(), idle.lost()), (3, 1));
    });
}

/// A producer waits for an idle reader no longer than its patience, and not again until that reader has read on.
#[test]
fn patience_runs_out_with_an_idle_reader() {
    loom::model(|| {
        let log = small_log();
        let mut idle = log.subscribe(&Start::Live, Overflow::Block(Duration::ZERO));
        let token = body(EventKind::LLM_STREAM);
        log.append(&token).unwrap();
        for lost in 1..=2 {
            let has_to_wait = log.try_append(&token) == Err(TryAppendError::WouldBlock);
            assert!(has_to_wait);
            let appending = {
                let (log, token) = (Arc::clone(&log), token.clone());
                // A wait without an end would be a deadlock.
                thread::spawn(move || log.append(&token).is_ok())
            };
            assert!(appending.join().unwrap());
            assert!(log.try_append(&token).is_ok());
            idle.read(10, None).unwrap();
            assert_eq!(idle.lost(), 2 * lost);
            log.append(&token).unwrap();
        }
    });
}

/// Whoever waits to emit, for a reader that does not read, is refused as soon as the log ends.
#[test]
fn blocked_emit_against_finish() {
    loom::model(|| {
        let log = small_log();
        let _idle = log.subscribe(&Start::Live, Overflow::Block(Duration::MAX));
        log.append(&body(EventKind::LLM_STREAM)).unwrap();
        let emitting = {
            let log = Arc::clone(&log);
            thread::spawn(move || log.append(&body(EventKind::LLM_STREAM)).is_err())
        };
        log.append(&body(EventKind::COMPLETED)).unwrap();
        assert!(emitting.join().unwrap());
    });
}

/// A read that waits has its end as soon as the subscription is closed from elsewhere.
#[test]
fn close_against_read() {
    loom::model(|| {
        let log = log();
        let mut reader = log.subscribe(&Start::Live, Overflow::Disconnect);
        let closer = reader.closer();
        let closing = thread::spawn(move || closer.close());
        // A wake that got lost would be a deadlock.
        assert!(matches!(reader.read(1, None), Ok(Read::Ended)));
        closing.join().unwrap();
        assert!(reader.is_closed());
    });
}

/// The wake of a reader that is closed from elsewhere is called once, or was not taken.
#[test]
fn close_against_wake() {
    loom::model(|| {
        let log = log();
        let reader = log.subscribe(&Start::Live, Overflow::Disconnect);
        let closer = reader.closer();
        let closing = thread::spawn(move || closer.close());
        let calls = loom::sync::Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        let was_taken = reader.wake_when_readable(Box::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        }));
        closing.join().unwrap();
        assert_eq!(calls.load(Ordering::Relaxed), usize::from(was_taken));
    });
}

/// A producer that waits for a reader goes on when the reader is closed from elsewhere.
#[test]
fn close_against_blocked_emit() {
    loom::model(|| {
        let log = small_log();
        let idle = log.subscribe(&Start::Live, Overflow::Block(Duration::MAX));
        log.append(&body(EventKind::LLM_STREAM)).unwrap();
        assert!(log.try_append(&body(EventKind::LLM_STREAM)).is_err());
        let closer = idle.closer();
        let closing = thread::spawn(move || closer.close());
        assert!(log.append(&body(EventKind::LLM_STREAM)).is_ok());
        closing.join().unwrap();
    });
}
