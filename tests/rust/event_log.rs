//! A run's log against a plain list: whatever is emitted and read in whichever order, no reader is told a lie.

use crate::threads::with_deadline;
use llm_callback::{
    EncodedBody, EventId, EventKind, EventLog, Frame, Limits, Overflow, Read, Start, Subscription,
};
use proptest::prelude::*;
use std::sync::{Arc, Barrier};
use std::time::Duration;

#[derive(Clone, Debug)]
enum Operation {
    Emit {
        run: usize,
        lifecycle: bool,
        padding: usize,
    },
    Subscribe {
        run: usize,
        from: From,
        overflow: Overflow,
    },
    Read {
        reader: usize,
        max: usize,
    },
    Close {
        reader: usize,
    },
    Drop {
        reader: usize,
    },
    Finish {
        run: usize,
    },
}

#[derive(Clone, Copy, Debug)]
enum From {
    Live,
    Beginning,
    Sequence(u64),
    /// The id of that event, or one that the run never gave out.
    Id(u64),
    ForeignId(u64),
}

fn operation() -> impl Strategy<Value = Operation> {
    let from = prop_oneof![
        Just(From::Live),
        Just(From::Beginning),
        (0..12_u64).prop_map(From::Sequence),
        (1..12_u64).prop_map(From::Id),
        (1..12_u64).prop_map(From::ForeignId),
    ];
    let overflow = prop::sample::select(vec![
        Overflow::Disconnect,
        Overflow::Gap,
        Overflow::Coalesce,
        // On one thread nobody reads while it waits.
        Overflow::Block(Duration::ZERO),
    ]);
    prop_oneof![
        8 => (0..3_usize, prop::bool::weighted(0.1), 0..600_usize)
            .prop_map(|(run, lifecycle, padding)| Operation::Emit { run, lifecycle, padding }),
        2 => (0..3_usize, from, overflow)
            .prop_map(|(run, from, overflow)| Operation::Subscribe { run, from, overflow }),
        4 => (0..6_usize, 1..9_usize).prop_map(|(reader, max)| Operation::Read { reader, max }),
        1 => (0..6_usize).prop_map(|reader| Operation::Close { reader }),
        1 => (0..6_usize).prop_map(|reader| Operation::Drop { reader }),
        1 => (0..3_usize).prop_map(|run| Operation::Finish { run }),
    ]
}

/// A reader, and what the plain list says about it.
struct Reader {
    subscription: Subscription,
    run: usize,
    /// The sequence number that comes next.
    next: u64,
    overflow: Overflow,
    told: u64,
}

impl Reader {
    /// Reads, and checks that it gets its own run's events, dense and in order, or is told what is missing.
    fn read(&mut self, max: usize) -> Result<bool, TestCaseError> {
        let was_closed = self.subscription.is_closed();
        let frames = match self.subscription.read(max, Some(Duration::ZERO)) {
            Ok(Read::Events(frames)) => frames,
            Ok(Read::TimedOut | Read::Ended) => return Ok(false),
            Err(lagged) => {
                prop_assert_eq!(self.overflow, Overflow::Disconnect);
                prop_assert!(lagged.next == self.next && lagged.oldest > self.next);
                prop_assert!(self.subscription.is_closed());
                return Ok(false);
            }
        };
        prop_assert!(!was_closed);
        let mut holes = 0;
        let told = self.told;
        for frame in frames {
            let event = frame.event().expect("frames are JSON");
            prop_assert_eq!(
                &event.run_id,
                &i64::try_from(self.run).expect("small").into()
            );
            if event.event == EventKind::STREAM_GAP {
                self.told += event.data["lost"].as_u64().expect("a number");
                continue;
            }
            let content = event.data["content"].as_str().expect("a text");
            let numbers = content
                .split('.')
                .map(|piece| piece.trim_matches('a'))
                .filter(|piece| !piece.is_empty());
            let mut last = 0;
            for number in numbers {
                last = number.parse().expect("a number");
                prop_assert!(last >= self.next, "{} after {}", last, self.next);
                holes += last - self.next;
                self.next = last + 1;
            }
            // Text that was merged has the id of its last piece.
            prop_assert_eq!(event.sequence, last);
        }
        prop_assert_eq!(holes, self.told - told);
        prop_assert_eq!(self.subscription.lost(), self.told);
        Ok(true)
    }
}

fn body(word: EventKind) -> EncodedBody {
    EncodedBody::from_json(word, b"null", b"{}")
}

