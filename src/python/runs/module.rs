//! The runs of this process: opened, found, cancelled.

use super::run::PyRun;
use super::token::kind_and_reason;
use crate::python::cpython::encode;
use crate::python::cpython::errors;
use crate::python::cpython::exit::{raise_interrupt, sleep_if_ended};
use crate::python::cpython::wait::seconds;
use crate::python::shared::cancelled::cancelled_error;
use crate::python::shared::run_id::{id_from_python, minted};
use crate::python::shared::table::runs;
use crate::{OpenError, Run};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use std::sync::Arc;
use std::time::Instant;

/// The error of a run that was not opened.
fn refused(py: Python<'_>, error: &OpenError) -> PyErr {
    let message = error.to_string();
    match error {
        OpenError::Live(_) => errors::run_exists(py, message),
        OpenError::NoParent(_) => errors::parent_not_live(py, message),
        OpenError::ParentCancelled(parent, reason) => cancelled_error(py, parent, reason),
        OpenError::TooMany(_) => errors::too_many_runs(py, message),
        OpenError::ShutDown => errors::shut_down(py, message),
        OpenError::NoTimer => errors::thread_refused(py, message),
    }
}

/// The run that is given, or the live run of the id that is given. Raises `ParentNotLive` if there is none.
fn live_run(py: Python<'_>, given: &Bound<'_, PyAny>) -> PyResult<Arc<Run>> {
    if let Ok(run) = given.cast::<PyRun>() {
        return run.get().run().cloned();
    }
    let (id, runs) = (id_from_python(given)?, runs(py));
    py.detach(|| runs.live(&id))
        .ok_or_else(|| refused(py, &OpenError::NoParent(id)))
}

/// Open a run: a log of its own, a token, handlers, readers. Use it as `with open_run(42, task="…") as run:`.
///
/// `run_id` is an int, a str, or a UUID, which stands for its text; if it is left out, a UUID is made. `parent` is a
/// live run, or its id: the new run's token is a child of the parent's, and the lifecycle events have the parent's id
/// as `parent_run_id`. The run is cancelled `deadline` seconds from now. With `pending=True` the run exists and can be
/// cancelled, but begins with :meth:`Run.start` or `with`. All other keywords are the data of the run's first event,
/// `lifecycle.started`.
///
/// The parent's end cancels the new run too, with kind `parent`, unless the new run is `detached`. A run that has ended
/// can still be found and read for 300 seconds, as one of the latest 1 000: see :func:`configure`.
///
/// Thread-safe. Blocks, without the GIL, while another thread changes the table of runs. Raises :class:`RunExists` if a
/// run of this id is live, :class:`ParentNotLive`, :class:`TooManyRuns` if as many runs are live as :func:`configure`
/// allows, :class:`ShutDown` after a shutdown or at the interpreter's exit, :class:`RunCancelled` if the parent is
/// cancelled, and TypeError or ValueError for an invalid id, deadline or data.
#[pyfunction]
#[pyo3(
    signature = (run_id=None, /, *, parent=None, detached=false, deadline=None, pending=false, **data),
    text_signature = "(run_id=None, /, *, parent=None, detached=False, deadline=None, pending=False, **data)"
)]
pub(crate) fn open_run<'py>(
    py: Python<'py>,
    run_id: Option<&Bound<'py, PyAny>>,
    parent: Option<&Bound<'py, PyAny>>,
    detached: bool,
    deadline: Option<&Bound<'py, PyAny>>,
    pending: bool,
    data: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyRun>> {
    sleep_if_ended(|| {
        if data.is_some_and(|data| data.contains("run_id").unwrap_or_default()) {
            return Err(PyTypeError::new_err(
                "open_run() takes the run's id by position: open_run(42, task=\"…\")",
            ));
        }
        let id = match run_id.filter(|run_id| !run_id.is_none()) {
            Some(run_id) => id_from_python(run_id)?,
            None => minted(py)?,
        };
        let parent = match parent.filter(|parent| !parent.is_none()) {
            Some(parent) => Some(live_run(py, parent)?),
            None => None,
        };
        let deadline =
            seconds("deadline", deadline)?.and_then(|after| Instant::now().checked_add(after));
        let data = encode::keywords(data)?;
        let runs = runs(py);
        let builder = runs.builder(id).parent(parent.as_ref()).detached(detached);
        let builder = builder.deadline(deadline).pending(pending).data(&data);
        let builder = builder.expect("raw JSON is JSON");
        let opened = py.detach(|| builder.open());
        let run = opened.map_err(|error| refused(py, &error))?;
        Bound::new(py, PyRun::new(run))
    })
}

/// Return the latest run of this id, live or finished; None if there is none.
///
/// Thread-safe. Raises TypeError or ValueError for an invalid run id.
#[pyfunction]
#[pyo3(signature = (run_id, /))]
pub(crate) fn get_run<'py>(
    py: Python<'py>,
    run_id: &Bound<'py, PyAny>,
) -> PyResult<Option<Bound<'py, PyRun>>> {
    sleep_if_ended(|| {
        let id = id_from_python(run_id)?;
        let runs = runs(py);
        py.detach(|| runs.get(&id))
            .map(|run| Bound::new(py, PyRun::new(run)))
            .transpose()
    })
}

/// Return the runs that have not ended, in no order. Thread-safe.
#[pyfunction]
pub(crate) fn active_runs(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyRun>>> {
    sleep_if_ended(|| {
        let runs = runs(py);
        py.detach(|| runs.active())
            .into_iter()
            .map(|run| Bound::new(py, PyRun::new(run)))
            .collect()
    })
}

/// Ask the live run of this id, and all runs below it, to stop. Returns True if there is one, and this call was the
/// first to ask.
///
/// A :class:`Run` may be given in place of an id: then that run is meant, and no later run of the same id. `kind` is
/// who asks: `user`, `shutdown`, `disconnect`, …. The first reason stays. The `on_cancel` callbacks of the run's tokens
/// are called before this function returns. Thread-safe. Raises TypeError or ValueError for an invalid run id or kind.
#[pyfunction]
#[pyo3(signature = (run_id, /, reason=None, *, kind="user"), text_signature = "(run_id, /, reason='', *, kind='user')")]
pub(crate) fn cancel_run<'py>(
    py: Python<'py>,
    run_id: &Bound<'py, PyAny>,
    reason: Option<&Bound<'py, PyString>>,
    kind: &str,
) -> PyResult<bool> {
    sleep_if_ended(|| {
        let empty = PyString::new(py, "");
        let (kind, reason) = kind_and_reason(kind, reason.unwrap_or(&empty))?;
        if let Ok(run) = run_id.cast::<PyRun>() {
            // This run, and not a later one of the same id.
            let run = run.get().run()?;
            let was_first = py.detach(|| run.cancel(kind, &reason));
            return raise_interrupt().map(|()| was_first);
        }
        let id = id_from_python(run_id)?;
        let runs = runs(py);
        let was_first = py.detach(|| runs.cancel(&id, kind, &reason));
        raise_interrupt().map(|()| was_first)
    })
}
