//! What a Rust program sees of the crate: threads, properties.

#![cfg(not(loom))]

mod cancel;
// Neither threads nor unsafe code is behind these two, and Miri would take many minutes for any texts.
#[cfg(not(miri))]
mod event;
mod event_log;
// Miri has no fork.
#[cfg(all(unix, not(miri)))]
mod fork;
mod observers;
mod properties;
mod runs;
mod sinks;
#[cfg(not(miri))]
mod sse;
mod threads;

use llm_callback::Options;

/// The default options with some changes.
fn options(change: impl FnOnce(&mut Options)) -> Options {
    let mut options = Options::default();
    change(&mut options);
    options
}
