//! The functions that act on the current run.

use super::current::{current, set_current};
use super::dispatch::raise_if_cancelled;
use super::registry::find;
use crate::python::cpython::arguments::{Arg, require};
use crate::python::cpython::exit::sleep_if_ended;
use crate::python::shared::registered::Entry;
use crate::python::shared::run_key::RunKey;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

/// Make `run_id` the run of the calling context: of this thread, or of this asyncio task.
///
/// A thread that starts later does not get the run; a copy of the calling context has it. Any object is accepted; None
/// is the same as :func:`clear_current_run_id`. Thread-safe, does not block.
#[pyfunction]
#[pyo3(signature = (run_id=Arg::Missing, *rest), text_signature = "(run_id)")]
pub(crate) fn set_current_run_id<'py>(
    py: Python<'py>,
    run_id: Arg<'_, 'py>,
    rest: &Bound<'py, PyTuple>,
) -> PyResult<()> {
    let [run_id] = require(
        py,
        "set_current_run_id",
        None,
        [("run_id", run_id)],
        &[],
        rest,
        None,
    )?;
    set_current(&run_id)
}

/// Return the run of the calling context, or None.
///
/// On free-threaded Python, and with `-X thread_inherit_context=1`, a thread inherits the context of the thread that
/// started it: a run that was only inherited is ignored. A copy of an inherited context cannot be told from a context
/// that was copied on purpose, so in such worker threads set the run, or :func:`bind` it. Thread-safe, does not block.
#[pyfunction]
#[pyo3(signature = (*rest), text_signature = "()")]
pub(crate) fn get_current_run_id<'py>(
    py: Python<'py>,
    rest: &Bound<'py, PyTuple>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let [] = require(py, "get_current_run_id", None, [], &[], rest, None)?;
    current(py)
}

/// Leave the calling context without a run. Thread-safe, does not block.
#[pyfunction]
#[pyo3(signature = (*rest), text_signature = "()")]
pub(crate) fn clear_current_run_id<'py>(
    py: Python<'py>,
    rest: &Bound<'py, PyTuple>,
) -> PyResult<()> {
    let [] = require(py, "clear_current_run_id", None, [], &[], rest, None)?;
    set_current(py.None().bind(py))
}

/// Register `callback` for the current run; without a current run, do nothing. For hosts that use the oldest interface.
#[pyfunction]
#[pyo3(signature = (callback=Arg::Missing, *rest), text_signature = "(callback)")]
pub(crate) fn set_global_event_callback<'py>(
    py: Python<'py>,
    callback: Arg<'_, 'py>,
    rest: &Bound<'py, PyTuple>,
) -> PyResult<()> {
    let given = [("callback", callback)];
    let [callback] = require(
        py,
        "set_global_event_callback",
        None,
        given,
        &[],
        rest,
        None,
    )?;
    set_for_current(py, Entry::Callback, callback)
}

/// Return the callback of the current run, or None.
#[pyfunction]
#[pyo3(signature = (*rest), text_signature = "()")]
pub(crate) fn get_global_event_callback<'py>(
    py: Python<'py>,
    rest: &Bound<'py, PyTuple>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let [] = require(py, "get_global_event_callback", None, [], &[], rest, None)?;
    get_for_current(py, Entry::Callback)
}

/// Register `checker` for the current run; without a current run, do nothing. For hosts that use the oldest interface.
#[pyfunction]
#[pyo3(signature = (checker=Arg::Missing, *rest), text_signature = "(checker)")]
pub(crate) fn set_global_cancellation_checker<'py>(
    py: Python<'py>,
    checker: Arg<'_, 'py>,
    rest: &Bound<'py, PyTuple>,
) -> PyResult<()> {
    let given = [("checker", checker)];
    let [checker] = require(
        py,
        "set_global_cancellation_checker",
        None,
        given,
        &[],
        rest,
        None,
    )?;
    set_for_current(py, Entry::Checker, checker)
}

/// Return the cancellation checker of the current run, or None.
#[pyfunction]
#[pyo3(signature = (*rest), text_signature = "()")]
pub(crate) fn get_global_cancellation_checker<'py>(
    py: Python<'py>,
    rest: &Bound<'py, PyTuple>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let [] = require(
        py,
        "get_global_cancellation_checker",
        None,
        [],
        &[],
        rest,
        None,
    )?;
    get_for_current(py, Entry::Checker)
}

/// Raise :class:`RunCancelled` if the current run is cancelled, by its token or by its checker; without a run, do
/// nothing.
///
/// Calls the checker on this thread, with no lock held; its exceptions pass through. Thread-safe, re-entrant.
#[pyfunction]
#[pyo3(signature = (*rest), text_signature = "()")]
pub(crate) fn check_cancellation<'py>(py: Python<'py>, rest: &Bound<'py, PyTuple>) -> PyResult<()> {
    let [] = require(py, "check_cancellation", None, [], &[], rest, None)?;
    sleep_if_ended(|| match current(py)? {
        Some(run_id) => raise_if_cancelled(&run_id, &RunKey::new(&run_id)?),
        None => Ok(()),
    })
}

fn set_for_current(py: Python<'_>, entry: Entry, value: Borrowed<'_, '_, PyAny>) -> PyResult<()> {
    sleep_if_ended(|| match current(py)? {
        Some(run_id) => entry.set(py, RunKey::new(&run_id)?, value),
        None => Ok(()),
    })
}

fn get_for_current(py: Python<'_>, entry: Entry) -> PyResult<Option<Bound<'_, PyAny>>> {
    sleep_if_ended(|| match current(py)? {
        Some(run_id) => find(py, entry, &RunKey::new(&run_id)?),
        None => Ok(None),
    })
}
