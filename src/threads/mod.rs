//! The library's own threads: the one that waits for times, those for work that may block, and what a fork does to
//! them.

pub(crate) mod background;
mod fork;
#[cfg(not(loom))]
mod per_process;
#[cfg(not(loom))]
mod quiet;
pub(crate) mod timer;

pub use fork::after_fork_in_child;
#[cfg(feature = "python")]
pub(crate) use quiet::allow_signals;
#[cfg(not(loom))]
pub(crate) use quiet::spawn;
