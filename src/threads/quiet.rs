//! A thread of the library that runs no user code: it leaves the signals of the process to the host's threads.
//!
//! The operating system may deliver a signal to a thread that is just starting. A sleeping main thread then sleeps on,
//! and Python calls its handler of SIGTERM only after the sleep. So such a thread starts with its signals blocked.

#[cfg(all(unix, not(miri)))]
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use std::io;
use std::thread::{Builder, JoinHandle};

/// Starts a thread that gets no signals, but those of its own faults.
///
/// A program that the thread starts inherits the mask: if C code forks it, SIGTERM does not end it. So no user's code
/// may run on the thread, except a Rust sink; the standard library's `Command` clears the mask in the child.
pub(crate) fn spawn(
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let builder = Builder::new().name(name.to_owned());
    without_signals(|| builder.spawn(body))
}

/// Blocks the signals of the calling thread during a call. A thread that the call starts inherits the mask.
#[cfg(all(unix, not(miri)))]
fn without_signals<T>(call: impl FnOnce() -> T) -> T {
    let before = blocked().thread_swap_mask(SigmaskHow::SIG_BLOCK);
    let result = call();
    if let Ok(before) = before {
        // Cannot fail: these were the thread's signals.
        let _ = before.thread_set_mask();
    }
    result
}

#[cfg(not(all(unix, not(miri))))]
fn without_signals<T>(call: impl FnOnce() -> T) -> T {
    call()
}

/// All signals except the faults of a thread, such as SIGSEGV, and SIGPROF, which a profiler sends to the running
/// thread.
#[cfg(all(unix, not(miri)))]
fn blocked() -> SigSet {
    let mut signals = SigSet::all();
    for own in [
        Signal::SIGSEGV,
        Signal::SIGBUS,
        Signal::SIGFPE,
        Signal::SIGILL,
        Signal::SIGABRT,
        Signal::SIGTRAP,
        Signal::SIGSYS,
        Signal::SIGPROF,
    ] {
        signals.remove(own);
    }
    signals
}

/// Lets the calling thread get signals again, before it runs a user's code, which may start programs.
#[cfg(feature = "python")]
pub(crate) fn allow_signals() {
    #[cfg(all(unix, not(miri)))]
    // Cannot fail: the set is whole.
    let _ = blocked().thread_unblock();
}
