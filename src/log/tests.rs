//! Tests of a log and its readers on few threads.
#![expect(clippy::unwrap_used, reason = "a test may, and its helpers")]

use super::*;
use crate::wire::{EncodedBody, EventId, EventKind};
use std::sync::{Arc, mpsc};
use std::time::Duration;

const FEW: Limits = Limits {
    events: 4,
    bytes: usize::MAX,
};
const AT_ONCE: Option<Duration> = Some(Duration::ZERO);

fn log(limits: Limits) -> Arc<EventLog> {
    EventLog::new(&7.into(), limits)
}

fn text(log: &EventLog, text: &str) -> EventId {
    let data = format!(r#"{{"content":"{text}"}}"#);
    log.append(&EncodedBody::from_json(
        EventKind::LLM_STREAM,
        b"null",
        data.as_bytes(),
    ))
    .unwrap()
}

fn lifecycle(log: &EventLog, kind: EventKind) -> EventId {
    log.append(&EncodedBody::from_json(kind, b"null", b"{}"))
        .unwrap()
}

fn end(log: &EventLog) -> EventId {
    log.append(&EncodedBody::from_json(
        EventKind::COMPLETED,
        b"null",
        b"{}",
    ))
    .unwrap()
}

fn sequences(read: Result<Read, Lagged>) -> Vec<u64> {
    match read.unwrap() {
        Read::Events(frames) => frames.iter().map(|frame| frame.sequence()).collect(),
        Read::TimedOut => panic!("timed out"),
        Read::Ended => Vec::new(),
    }
}

/// A reader from the beginning sees what was there and what comes, in order, once, and then the end.
#[test]
fn replay_then_live() {
    let log = log(Limits::default());
    text(&log, "a");
    let mut reader = log.subscribe(&Start::Beginning, Overflow::Disconnect);
    let mut live = log.subscribe(&Start::Live, Overflow::Disconnect);
    text(&log, "b");
    assert_eq!(sequences(reader.read(10, AT_ONCE)), [1, 2]);
    assert_eq!(sequences(live.read(10, AT_ONCE)), [2]);
    assert!(matches!(reader.read(10, AT_ONCE), Ok(Read::TimedOut)));
    end(&log);
    assert_eq!(sequences(reader.read(10, AT_ONCE)), [3]);
    assert!(matches!(reader.read(10, None), Ok(Read::Ended)));
    assert!(matches!(reader.read(10, None), Ok(Read::Ended)));
}

/// Whoever comes after the end reads all of it, and the end.
#[test]
fn a_finished_log_is_read_to_the_end() {
    let log = log(Limits::default());
    let first = text(&log, "a");
    let last = end(&log);
    assert_eq!(
        log.append(&EncodedBody::from_json(
            EventKind::LLM_STREAM,
            b"null",
            b"{}"
        )),
        Err(Ended)
    );
    assert_eq!(
        sequences(
            log.subscribe(&Start::Beginning, Overflow::Gap)
                .read(9, None)
        ),
        [1, 2]
    );
    assert_eq!(
        sequences(
            log.subscribe(&Start::AfterId(first), Overflow::Gap)
                .read(9, None)
        ),
        [2]
    );
    assert_eq!(
        sequences(
            log.subscribe(&Start::AfterId(last), Overflow::Gap)
                .read(9, None)
        ),
        [0; 0]
    );
    assert_eq!(
        sequences(log.subscribe(&Start::Live, Overflow::Gap).read(9, None)),
        [0; 0]
    );
}

/// Of what a bounded log lets go of, a slow reader with `Gap` is told how much, and lifecycle events it still gets.
#[test]
fn a_gap_is_told() {
    let log = log(FEW);
    let mut reader = log.subscribe(&Start::Beginning, Overflow::Gap);
    lifecycle(&log, EventKind::STARTED);
    for _ in 0..6 {
        text(&log, "x");
    }
    let Ok(Read::Events(frames)) = reader.read(10, AT_ONCE) else {
        panic!("no events")
    };
    let gap = frames[1].event().unwrap();
    assert_eq!(*frames[1].kind(), EventKind::STREAM_GAP);
    assert_eq!(
        (&gap.data["requested"], &gap.data["lost"]),
        (&"0".into(), &2.into())
    );
    assert_eq!(gap.data["oldest"], frames[2].id().to_string());
    assert_eq!(*frames[0].kind(), EventKind::STARTED);
    let rest: Vec<_> = frames[2..].iter().map(|frame| frame.sequence()).collect();
    assert_eq!(rest, [4, 5, 6, 7]);
    let size = log.size();
    assert_eq!((size.appended, size.held), (7, 5));
}

/// A slow reader with `Disconnect` ends, and resumes by id without a loss if the log still holds what follows.
#[test]
fn a_lagging_reader_is_disconnected() {
    let log = log(FEW);
    let mut reader = log.subscribe(&Start::Live, Overflow::Disconnect);
    let ids: Vec<_> = (0..6).map(|_| text(&log, "x")).collect();
    assert_eq!(
        reader.read(10, None).unwrap_err(),
        Lagged { next: 1, oldest: 3 }
    );
    assert!(matches!(reader.read(10, None), Ok(Read::Ended)));
    let mut resumed = log.subscribe(&Start::AfterId(ids[2]), Overflow::Disconnect);
    assert_eq!(sequences(resumed.read(10, AT_ONCE)), [4, 5, 6]);
}

/// A start that the log does not hold, or never gave out, is answered by a gap event and all that is held.
#[test]
fn an_unknown_start_is_a_gap() {
    let log = log(FEW);
    let ids: Vec<_> = (0..6).map(|_| text(&log, "x")).collect();
    let other = EventId {
        ms: ids[5].ms + 1,
        ..ids[5]
    };
    let future = EventId {
        sequence: 99,
        ..ids[5]
    };
    for (start, lost) in [
        (Start::AfterId(ids[0]), 1),
        (Start::AfterId(other), 2),
        (Start::AfterId(future), 2),
        (Start::AfterSequence(0), 2),
        (Start::AfterSequence(50), 2),
        (Start::Beginning, 2),
    ] {
        let mut reader = log.subscribe(&start, Overflow::Disconnect);
        let Ok(Read::Events(frames)) = reader.read(10, AT_ONCE) else {
            panic!("no events")
        };
        assert_eq!(frames[0].event().unwrap().data["lost"], lost, "{start:?}");
        let rest: Vec<_> = frames[1..].iter().map(|frame| frame.sequence()).collect();
        assert_eq!(rest, [3, 4, 5, 6], "{start:?}");
    }
}

/// With `Coalesce`, text that waits for the reader comes in one event.
#[test]
fn waiting_text_is_merged() {
    let log = log(Limits::default());
    let mut reader = log.subscribe(&Start::Live, Overflow::Coalesce);
    for word in ["a", "b", "c"] {
        text(&log, word);
    }
    let Ok(Read::Events(frames)) = reader.read(10, AT_ONCE) else {
        panic!("no events")
    };
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0].event().unwrap().data["content"], "abc");
    assert_eq!(frames[0].sequence(), 3);
}

