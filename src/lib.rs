//! Many LLM-agent runs in one process: every event, and every cancel, reaches its own run and no other.
//!
//! A host registers a callback and a cancellation checker under a run id; whoever works for that run,
//! on whichever thread, looks them up by the same id. [`Registry`] is that table.
//!
//! ```
//! use std::sync::{Arc, Mutex};
//! use llm_callback::{Registry, RunId};
//!
//! let seen = Arc::new(Mutex::new(Vec::new()));
//! let sink = Arc::clone(&seen);
//! let registry: Registry<Arc<dyn Fn(&'static str) + Send + Sync>> = Registry::new();
//! registry.set_callback(RunId::from(42), Arc::new(move |token| sink.lock().unwrap().push(token)));
//!
//! registry.emit(&RunId::from(42), "hello").unwrap();
//! assert_eq!(registry.emit(&RunId::from(7), "astray").unwrap_err().0, "astray");
//! assert_eq!(*seen.lock().unwrap(), ["hello"]);
//! ```
//!
//! Beyond it, [`Runs`] opens runs that have a life of their own: an ordered, bounded [`EventLog`] that any number of
//! [`Subscription`]s read, live or afterwards; a [`CancelToken`] that reaches a run and its descendants; and exactly one
//! terminal event. [`Sink`]s get every run's events on threads of their own. See `examples/two_readers.rs`.
//!
//! # Trade-offs of the registry
//!
//! - **It routes, it does not queue.** A callback runs on the thread that emits; a slow one slows that thread,
//!   and no other.
//! - **A lookup is a moment.** Whoever has looked a callback up may still call it after it was removed: the
//!   lock is not held while user code runs, so that user code may do anything, also come back in.
//! - **Ids are trusted.** The table's hash is fast, not keyed: run ids are the host's own, not a stranger's.
//!
//! # Consistency of the registry
//!
//! - *Registration and emission:* an emission that begins after `set_callback` returned sees that callback; one
//!   that overlaps it sees the old or the new one, never both and never another run's.
//! - *Order:* one thread's emissions to a run arrive in their order. Between threads there is no order here.
//! - *Cancellation:* a checker is asked before the callback is looked up; a run cancelled in between may deliver the
//!   one event that is already under way. A removed checker stops nothing any more.
//! - *Snapshots* are taken shard by shard: they hold what was registered throughout, and may or may not hold
//!   what came or went meanwhile.

mod cancel;
mod log;
mod registry;
mod run;
mod run_id;
mod sink;
mod sync;
mod threads;
mod wire;

#[cfg(feature = "python")]
mod python;

pub use cancel::{CancelKind, CancelReason, CancelToken, Registration, UnknownCancelKind};
pub use log::{
    Closer, Ended, EventLog, Lagged, Limits, LogSize, Overflow, Read, Start, Subscription,
    TryAppendError, TryReadError, Wait, Wake, WouldBlock,
};
pub use registry::{Registered, Registry, RegistrySize, Unregistered};
pub use run::{
    LogView, Observer, OldestRun, OpenError, Options, ReaderStats, Run, RunBuilder, RunState, Runs,
    RunsStats, Scope, Times,
};
pub use run_id::RunId;
pub use sink::{Batch, Followed, Hold, NdjsonFile, Refused, Sink, SinkHandle, SinkStats};
pub use threads::after_fork_in_child;
pub use wire::{
    Action, BodyTemplate, Category, EncodedBody, Event, EventId, EventKind, Frame, FrameEncoder,
    InvalidEventId, InvalidEventKind, Payload, Source, UnknownWord, coalesce, json, sse,
};
