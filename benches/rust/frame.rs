//! An event becomes a frame: `cargo bench --bench frame`. `encode` is what happens under a log's lock.
//!
//! The arguments are bytes of text. `plain` text has nothing to escape, `code` has a line break and quotes per 40 bytes.

use divan::Bencher;
use divan::counter::BytesCount;
use llm_callback::{EncodedBody, EventKind, Frame, FrameEncoder, Payload, Source, coalesce, json};
use std::sync::Arc;

/// A token, a sentence, a tool's answer.
const LENGTHS: [usize; 3] = [5, 100, 10_000];
const MS: u64 = 1_764_504_000_000;

#[global_allocator]
static ALLOCATIONS: divan::AllocProfiler = divan::AllocProfiler::system();

fn main() {
    divan::main();
}

fn plain(length: usize) -> String {
    "a word ".chars().cycle().take(length).collect()
}

fn code(length: usize) -> String {
    let line = "    print(\"forty bytes of this source\")\n";
    line.chars().cycle().take(length).collect()
}

fn body(text: String) -> EncodedBody {
    EncodedBody::new(
        None,
        EventKind::LLM_STREAM,
        &Payload::Content { content: text },
    )
    .expect("it is JSON")
}

/// Under the lock: a body becomes a frame. The body of 100 bytes of JSON holds 25 bytes of text.
#[divan::bench(args = [5, 25, 100, 10_000])]
fn encode(bencher: Bencher<'_, '_>, length: usize) {
    let (body, mut encoder) = (body(plain(length)), FrameEncoder::new(&42.into()));
    let mut sequence = 0;
    bencher.bench_local(|| {
        sequence += 1;
        // A thousand events a second.
        encoder.encode(MS + sequence, sequence, &body)
    });
}

/// The same, had each frame a second of its own: what the cached second saves.
#[divan::bench]
fn encode_each_second(bencher: Bencher<'_, '_>) {
    let (body, mut encoder) = (body(plain(25)), FrameEncoder::new(&42.into()));
    let mut sequence = 0;
    bencher.bench_local(|| {
        sequence += 1;
        encoder.encode(MS + 1000 * sequence, sequence, &body)
    });
}

/// Before the lock: a payload with its source becomes a body.
#[divan::bench(args = LENGTHS)]
fn body_new(bencher: Bencher<'_, '_>, length: usize) {
    let source = Source {
        agent_id: "w1".into(),
        agent_type: "worker".into(),
        agent_name: "Researcher".into(),
        team_name: Some("Team A".into()),
    };
    let payload = Payload::Content {
        content: plain(length),
    };
    bencher.bench_local(|| EncodedBody::new(Some(&source), EventKind::LLM_STREAM, &payload));
}

/// Before the lock: what is JSON already becomes a body.
#[divan::bench(args = LENGTHS)]
fn body_from_json(bencher: Bencher<'_, '_>, length: usize) {
    let source = br#"{"agent_id":"w1","agent_type":"worker","agent_name":"Researcher","team_name":"Team A"}"#;
    let data = format!(r#"{{"content":"{}"}}"#, plain(length));
    bencher.bench_local(|| EncodedBody::from_json(EventKind::LLM_STREAM, source, data.as_bytes()));
}

mod escape {
    use super::{Bencher, BytesCount, LENGTHS, code, json, plain};

    fn escape(bencher: Bencher<'_, '_>, text: &str) {
        let mut out = Vec::new();
        bencher.counter(BytesCount::of_str(text)).bench_local(|| {
            out.clear();
            json::escape_str(&mut out, text);
        });
    }

    #[divan::bench(args = LENGTHS)]
    fn str_plain(bencher: Bencher<'_, '_>, length: usize) {
        escape(bencher, &plain(length));
    }

    #[divan::bench(args = LENGTHS)]
    fn str_code(bencher: Bencher<'_, '_>, length: usize) {
        escape(bencher, &code(length));
    }

    #[divan::bench(args = LENGTHS)]
    fn code_points(bencher: Bencher<'_, '_>, length: usize) {
        let text: Vec<u32> = plain(length).chars().map(u32::from).collect();
        let mut out = Vec::new();
        bencher.counter(BytesCount::new(length)).bench_local(|| {
            out.clear();
            json::escape_code_points(&mut out, text.iter().copied());
        });
    }
}

/// A hundred tokens of one source become one frame.
#[divan::bench]
fn coalesce_hundred(bencher: Bencher<'_, '_>) {
    let (body, mut encoder) = (body(plain(5)), FrameEncoder::new(&42.into()));
    let frames: Vec<Arc<Frame>> = (1..=100)
        .map(|n| Arc::new(encoder.encode(MS, n, &body)))
        .collect();
    bencher.bench_local(|| coalesce(&frames));
}

/// A frame read back into an event.
#[divan::bench]
fn event(bencher: Bencher<'_, '_>) {
    let frame = FrameEncoder::new(&42.into()).encode(MS, 7, &body(plain(25)));
    bencher.bench_local(|| frame.event());
}
