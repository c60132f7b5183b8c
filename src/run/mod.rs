//! Runs: the life of one, and the table in which all runs of a process are opened, found, cancelled and shut down.

mod annotations;
mod builder;
mod end;
mod finished;
mod listener;
mod log_view;
mod observer;
mod open_error;
mod options;
mod run;
mod runs;
mod shutdown;
mod sinks;
mod state;
mod stats;
mod table;
#[cfg(all(test, not(loom)))]
mod tests;

pub use builder::RunBuilder;
pub use end::Scope;
pub use log_view::LogView;
pub use observer::Observer;
pub use open_error::OpenError;
pub use options::Options;
pub use run::Run;
pub use runs::Runs;
pub use state::{RunState, Times};
pub use stats::{OldestRun, ReaderStats, RunsStats};
