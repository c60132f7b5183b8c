//! Many LLM-agent runs in one process: every event, and every cancel, reaches its own run and no other.
//!
//! ```
//! use llm_callback::{CancelKind, EncodedBody, EventKind, Overflow, Payload, Runs, Start};
//! use std::sync::Arc;
//!
//! let runs = Runs::default();
//! let run = runs.open(42)?;
//! let reader = run.subscribe(&Start::Beginning, Overflow::Gap);
//!
//! // Any thread that works for the run emits into it, and asks its token whether to stop.
//! let agent = std::thread::spawn({
//!     let run = Arc::clone(&run);
//!     move || {
//!         let hello = Payload::Content { content: "Hello".into() };
//!         let body = EncodedBody::new(None, EventKind::LLM_STREAM, &hello).expect("it is JSON");
//!         run.emit(&body).expect("the run has not ended");
//!         run.token().wait(None);
//!         run.finish_cancelled()
//!     }
//! });
//!
//! assert!(runs.cancel(run.id(), CancelKind::User, "enough"));
//! assert!(agent.join().expect("no panic"));
//! let events: Vec<_> = reader.collect::<Result<_, _>>()?;
//! assert_eq!(*events.last().expect("the terminal event").kind(), EventKind::CANCELLED);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! - [`Runs`] opens, finds and shuts down runs. A [`Run`] has a log, a token and exactly one terminal event.
//! - [`EventLog`] is ordered and bounded. Any number of [`Subscription`]s read one, live or afterwards.
//! - [`CancelToken`]s are a tree: a cancel reaches a run and its descendants, and nothing else.
//! - A [`Sink`] gets every run's events on a thread of its own; an [`Observer`] hears what happens to runs.
//! - [`Registry`] is a table of callbacks and cancellation checkers by run id, for hosts that need no log.
//!
//! # Trade-offs
//!
//! - **Threads, no async runtime.** Asynchronous readers leave a [`Wake`]; nothing here blocks them.
//! - **A log forgets.** It holds a number of events and of bytes. A slow reader is told what it has missed, or is
//!   disconnected, as its [`Overflow`] says; the first and the terminal event are never lost.
//! - **The registry routes, it does not queue.** A callback runs on the thread that emits; a slow one slows that thread,
//!   and no other. A thread that has looked a callback up may still call it after the callback was removed, since no
//!   lock is held while user code runs.
//! - **Ids are trusted.** The hash of the tables is fast, not keyed: run ids are the host's own, not a stranger's.
//!
//! # Consistency of the registry
//!
//! - *Registration and emission:* an emission that begins after `set_callback` returned sees that callback; an emission
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

/// Every handle can be shared by threads, and each is checked here at compile time.
const _: () = {
    const fn is_shared<T: Send + Sync>() {}
    const fn is_sent<T: Send>() {}
    is_shared::<CancelToken>();
    is_shared::<Closer>();
    is_shared::<EventLog>();
    is_shared::<Frame>();
    is_shared::<Registration>();
    is_shared::<Registry<()>>();
    is_shared::<Run>();
    is_shared::<Runs>();
    is_shared::<SinkHandle>();
    is_sent::<EncodedBody>();
    is_sent::<FrameEncoder>();
    is_sent::<NdjsonFile>();
    is_sent::<Subscription>();
};