/// With `Block`, whoever emits waits for the reader and nothing is lost; without one that reads, only so long.
#[test]
fn a_producer_waits() {
    let log = log(FEW);
    let mut reader = log.subscribe(&Start::Live, Overflow::Block(Duration::from_secs(30)));
    let producer = {
        let log = Arc::clone(&log);
        std::thread::spawn(move || {
            for _ in 0..100 {
                text(&log, "x");
            }
            end(&log);
        })
    };
    let mut seen = Vec::new();
    loop {
        let read = sequences(reader.read(3, Some(Duration::from_secs(30))));
        if read.is_empty() {
            break;
        }
        seen.extend(read);
    }
    producer.join().unwrap();
    assert_eq!(seen, (1..=101).collect::<Vec<_>>());

    let log = self::log(FEW);
    let mut idle = log.subscribe(&Start::Live, Overflow::Block(Duration::from_millis(1)));
    for _ in 0..6 {
        text(&log, "x");
    }
    let Ok(Read::Events(frames)) = idle.read(10, AT_ONCE) else {
        panic!("no events")
    };
    assert_eq!(*frames[0].kind(), EventKind::STREAM_GAP);
    drop(idle);
    text(&log, "nobody to wait for");
    assert!(!log.lock().readers.has_blocking());
}

