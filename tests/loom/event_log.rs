//! The log: an end that races emissions, a reader that races both, a reader that waits.

use llm_callback::{Body, EventLog, Limits, Overflow, Read, Start, Word};
use loom::thread;
use std::sync::Arc;

fn body(word: Word) -> Body {
    Body::from_json(word, b"null", b"{}")
}

fn log() -> Arc<EventLog> {
    EventLog::new(&1.into(), Limits::default(), None)
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
            thread::spawn(move || log.append(&body(Word::LLM_STREAM)))
        };
        let end = log.append(&body(Word::COMPLETED)).unwrap();
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
            thread::spawn(move || log.append(&body(Word::FAILED)).is_ok())
        };
        let completed = log.append(&body(Word::COMPLETED)).is_ok();
        assert!(completed ^ failing.join().unwrap());
        assert_eq!(log.len().0, 1);
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
                log.append(&body(Word::LLM_STREAM)).unwrap();
                log.append(&body(Word::COMPLETED)).unwrap();
            })
        };
        // It waits for what has not come yet: a wake that got lost would be a deadlock.
        assert_eq!(read_to_the_end(&log), [1, 2]);
        emitting.join().unwrap();
    });
}

/// Whoever waits to emit, for a reader that does not read, is refused as soon as the log ends.
#[test]
fn blocked_emit_against_finish() {
    loom::model(|| {
        let log = EventLog::new(
            &1.into(),
            Limits {
                events: 1,
                bytes: usize::MAX,
            },
            None,
        );
        let _idle = log.subscribe(&Start::Live, Overflow::Block(std::time::Duration::MAX));
        log.append(&body(Word::LLM_STREAM)).unwrap();
        let emitting = {
            let log = Arc::clone(&log);
            thread::spawn(move || log.append(&body(Word::LLM_STREAM)).is_err())
        };
        log.append(&body(Word::COMPLETED)).unwrap();
        assert!(emitting.join().unwrap());
    });
}