/// An event that says which one it is, and more.
fn numbered(word: EventKind, sequence: u64, padding: usize) -> EncodedBody {
    let data = format!(r#"{{"content":"{sequence}.{}"}}"#, "a".repeat(padding));
    EncodedBody::from_json(word, b"null", data.as_bytes())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 2 } else { 256 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Each reader gets a dense, ordered sequence of its own run's events, or an explicit gap of the right size,
    /// whatever bounds the log, wherever it began and however it is slow; a log is never larger than its bounds.
    #[test]
    fn readers_are_told_the_truth(
        events in prop::sample::select(vec![5, usize::MAX]),
        bytes in prop::sample::select(vec![1_500, usize::MAX]),
        operations in prop::collection::vec(operation(), 0..80),
    ) {
        let limits = Limits { events, bytes };
        let logs: Vec<_> = (0..3).map(|run| EventLog::new(&run.into(), limits)).collect();
        let mut ids: [Vec<EventId>; 3] = Default::default();
        let mut ended = [false; 3];
        let mut readers: Vec<Reader> = Vec::new();
        for operation in operations {
            match operation {
                Operation::Emit { run, lifecycle, padding } => {
                    let word = if lifecycle { EventKind::STARTED } else { EventKind::LLM_STREAM };
                    let body = numbered(word, ids[run].len() as u64 + 1, padding);
                    let id = logs[run].append(&body);
                    prop_assert_eq!(id.is_err(), ended[run]);
                    ids[run].extend(id);
                }
                Operation::Finish { run } => {
                    let body = numbered(EventKind::COMPLETED, ids[run].len() as u64 + 1, 0);
                    let id = logs[run].append(&body);
                    prop_assert_eq!(id.is_err(), ended[run]);
                    ids[run].extend(id);
                    ended[run] = true;
                }
                Operation::Subscribe { run, from, overflow } => {
                    let appended = ids[run].len() as u64;
                    let given = |sequence: u64| ids[run].get(usize::try_from(sequence).ok()? - 1);
                    // A start that was never given out is answered by all that is held.
                    let (start, next) = match from {
                        From::Live => (Start::Live, appended + 1),
                        From::Beginning => (Start::Beginning, 1),
                        From::Sequence(after) if after <= appended => (Start::AfterSequence(after), after + 1),
                        From::Sequence(after) => (Start::AfterSequence(after), 1),
                        From::Id(after) => match given(after) {
                            Some(id) => (Start::AfterId(*id), after + 1),
                            None => (Start::AfterId(EventId { ms: u64::MAX, sequence: after }), 1),
                        },
                        From::ForeignId(sequence) => (Start::AfterId(EventId { ms: 0, sequence }), 1),
                    };
                    let subscription = logs[run].subscribe(&start, overflow);
                    readers.push(Reader { subscription, run, next, overflow, told: 0 });
                }
                Operation::Read { reader, max } => {
                    if let Some(reader) = readers.get_mut(reader) {
                        reader.read(max)?;
                    }
                }
                Operation::Close { reader } => {
                    if let Some(reader) = readers.get_mut(reader) {
                        reader.subscription.closer().close();
                        prop_assert!(!reader.read(1)?);
                    }
                }
                Operation::Drop { reader } => {
                    if reader < readers.len() {
                        readers.swap_remove(reader);
                    }
                }
            }
        }
        for reader in &mut readers {
            while reader.read(7)? {}
            if !reader.subscription.is_closed() {
                prop_assert_eq!(reader.next, ids[reader.run].len() as u64 + 1);
            }
        }
        for (log, ids) in logs.iter().zip(&ids) {
            let mut all = log.subscribe(&Start::Beginning, Overflow::Gap);
            let Ok(Read::Events(frames)) = all.read(usize::MAX, Some(Duration::ZERO)) else {
                prop_assert!(ids.is_empty());
                continue;
            };
            let last = ids.len() as u64;
            let is_bounded = |frame: &&Arc<Frame>| {
                !frame.is_terminal() && *frame.kind() != EventKind::STREAM_GAP && frame.sequence() < last
            };
            // The first one and the newest are held whatever the bounds say.
            let bounded: Vec<_> = frames.iter().filter(is_bounded).skip(1).collect();
            prop_assert!(bounded.len() <= events);
            prop_assert!(bounded.iter().map(|frame| frame.len()).sum::<usize>() <= bytes);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 2 } else { 64 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Whoever is waited for loses nothing, whatever bounds the log and however long the run's id is.
    #[test]
    fn who_is_waited_for_loses_nothing(
        events in prop::sample::select(vec![1, 3, usize::MAX]),
        bytes in prop::sample::select(vec![2_000, 4_000]),
        name in 0..1_500_usize,
        paddings in prop::collection::vec(0..600_usize, 1..if cfg!(miri) { 10 } else { 60 }),
        max in 1..5_usize,
    ) {
        let log = EventLog::new(&"x".repeat(name).into(), Limits { events, bytes });
        let patience = Duration::from_secs(60);
        let mut reader = log.subscribe(&Start::Live, Overflow::Block(patience));
        let last = paddings.len() as u64 + 1;
        let producer = std::thread::spawn(move || {
            for (sequence, padding) in (1..).zip(paddings) {
                log.append(&numbered(EventKind::LLM_STREAM, sequence, padding)).expect("not ended");
            }
            log.append(&body(EventKind::COMPLETED)).expect("not ended");
        });
        let mut next = 1;
        while let Read::Events(frames) = reader.read(max, Some(patience)).expect("it is waited for") {
            for frame in frames {
                prop_assert_eq!((*frame.kind() == EventKind::STREAM_GAP, frame.sequence()), (false, next));
                next += 1;
            }
        }
        producer.join().expect("it does not panic");
        prop_assert_eq!((next - 1, reader.lost()), (last, 0));
    }
}

/// 16 threads emit to runs of their own and to one of all, while readers come and go: nothing is foreign or lost, each
/// log ends once.
#[test]
fn threads_and_readers() {
    with_deadline(|| emit_and_read(if cfg!(miri) { 8 } else { 64 }));
}

/// The same with `STRESS_SCALE` times 1 000 runs. On Linux, which says how much memory a process has, the second time
/// takes no more than the first.
#[test]
#[ignore = "a long test: make stress"]
fn many_threads_many_readers() {
    let scale = std::env::var("STRESS_SCALE").map_or(1, |scale| scale.parse().expect("a number"));
    emit_and_read(1_000 * scale);
    #[cfg(target_os = "linux")]
    {
        let before = resident();
        emit_and_read(1_000 * scale);
        let after = resident();
        assert!(after < before + (64 << 20), "{before} bytes, then {after}");
    }
}

/// How many bytes of memory this process has.
#[cfg(target_os = "linux")]
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    1024 * kilobytes
        .expect("in kB")
        .parse::<usize>()
        .expect("a number")
}

fn emit_and_read(runs: usize) {
    const THREADS: usize = if cfg!(miri) { 4 } else { 16 };
    let events = if cfg!(miri) { 2 } else { 1_000_u64 };
    let limits = Limits {
        events: usize::MAX,
        bytes: usize::MAX,
    };
    let shared = EventLog::new(&"shared".into(), limits);
    let start = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (shared, start) = (&shared, &start);
            scope.spawn(move || {
                start.wait();
                for run in (thread..runs).step_by(THREADS) {
                    let log = EventLog::new(&i64::try_from(run).expect("small").into(), limits);
                    std::thread::scope(|scope| {
                        let log = &log;
                        scope.spawn(move || assert_eq!(read_all(log), events + 1));
                        // One that goes before the end.
                        let mut brief = log.subscribe(&Start::Live, Overflow::Disconnect);
                        for _ in 0..events {
                            log.append(&body(EventKind::LLM_STREAM)).expect("not ended");
                        }
                        assert!(matches!(brief.read(10, None), Ok(Read::Events(_))));
                        drop(brief);
                        shared
                            .append(&body(EventKind::LLM_STREAM))
                            .expect("not ended");
                        log.append(&body(EventKind::COMPLETED)).expect("not ended");
                        assert!(log.append(&body(EventKind::FAILED)).is_err());
                    });
                }
            });
        }
    });
    shared
        .append(&body(EventKind::COMPLETED))
        .expect("not ended");
    assert_eq!(read_all(&shared), runs as u64 + 1);
}

/// Reads to the end, and checks that the sequence is dense; how many events there were.
fn read_all(log: &Arc<EventLog>) -> u64 {
    let mut reader = log.subscribe(&Start::Beginning, Overflow::Disconnect);
    let mut next = 1;
    while let Read::Events(frames) = reader.read(64, None).expect("the log holds all") {
        for frame in frames {
            assert_eq!(frame.sequence(), next);
            next += 1;
        }
    }
    next - 1
}