/// A reader that waits is woken by an event, and by the end.
#[test]
fn waiting_ends_with_an_event() {
    let log = log(Limits::default());
    let (told, hears) = mpsc::channel();
    let reader = {
        let log = Arc::clone(&log);
        std::thread::spawn(move || {
            let mut reader = log.subscribe(&Start::Beginning, Overflow::Disconnect);
            loop {
                let read = sequences(reader.read(1, Some(Duration::from_secs(30))));
                if read.is_empty() {
                    break;
                }
                told.send(read[0]).unwrap();
            }
        })
    };
    text(&log, "a");
    assert_eq!(hears.recv_timeout(Duration::from_secs(30)), Ok(1));
    end(&log);
    assert_eq!(hears.recv_timeout(Duration::from_secs(30)), Ok(2));
    reader.join().unwrap();
}

/// A wake is called once, when there is something to read; a closed or dropped subscription leaves none behind.
#[test]
fn wakes_are_called_once() {
    let log = log(Limits::default());
    let (woken, wakes) = mpsc::channel();
    let wake = |name: &'static str| -> Wake {
        let woken = woken.clone();
        Box::new(move || woken.send(name).unwrap())
    };
    let mut reader = log.subscribe(&Start::Live, Overflow::Disconnect);
    assert!(reader.wake_when_readable(wake("replaced")));
    assert!(reader.wake_when_readable(wake("called")));
    let dropped = log.subscribe(&Start::Live, Overflow::Disconnect);
    assert!(dropped.wake_when_readable(wake("dropped")));
    drop(dropped);
    text(&log, "a");
    text(&log, "b");
    assert_eq!(wakes.try_iter().collect::<Vec<_>>(), ["called"]);
    assert!(!reader.wake_when_readable(wake("not needed")));
    assert_eq!(sequences(reader.read(10, AT_ONCE)), [1, 2]);
    assert!(reader.wake_when_readable(wake("closed")));
    reader.close();
    reader.close();
    assert_eq!(wakes.try_iter().collect::<Vec<_>>(), ["closed"]);
    assert!(!reader.wake_when_readable(wake("not needed")));
    end(&log);
    assert_eq!(wakes.try_iter().count(), 0);
    assert!(!log.lock().waiters.has_wakes());
}

/// Closed from another thread, a read that waits has its end, and a producer that waits for it goes on.
#[test]
fn a_closer_ends_a_waiting_read() {
    let log = log(FEW);
    let mut reader = log.subscribe(&Start::Live, Overflow::Block(Duration::from_secs(60)));
    let closer = reader.closer();
    for _ in 0..4 {
        text(&log, "x");
    }
    let producer = {
        let log = Arc::clone(&log);
        std::thread::spawn(move || text(&log, "waits").sequence)
    };
    closer.close();
    closer.clone().close();
    assert!(reader.is_closed() && closer.is_closed());
    assert_eq!(producer.join().unwrap(), 5);
    assert!(matches!(reader.read(1, None), Ok(Read::Ended)));

    let mut idle = log.subscribe(&Start::Live, Overflow::Gap);
    let closer = idle.closer();
    let waiting = std::thread::spawn(move || idle.read(1, Some(Duration::from_secs(60))));
    while log.lock().waiters.threads == 0 {
        std::thread::yield_now();
    }
    closer.close();
    assert!(matches!(waiting.join().unwrap(), Ok(Read::Ended)));
}

