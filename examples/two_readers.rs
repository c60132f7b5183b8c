//! Two runs, each with a reader on a thread of its own; the second is cancelled half way, and says so as its last word.
//! Run: `cargo run --example two_readers`

#![expect(clippy::print_stdout, reason = "an example shows what happens")]

use llm_callback::{CancelKind, EncodedBody, EventKind, Overflow, Payload, Read, Run, Runs, Start};
use serde_json::json;
use std::error::Error;
use std::time::Duration;

/// What an agent does: ask whether it was cancelled, then say the next token.
fn agent(run: &Run) -> Result<(), Box<dyn Error + Send + Sync>> {
    for number in 0..10 {
        // A model takes its time.
        if run.token().wait(Some(Duration::from_millis(20))) {
            run.acknowledge();
            run.finish_cancelled();
            return Ok(());
        }
        let token = Payload::Content {
            content: format!("token {number} "),
        };
        run.emit(&EncodedBody::new(None, EventKind::LLM_STREAM, &token)?)?;
    }
    run.complete(&json!({"result": "ten tokens"}))?;
    Ok(())
}

/// Follows a run to its end, and cancels it after so many tokens.
fn reader(run: &Run, cancel_after: usize) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut events = run.subscribe(&Start::Beginning, Overflow::Disconnect);
    let mut tokens = 0;
    while let Read::Events(frames) = events.read(100, None)? {
        for frame in frames {
            let event = frame.event()?;
            println!(
                "run {}: {:<20} {}",
                event.run_id,
                event.event.to_string(),
                event.data
            );
            tokens += usize::from(event.event == EventKind::LLM_STREAM);
            if tokens == cancel_after {
                run.cancel(CancelKind::User, "heard enough");
            }
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let runs = Runs::default();
    let first = runs.open(1)?;
    let second = runs.open("two")?;
    std::thread::scope(|scope| {
        let threads = [
            scope.spawn(|| agent(&first)),
            scope.spawn(|| agent(&second)),
            scope.spawn(|| reader(&first, usize::MAX)),
            scope.spawn(|| reader(&second, 5)),
        ];
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("no thread panics"))
    })?;
    println!(
        "run 1 {}, run two {}; {:?}",
        first.state(),
        second.state(),
        runs.stats()
    );
    Ok(())
}
