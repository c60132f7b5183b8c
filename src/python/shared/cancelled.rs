//! `RunCancelled`: raising it in the code of a run that was asked to stop, and recognizing it.

use super::counters::COUNTERS;
use super::run_id::{id_from_python, id_to_python};
use crate::{CancelReason, Run, RunId, RunState};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

pub(crate) fn run_cancelled(py: Python<'_>) -> PyResult<&Bound<'_, PyType>> {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    CLASS.import(py, "llm_callback.exceptions", "RunCancelled")
}

/// `RunCancelled`, with the reason of the run's cancellation.
pub(crate) fn cancelled_error(py: Python<'_>, id: &RunId, reason: &CancelReason) -> PyErr {
    let raised = || {
        let id = id_to_python(py, id)?;
        run_cancelled(py)?.call1((id, reason.kind.as_str(), &*reason.message))
    };
    raised().map_or_else(|error| error, PyErr::from_value)
}

/// `RunCancelled`, for a run whose checker says that it is cancelled. Counts it.
pub(crate) fn by_checker(run_id: &Bound<'_, PyAny>) -> PyErr {
    COUNTERS.count_cancelled();
    run_cancelled(run_id.py())
        .and_then(|class| class.call1((run_id,)))
        .map_or_else(|error| error, PyErr::from_value)
}

/// Raises `RunCancelled` if the run was asked to stop.
#[inline]
pub(crate) fn raise_if_cancelled(py: Python<'_>, run: &Run) -> PyResult<()> {
    if run.token().is_cancelled() {
        return tell(py, run);
    }
    Ok(())
}

/// Raises `RunCancelled`, and notes that the run's code was told to stop. Does nothing if the run completed or failed.
#[cold]
fn tell(py: Python<'_>, run: &Run) -> PyResult<()> {
    let reason = py.detach(|| match run.state() {
        RunState::Completed | RunState::Failed => None,
        RunState::Cancelled => run.token().reason(),
        RunState::Pending | RunState::Running => {
            run.acknowledge();
            run.token().reason()
        }
    });
    let Some(reason) = reason else {
        return Ok(());
    };
    COUNTERS.count_cancelled();
    Err(cancelled_error(py, run.id(), &reason))
}

/// Whether `error` is a `RunCancelled` of this run, as a handler raises it for the registered checker.
pub(crate) fn is_told_to_stop(run: &Run, error: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(error.is_instance(run_cancelled(error.py())?)?
        && id_from_python(&error.getattr("run_id")?)? == *run.id())
}
