//! Events into a log, and runs into a table: `cargo bench --bench log`. The allocator counts, which costs a few ns each.

use divan::Bencher;
use llm_callback::{EncodedBody, EventKind, EventLog, Limits, Overflow, Payload, Runs, Start};
use std::sync::Arc;
use std::time::Duration;

#[global_allocator]
static ALLOCATIONS: divan::AllocProfiler = divan::AllocProfiler::system();

fn main() {
    divan::main();
}

fn token() -> EncodedBody {
    let payload = Payload::Content {
        content: "token".into(),
    };
    EncodedBody::new(None, EventKind::LLM_STREAM, &payload).expect("it is JSON")
}

/// A log that holds what it can.
fn full(body: &EncodedBody) -> Arc<EventLog> {
    let log = EventLog::new(&42.into(), Limits::default());
    for _ in 0..Limits::default().events {
        log.append(body).expect("not ended");
    }
    log
}

/// Nobody reads.
#[divan::bench(sample_size = 2_000)]
fn append(bencher: Bencher<'_, '_>) {
    let body = token();
    let log = full(&body);
    bencher.bench_local(|| log.append(&body));
}

/// Four threads at one log, of which nobody reads.
#[divan::bench(threads = 4, sample_size = 2_000)]
fn append_contended(bencher: Bencher<'_, '_>) {
    let body = token();
    let log = full(&body);
    bencher.bench(|| log.append(&body));
}

/// One reader, that never reads.
#[divan::bench(sample_size = 2_000)]
fn append_one_idle_reader(bencher: Bencher<'_, '_>) {
    let body = token();
    let log = full(&body);
    let _idle = log.subscribe(&Start::Live, Overflow::Gap);
    bencher.bench_local(|| log.append(&body));
}

/// One reader, for whom producers would wait, reads each event on the same thread.
#[divan::bench(sample_size = 2_000)]
fn append_and_read(bencher: Bencher<'_, '_>) {
    let body = token();
    let log = full(&body);
    let mut reader = log.subscribe(&Start::Live, Overflow::Block(Duration::from_secs(1)));
    bencher.bench_local(|| {
        let id = log.append(&body);
        (id, reader.read(1, Some(Duration::ZERO)))
    });
}

/// Who opens a run and keeps it: `alloc` less `dealloc` is what an idle one takes, with its log, its token and its place
/// in the table (whose growth is in it: a table of 3 584 runs grows once more).
#[divan::bench(sample_count = 1, sample_size = 1_000)]
fn open(bencher: Bencher<'_, '_>) {
    let runs = Runs::default();
    let mut id = 0;
    bencher.bench_local(|| {
        id += 1;
        runs.open(id)
    });
}

/// A run that is opened, says nothing and ends: with its place among the finished ones.
#[divan::bench(sample_size = 1_000)]
fn open_and_complete(bencher: Bencher<'_, '_>) {
    let runs = Runs::default();
    bencher.bench_local(|| {
        let run = runs.open(1).expect("the last has ended");
        run.complete("done")
    });
}

/// One of so many open runs says something, while the others say nothing.
#[divan::bench(args = [1, 10_000], sample_size = 2_000)]
fn emit_among(bencher: Bencher<'_, '_>, number: i64) {
    let runs = Runs::default();
    let open = |id| runs.open(id).expect("free");
    let all: Vec<_> = (0..number).map(open).collect();
    let (run, body) = (&all[all.len() / 2], token());
    bencher.bench_local(|| run.emit(&body));
}

/// So many open runs say something in turn: each finds nothing of its own in the processor's caches.
#[divan::bench(args = [1, 10_000], sample_size = 2_000)]
fn emit_in_turn(bencher: Bencher<'_, '_>, number: i64) {
    let runs = Runs::default();
    let open = |id| runs.open(id).expect("free");
    let all: Vec<_> = (0..number).map(open).collect();
    let body = token();
    let mut next = 0;
    bencher.bench_local(|| {
        next = (next + 7_919) % all.len();
        all[next].emit(&body)
    });
}

/// A look-up where there is no run at all, as a host that uses none does it for each event; and where there is one.
#[divan::bench(args = [0, 1], sample_size = 10_000)]
fn look_up(bencher: Bencher<'_, '_>, number: i64) {
    let runs = Runs::default();
    let open = |id| runs.open(id).expect("free");
    let _all: Vec<_> = (0..number).map(open).collect();
    let id = 0.into();
    bencher.bench_local(|| runs.has_live() && runs.try_live(&id).is_ok());
}
