//! The end of a run: its last printed text, and how an exception that leaves its block ends it.

use crate::python::cpython::exit::raise_interrupt;
use crate::python::cpython::loaded::is_instance_of_loaded;
use crate::python::shared::cancelled::is_told_to_stop;
use crate::python::shared::run_id::id_to_python;
use crate::{CancelKind, Run};
use pyo3::exceptions::{PyGeneratorExit, PyKeyboardInterrupt, PySystemExit};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyString;

/// Ends the run by calling `end`. Printed text that is not a whole line yet becomes an event first.
///
/// Raises an exception of the flush of the printed text, and a Ctrl-C that came while callbacks were called or readers
/// were woken. The run has ended then too.
pub(crate) fn ending<R>(py: Python<'_>, run: &Run, end: impl FnOnce() -> R) -> PyResult<R> {
    let before = flush_output(py, run);
    let ended = end();
    let interrupted = raise_interrupt();
    // Text that a thread of the run printed in between comes too late for the log: this drops it.
    let after = flush_output(py, run);
    before.and(after).and(interrupted).map(|()| ended)
}

/// `llm_callback.capture._flush`, once that module is imported.
static FLUSH: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

#[pyfunction]
#[pyo3(name = "_set_flush")]
pub(crate) fn set_flush(flush: &Bound<'_, PyAny>) {
    // Only `llm_callback.capture` calls this, once.
    let _ = FLUSH.set(flush.py(), flush.clone().unbind());
}

fn flush_output(py: Python<'_>, run: &Run) -> PyResult<()> {
    match FLUSH.get(py) {
        Some(flush) => flush
            .call1(py, (id_to_python(py, run.id())?, run.generation()))
            .map(drop),
        None => Ok(()),
    }
}

/// Whether `error`, which leaves a run's block, cancels the run. Returns the kind and the reason of the cancellation,
/// or None.
pub(crate) fn cancellation(
    run: &Run,
    error: &Bound<'_, PyAny>,
) -> Option<(CancelKind, &'static str)> {
    if run.token().is_cancelled() {
        // Not used: the token has a reason already, and the first reason stays.
        return Some((CancelKind::User, ""));
    }
    if error.is_instance_of::<PyKeyboardInterrupt>() {
        Some((CancelKind::User, "interrupted from the keyboard"))
    } else if error.is_instance_of::<PyGeneratorExit>() {
        Some((CancelKind::Disconnect, "nobody wants its result any more"))
    } else if error.is_instance_of::<PySystemExit>() {
        Some((CancelKind::Shutdown, "the process exits"))
    } else if is_cancelled_task(error).unwrap_or_default() {
        Some((CancelKind::User, "the run's task was cancelled"))
    } else if is_told_to_stop(run, error).unwrap_or_default() {
        Some((CancelKind::User, "the run's code was told to stop"))
    } else {
        None
    }
}

fn is_cancelled_task(error: &Bound<'_, PyAny>) -> PyResult<bool> {
    is_instance_of_loaded(error, "asyncio.exceptions", "CancelledError")
}

/// An exception's text, or the name of its class if the text is empty or `str()` fails.
pub(crate) fn describe<'py>(error: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyString>> {
    match error.str() {
        Ok(text) if text.len()? > 0 => Ok(text),
        _ => error.get_type().name(),
    }
}

/// The traceback, as Python prints it, or the name of the class if that fails.
pub(crate) fn details<'py>(error: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = error.py();
    let format = || {
        let lines = py
            .import("traceback")?
            .call_method1("format_exception", (error,))?;
        PyString::new(py, "").call_method1("join", (lines,))
    };
    format().or_else(|_| Ok(error.get_type().name()?.into_any()))
}
