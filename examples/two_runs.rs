//! Two runs on std threads, ten tokens each; the second is cancelled half way. Run: `cargo run --example two_runs`

#![expect(clippy::print_stdout, reason = "an example shows what happens")]

use llm_callback::{Registry, RunId};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};

type Callback = Arc<dyn Fn(String) + Send + Sync>;
type Checker = Arc<dyn Fn() -> bool + Send + Sync>;

/// What an agent does: ask whether it was cancelled, then say the next token.
fn agent(registry: &Registry<Callback, Checker>, run: &RunId) -> &'static str {
    for token in 0..10 {
        if registry.is_cancelled(run) {
            return "cancelled";
        }
        if registry
            .emit(run, format!("token {token} of run {run}"))
            .is_err()
        {
            return "lost its listener";
        }
    }
    "completed"
}

fn main() {
    let registry: Registry<Callback, Checker> = Registry::new();
    let runs = [RunId::from(1), RunId::from("two")];
    let (sender, events) = mpsc::channel();

    for (number, run) in runs.iter().enumerate() {
        let cancelled = Arc::new(AtomicBool::new(false));
        let (sender, cancel): (Mutex<Sender<_>>, _) =
            (Mutex::new(sender.clone()), Arc::clone(&cancelled));
        let heard_by = run.clone();
        registry.set_callback(
            run.clone(),
            Arc::new(move |event: String| {
                if number == 1 && event.starts_with("token 4") {
                    cancel.store(true, Ordering::Release);
                }
                let _ = sender
                    .lock()
                    .map(|sender| sender.send((heard_by.clone(), event)));
            }),
        );
        registry.set_checker(
            run.clone(),
            Arc::new(move || cancelled.load(Ordering::Acquire)),
        );
    }
    drop(sender);

    std::thread::scope(|scope| {
        for run in &runs {
            let registry = &registry;
            scope.spawn(move || println!("run {run}: {}", agent(registry, run)));
        }
    });
    drop(registry.take_all());

    let events: Vec<_> = events.iter().collect();
    let astray = events
        .iter()
        .filter(|(run, event)| !event.ends_with(&format!("run {run}")))
        .count();
    println!("{} events heard, {astray} astray", events.len());
}
