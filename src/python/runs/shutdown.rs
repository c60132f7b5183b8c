//! The end of all runs of this process: at its exit, or before it by hand.

use crate::python::cpython::exit::{raise_interrupt, sleep_if_ended};
use crate::python::cpython::wait::{seconds, wait};
use crate::python::shared::table::runs;
use pyo3::prelude::*;
use pyo3::types::PyString;
use std::time::{Duration, Instant};

/// How long the interpreter's exit waits for sinks.
const PATIENCE_AT_EXIT: Duration = Duration::from_secs(5);

/// Registers the function that ends all runs at the interpreter's exit.
pub(crate) fn prepare(py: Python<'_>) -> PyResult<()> {
    let at_exit = wrap_pyfunction!(end_all, py)?;
    py.import("atexit")?
        .call_method1("register", (at_exit,))
        .map(drop)
}

/// End every live run as cancelled, with kind `shutdown`, refuse new ones for good, and wait until the sinks have
/// written every event, `timeout` seconds at most. Returns True if they have.
///
/// :func:`llm_callback.shutdown` calls this after it has ended the runs of every `RunManager`; see there.
#[pyfunction]
#[pyo3(signature = (reason, timeout), text_signature = "(reason, timeout)")]
pub(crate) fn shutdown(
    py: Python<'_>,
    reason: &Bound<'_, PyString>,
    timeout: Option<&Bound<'_, PyAny>>,
) -> PyResult<bool> {
    sleep_if_ended(|| {
        let timeout = seconds("timeout", timeout)?;
        let (runs, reason) = (runs(py), reason.to_string_lossy());
        let end_of = |timeout| Instant::now().checked_add(timeout);
        let ending = py.detach(|| runs.ending(&reason, timeout.and_then(end_of)));
        raise_interrupt()?;
        let done = wait(py, timeout, |slice| {
            ending.wait_until(slice.and_then(end_of))
        })?;
        if done.is_none() {
            py.detach(|| ending.give_up());
        }
        Ok(done.unwrap_or(false))
    })
}

#[pyfunction]
fn end_all(py: Python<'_>) -> PyResult<()> {
    sleep_if_ended(|| {
        let runs = runs(py);
        py.detach(|| runs.shutdown("the interpreter exits", PATIENCE_AT_EXIT));
        raise_interrupt()
    })
}
