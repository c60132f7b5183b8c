//! A run's log against a plain list: whatever is emitted and read in whichever order, no reader is told a lie.

use llm_callback::{Body, EventLog, Limits, Overflow, Read, Start, Subscription, Word};
use proptest::prelude::*;
use std::sync::{Arc, Barrier};
use std::time::Duration;

#[derive(Clone, Debug)]
enum Operation {
    Emit { run: usize, lifecycle: bool },
    Subscribe { run: usize, start: u64, gap: bool },
    Read { reader: usize, max: usize },
    Drop { reader: usize },
    Finish { run: usize },
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        8 => (0..3_usize, prop::bool::weighted(0.1))
            .prop_map(|(run, lifecycle)| Operation::Emit { run, lifecycle }),
        2 => (0..3_usize, 0..12_u64, any::<bool>())
            .prop_map(|(run, start, gap)| Operation::Subscribe { run, start, gap }),
        4 => (0..6_usize, 1..9_usize).prop_map(|(reader, max)| Operation::Read { reader, max }),
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
    gap: bool,
}

impl Reader {
    /// Reads, and checks that it gets its own run's events, dense and in order, or is told what is missing.
    fn read(&mut self, max: usize) -> Result<bool, TestCaseError> {
        let frames = match self.subscription.read(max, Some(Duration::ZERO)) {
            Ok(Read::Events(frames)) => frames,
            Ok(Read::TimedOut | Read::Ended) => return Ok(false),
            Err(lagged) => {
                prop_assert!(!self.gap && lagged.next == self.next && lagged.oldest > self.next);
                return Ok(false);
            }
        };
        let (mut holes, mut told) = (0, 0);
        for frame in frames {
            let event = frame.event().expect("frames are JSON");
            prop_assert_eq!(
                &event.run_id,
                &i64::try_from(self.run).expect("small").into()
            );
            if event.event == Word::STREAM_GAP {
                told += event.data["lost"].as_u64().expect("a number");
                continue;
            }
            prop_assert!(
                event.sequence >= self.next,
                "{} after {}",
                event.sequence,
                self.next
            );
            holes += event.sequence - self.next;
            self.next = event.sequence + 1;
        }
        prop_assert_eq!(holes, told);
        Ok(true)
    }
}

fn body(word: Word) -> Body {
    Body::from_json(word, b"null", b"{}")
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 2 } else { 256 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Each reader gets a dense, ordered sequence of its own run's events, or an explicit gap of the right size.
    #[test]
    fn readers_are_told_the_truth(operations in prop::collection::vec(operation(), 0..80)) {
        let limits = Limits { events: 5, bytes: usize::MAX };
        let logs: Vec<_> = (0..3).map(|run| EventLog::new(&run.into(), limits, None)).collect();
        let mut appended = [0_u64; 3];
        let mut ended = [false; 3];
        let mut readers: Vec<Reader> = Vec::new();
        for operation in operations {
            match operation {
                Operation::Emit { run, lifecycle } => {
                    let word = if lifecycle { Word::STARTED } else { Word::LLM_STREAM };
                    let id = logs[run].append(&body(word));
                    prop_assert_eq!(id.is_err(), ended[run]);
                    appended[run] += u64::from(id.is_ok());
                }
                Operation::Finish { run } => {
                    prop_assert_eq!(logs[run].append(&body(Word::COMPLETED)).is_err(), ended[run]);
                    appended[run] += u64::from(!ended[run]);
                    ended[run] = true;
                }
                Operation::Subscribe { run, start, gap } => {
                    let overflow = if gap { Overflow::Gap } else { Overflow::Disconnect };
                    let subscription = logs[run].subscribe(&Start::AfterSequence(start), overflow);
                    // A start that was never given out is answered by all that is held.
                    let next = if start <= appended[run] { start + 1 } else { 1 };
                    readers.push(Reader { subscription, run, next, gap });
                }
                Operation::Read { reader, max } => {
                    if let Some(reader) = readers.get_mut(reader) {
                        reader.read(max)?;
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
            let lagged = !reader.gap;
            while reader.read(7)? {}
            if !lagged {
                prop_assert_eq!(reader.next, appended[reader.run] + 1);
            }
        }
    }
}

/// 16 threads emit to runs of their own and to one of all, while readers come and go: nothing is foreign or lost, each
/// log ends once. `STRESS_SCALE` times as many runs.
#[test]
#[ignore = "a long test: make stress"]
fn many_threads_many_readers() {
    const THREADS: usize = 16;
    let scale = std::env::var("STRESS_SCALE")
        .ok()
        .and_then(|scale| scale.parse().ok())
        .unwrap_or(1);
    let (runs, events) = (1_000 * scale, 1_000_u64);
    let limits = Limits {
        events: usize::MAX,
        bytes: usize::MAX,
    };
    let shared = EventLog::new(&"shared".into(), limits, None);
    let start = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (shared, start) = (&shared, &start);
            scope.spawn(move || {
                start.wait();
                for run in (thread..runs).step_by(THREADS) {
                    let log =
                        EventLog::new(&i64::try_from(run).expect("small").into(), limits, None);
                    std::thread::scope(|scope| {
                        let log = &log;
                        scope.spawn(move || assert_eq!(read_all(log), events + 1));
                        // One that goes before the end.
                        let mut brief = log.subscribe(&Start::Live, Overflow::Disconnect);
                        for _ in 0..events {
                            log.append(&body(Word::LLM_STREAM)).expect("not ended");
                        }
                        assert!(matches!(brief.read(10, None), Ok(Read::Events(_))));
                        drop(brief);
                        shared.append(&body(Word::LLM_STREAM)).expect("not ended");
                        log.append(&body(Word::COMPLETED)).expect("not ended");
                        assert!(log.append(&body(Word::FAILED)).is_err());
                    });
                }
            });
        }
    });
    shared.append(&body(Word::COMPLETED)).expect("not ended");
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
