//! Runs: the life of one, and the table in which all of a process are opened, found, cancelled and shut down.

mod annotations;
mod finished;
mod run;
mod runs;
mod table;

pub use run::{LogView, Run, RunState, Scope, Times};
pub use runs::{Opening, Runs};
pub use table::{OpenError, Options, ReaderStats, RunsStats};