/// Who must not wait is told so, and nothing has happened: of a lock that is taken, of a reader that is waited for.
#[test]
fn trying_never_waits() {
    let log = log(FEW);
    let body = EncodedBody::from_json(EventKind::LLM_STREAM, b"null", b"{}");
    let held = log.lock();
    assert_eq!(log.try_append(&body), Err(TryAppendError::WouldBlock));
    drop(held);
    let mut reader = log.subscribe(&Start::Live, Overflow::Block(Duration::from_secs(60)));
    for sequence in 1..=4 {
        let id = log.try_append(&body).unwrap();
        assert_eq!(id.sequence, sequence);
    }
    assert_eq!(log.try_append(&body), Err(TryAppendError::WouldBlock));
    assert_eq!(sequences(reader.read(1, AT_ONCE)), [1]);
    assert_eq!(log.try_append(&body).unwrap().sequence, 5);
    // A terminal event takes nothing from anybody.
    assert_eq!(log.try_append(&body), Err(TryAppendError::WouldBlock));
    let end = EncodedBody::from_json(EventKind::COMPLETED, b"null", b"{}");
    assert_eq!(log.try_append(&end).unwrap().sequence, 6);
    assert_eq!(log.try_append(&body), Err(TryAppendError::Ended));
}

/// What a reader lost is counted, for it and for the log.
#[test]
fn losses_are_counted() {
    let log = log(FEW);
    let mut reader = log.subscribe(&Start::Live, Overflow::Gap);
    for _ in 0..6 {
        text(&log, "x");
    }
    assert_eq!((reader.lost(), log.lost()), (0, 0));
    assert!(reader.read(10, AT_ONCE).is_ok());
    assert_eq!((reader.lost(), log.lost()), (2, 2));
}

/// An event that is larger than the log's bound in bytes is held, alone.
#[test]
fn the_newest_event_is_held() {
    let log = log(Limits {
        events: 10,
        bytes: 1,
    });
    let mut reader = log.subscribe(&Start::Live, Overflow::Gap);
    text(&log, "a");
    text(&log, &"b".repeat(1000));
    let Ok(Read::Events(frames)) = reader.read(10, AT_ONCE) else {
        panic!("no events")
    };
    assert_eq!(frames.len(), 2);
    assert_eq!(frames[1].sequence(), 2);
}

/// The iterator gives every event once, a gap in its place, and ends with the run; what it has read ahead is not lost
/// to a read.
#[test]
fn a_subscription_is_an_iterator() {
    let log = log(FEW);
    lifecycle(&log, EventKind::STARTED);
    for _ in 0..6 {
        text(&log, "x");
    }
    let mut reader = log.subscribe(&Start::Beginning, Overflow::Gap);
    let first = reader.next().unwrap().unwrap();
    assert_eq!(*first.kind(), EventKind::STARTED);
    assert_eq!(reader.try_is_ended(), Ok(false));
    assert!(!reader.wake_when_readable(Box::new(|| panic!("there is something to read"))));
    let Ok(Read::Events(frames)) = reader.read(1, AT_ONCE) else {
        panic!("no events")
    };
    assert_eq!(*frames[0].kind(), EventKind::STREAM_GAP);
    assert_eq!(frames[1].sequence(), 4);
    end(&log);
    let rest: Vec<_> = reader.map(|frame| frame.unwrap().sequence()).collect();
    assert_eq!(rest, [5, 6, 7, 8]);

    let mut lagging = self::log(FEW).subscribe(&Start::Live, Overflow::Disconnect);
    lagging.close();
    assert!(lagging.next().is_none());
}

/// A reader whose log is held by another thread is told that it would block.
#[test]
fn trying_to_read_never_waits() {
    let log = log(FEW);
    let mut reader = log.subscribe(&Start::Live, Overflow::Gap);
    let held = log.lock();
    assert_eq!(reader.try_read(1).unwrap_err(), TryReadError::WouldBlock);
    assert_eq!(reader.try_is_ended(), Err(WouldBlock));
    assert!(format!("{log:?}").starts_with("EventLog"));
    drop(held);
    assert!(matches!(reader.try_read(1), Ok(Read::TimedOut)));
}
