//! The functions that register a run's callback and checker, and look them up.

use super::route;
use crate::python::cpython::arguments::{Arg, require};
use crate::python::cpython::exit::sleep_if_ended;
use crate::python::runs::run_callback;
use crate::python::shared::counters::COUNTERS;
use crate::python::shared::registered::{Entry, Found};
use crate::python::shared::run_key::RunKey;
use crate::python::shared::table;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

/// The callback or the checker of the open run of `key`; if there is no open run, the registered one.
pub(crate) fn find<'py>(py: Python<'py>, entry: Entry, key: &RunKey<'py>) -> PyResult<Found<'py>> {
    match table::live(py, key)? {
        Some(open) => run_callback::of(py, entry, open).map(Some),
        None => entry.get(py, key),
    }
}

/// Send the events of the run `run_id` to `callback`; None removes the run's callback.
///
/// `run_id` is any hashable, and equal ids are one run, as in a dict. `callback` is called as `callback(event)` on the
/// emitting thread, with no lock held: it may register, remove, emit or block, and its exceptions reach the code that
/// emits. Any object but None is stored: an object that cannot be called fails only when an event is emitted.
///
/// Thread-safe, re-entrant, does not block. Raises TypeError for an unhashable `run_id`.
#[pyfunction]
#[pyo3(signature = (run_id=Arg::Missing, callback=Arg::Missing, *rest), text_signature = "(run_id, callback)")]
pub(crate) fn register_event_callback<'py>(
    py: Python<'py>,
    run_id: Arg<'_, 'py>,
    callback: Arg<'_, 'py>,
    rest: &Bound<'py, PyTuple>,
) -> PyResult<()> {
    let given = [("run_id", run_id), ("callback", callback)];
    let [run_id, callback] = require(py, "register_event_callback", None, given, &[], rest, None)?;
    sleep_if_ended(|| Entry::Callback.set(py, RunKey::new(&run_id)?, callback))
}

/// Return the callback of the run `run_id`, or None.
///
/// With `configure(route="context")` the run of the calling context is preferred, if one is known.
/// Thread-safe, re-entrant, does not block. Raises TypeError for an unhashable `run_id`.
#[pyfunction]
#[pyo3(signature = (run_id=Arg::Missing, *rest), text_signature = "(run_id)")]
pub(crate) fn get_event_callback<'py>(
    py: Python<'py>,
    run_id: Arg<'_, 'py>,
    rest: &Bound<'py, PyTuple>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let [run_id] = require(
        py,
        "get_event_callback",
        None,
        [("run_id", run_id)],
        &[],
        rest,
        None,
    )?;
    look_up(&run_id, Entry::Callback)
}

/// Ask `checker` whether the run `run_id` is cancelled; None removes the run's checker.
///
/// `checker` is called without arguments at each call of a handler of the run, and by :func:`check_cancellation`, on
/// the calling thread, with no lock held. If it returns a true value, :class:`RunCancelled` is raised; an exception of
/// `checker` passes through.
///
/// Thread-safe, re-entrant, does not block. Raises TypeError for an unhashable `run_id`.
#[pyfunction]
#[pyo3(signature = (run_id=Arg::Missing, checker=Arg::Missing, *rest), text_signature = "(run_id, checker)")]
pub(crate) fn register_cancellation_checker<'py>(
    py: Python<'py>,
    run_id: Arg<'_, 'py>,
    checker: Arg<'_, 'py>,
    rest: &Bound<'py, PyTuple>,
) -> PyResult<()> {
    let given = [("run_id", run_id), ("checker", checker)];
    let [run_id, checker] = require(
        py,
        "register_cancellation_checker",
        None,
        given,
        &[],
        rest,
        None,
    )?;
    sleep_if_ended(|| Entry::Checker.set(py, RunKey::new(&run_id)?, checker))
}

/// Return the cancellation checker of the run `run_id`, or None.
///
/// With `configure(route="context")` the run of the calling context is preferred, if one is known.
/// Thread-safe, re-entrant, does not block. Raises TypeError for an unhashable `run_id`.
#[pyfunction]
#[pyo3(signature = (run_id=Arg::Missing, *rest), text_signature = "(run_id)")]
pub(crate) fn get_cancellation_checker<'py>(
    py: Python<'py>,
    run_id: Arg<'_, 'py>,
    rest: &Bound<'py, PyTuple>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let [run_id] = require(
        py,
        "get_cancellation_checker",
        None,
        [("run_id", run_id)],
        &[],
        rest,
        None,
    )?;
    look_up(&run_id, Entry::Checker)
}

/// Return a new dict of all registered callbacks by run id.
#[pyfunction(name = "_callbacks")]
pub(crate) fn callbacks(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    Entry::Callback.snapshot(py)
}

/// Return a new dict of all registered checkers by run id.
#[pyfunction(name = "_checkers")]
pub(crate) fn checkers(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    Entry::Checker.snapshot(py)
}

/// The callback or the checker of the run that the route chooses for `run_id`.
fn look_up<'py>(run_id: &Bound<'py, PyAny>, entry: Entry) -> PyResult<Option<Bound<'py, PyAny>>> {
    sleep_if_ended(|| {
        let py = run_id.py();
        // The given id must be hashable even if the route chooses another one.
        let key = RunKey::new(run_id)?;
        match route::resolve(run_id)? {
            route::Target::Given => find(py, entry, &key),
            route::Target::Context(run_id) => find(py, entry, &RunKey::new(&run_id)?),
            route::Target::Disagreement(_) => {
                // The caller gets no callback, so its event is dropped.
                if let Entry::Callback = entry {
                    COUNTERS.count_route();
                }
                Ok(None)
            }
        }
    })
}
