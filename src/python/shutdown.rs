//! The end of all runs of this process: at its exit, or before it by hand.

use super::exit::{raise_interrupt, sleep_if_ended};
use super::table::runs;
use super::wait::seconds;
use pyo3::prelude::*;
use pyo3::types::PyString;
use std::time::Duration;

/// How long the interpreter's exit waits for sinks.
const PATIENCE_AT_EXIT: Duration = Duration::from_secs(5);

/// Has the runs ended with the interpreter.
pub(super) fn prepare(py: Python<'_>) -> PyResult<()> {
    let at_exit = wrap_pyfunction!(end_all, py)?;
    py.import("atexit")?
        .call_method1("register", (at_exit,))
        .map(drop)
}

/// Ends every run, lets no other begin, and waits for the sinks; whether they have everything.
fn end_runs(py: Python<'_>, reason: &str, timeout: Option<Duration>) -> PyResult<bool> {
    let runs = runs(py);
    // Once, with all the time that there is: when it is over, the sinks give up.
    let has_all = py.detach(|| runs.shutdown(reason, timeout.unwrap_or(Duration::MAX)));
    raise_interrupt()?;
    Ok(has_all)
}

/// End every live run as cancelled, with kind `shutdown`, refuse new ones for good, and wait until the sinks have
/// written every event, `timeout` seconds at most. Return whether they have.
///
/// :func:`llm_callback.shutdown` is this, after it has ended the runs of every `RunManager`, and says the rest.
#[pyfunction]
#[pyo3(signature = (reason, timeout), text_signature = "(reason, timeout)")]
pub(super) fn shutdown(
    py: Python<'_>,
    reason: &Bound<'_, PyString>,
    timeout: Option<&Bound<'_, PyAny>>,
) -> PyResult<bool> {
    sleep_if_ended(|| {
        let timeout = seconds("timeout", timeout)?;
        end_runs(py, &reason.to_string_lossy(), timeout)
    })
}

#[pyfunction]
fn end_all(py: Python<'_>) -> PyResult<()> {
    sleep_if_ended(|| end_runs(py, "the interpreter exits", Some(PATIENCE_AT_EXIT)).map(drop))
}
