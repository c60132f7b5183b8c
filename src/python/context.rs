//! The current run: a `ContextVar`, and the legacy functions that act on it.

use super::arguments::{Arg, require};
use super::dispatch::raise_if_cancelled;
use super::exit::sleep_if_ended;
use super::names::names;
use super::registry::Entry;
use super::run_key::RunKey;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple};
use std::thread::ThreadId;

/// What the context variable holds.
#[pyclass(frozen, name = "_CurrentRun", module = "llm_callback._core")]
struct CurrentRun {
    run_id: Py<PyAny>,
    /// The thread that set it. Unlike Python's thread ids, a Rust one is never given out twice.
    thread: ThreadId,
}

#[pymethods]
impl CurrentRun {
    // No __clear__: the context that holds it is cleared.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.run_id)
    }
}

fn new_variable(py: Python<'_>, name: &str) -> PyResult<Py<PyAny>> {
    let options = PyDict::new(py);
    options.set_item("default", py.None())?;
    Ok(py
        .import("contextvars")?
        .getattr("ContextVar")?
        .call((name,), Some(&options))?
        .unbind())
}

fn variable(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static VARIABLE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    Ok(VARIABLE
        .get_or_try_init(py, || new_variable(py, "llm_callback_current_run"))?
        .bind(py))
}

/// The run of the calling context, if one is known.
pub(super) fn current(py: Python<'_>) -> PyResult<Option<Bound<'_, PyAny>>> {
    let value = variable(py)?.call_method0(names(py).get.bind(py))?;
    let Ok(current) = value.cast_exact::<CurrentRun>() else {
        return Ok(None);
    };
    let current = current.get();
    // In another thread the value came along with a context: one that was copied on purpose is believed.
    if current.thread != std::thread::current().id() && threads_inherit(py)? && is_inherited(py)? {
        return Ok(None);
    }
    Ok(Some(current.run_id.bind(py).clone()))
}

/// Looks up what is needed from Python.
pub(super) fn prepare(py: Python<'_>) -> PyResult<()> {
    py.get_type::<CurrentRun>();
    variable(py)?;
    threads_inherit(py).map(drop)
}

/// Whether a new thread starts with a copy of its starter's context (free-threaded builds, or `-X`).
fn threads_inherit(py: Python<'_>) -> PyResult<bool> {
    static INHERIT: PyOnceLock<bool> = PyOnceLock::new();
    INHERIT
        .get_or_try_init(py, || {
            let flags = py.import("sys")?.getattr("flags")?;
            match flags.getattr_opt("thread_inherit_context")? {
                Some(flag) => flag.is_truthy(),
                None => Ok(false),
            }
        })
        .copied()
}

/// Whether the calling context is the one that its thread was started with, and no other entered since.
///
/// `CPython` does not tell, but shows: a variable set in the calling context is seen in the thread's first context
/// if the two are one.
fn is_inherited(py: Python<'_>) -> PyResult<bool> {
    static PROBE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let thread = py.import("threading")?.call_method0("current_thread")?;
    let Some(first) = thread
        .getattr_opt("_context")?
        .filter(|context| !context.is_none())
    else {
        return Ok(false);
    };
    let probe = PROBE
        .get_or_try_init(py, || new_variable(py, "llm_callback_probe"))?
        .bind(py);
    let token = probe.call_method1("set", (true,))?;
    let seen = first
        .call_method1("get", (probe,))
        .and_then(|seen| seen.is_truthy());
    probe.call_method1("reset", (token,))?;
    seen
}

/// Make `run_id` the run of the calling context: of this thread, or of this asyncio task.
///
/// Nothing is left to a later thread, and a context that is copied from here carries it. Any object is accepted;
/// None is the same as :func:`clear_current_run_id`. Thread-safe, does not block.
#[pyfunction]
#[pyo3(signature = (run_id=Arg::Missing, *rest), text_signature = "(run_id)")]
pub(super) fn set_current_run_id<'py>(
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

fn set_current(run_id: &Bound<'_, PyAny>) -> PyResult<()> {
    sleep_if_ended(|| {
        let py = run_id.py();
        let set = names(py).set.bind(py);
        if run_id.is_none() {
            variable(py)?.call_method1(set, (py.None(),))?;
        } else {
            let run_id = run_id.clone().unbind();
            let value = Bound::new(
                py,
                CurrentRun {
                    run_id,
                    thread: std::thread::current().id(),
                },
            )?;
            variable(py)?.call_method1(set, (value,))?;
        }
        Ok(())
    })
}

/// Return the run of the calling context, or None.
///
/// A run that a thread only inherited from whoever started it (free-threaded Python, or
/// `-X thread_inherit_context=1`) is not believed; a copy of such a context cannot be told from one that was made on
/// purpose, so set or :func:`bind` the run in workers there. Thread-safe, does not block.
#[pyfunction]
#[pyo3(signature = (*rest), text_signature = "()")]
pub(super) fn get_current_run_id<'py>(
    py: Python<'py>,
    rest: &Bound<'py, PyTuple>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let [] = require(py, "get_current_run_id", None, [], &[], rest, None)?;
    current(py)
}

/// Leave the calling context without a run. Thread-safe, does not block.
#[pyfunction]
#[pyo3(signature = (*rest), text_signature = "()")]
pub(super) fn clear_current_run_id<'py>(
    py: Python<'py>,
    rest: &Bound<'py, PyTuple>,
) -> PyResult<()> {
    let [] = require(py, "clear_current_run_id", None, [], &[], rest, None)?;
    set_current(py.None().bind(py))
}

/// Register `callback` for the current run; without one, do nothing. For hosts of the oldest interface.
#[pyfunction]
#[pyo3(signature = (callback=Arg::Missing, *rest), text_signature = "(callback)")]
pub(super) fn set_global_event_callback<'py>(
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
pub(super) fn get_global_event_callback<'py>(
    py: Python<'py>,
    rest: &Bound<'py, PyTuple>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let [] = require(py, "get_global_event_callback", None, [], &[], rest, None)?;
    get_for_current(py, Entry::Callback)
}

/// Register `checker` for the current run; without one, do nothing. For hosts of the oldest interface.
#[pyfunction]
#[pyo3(signature = (checker=Arg::Missing, *rest), text_signature = "(checker)")]
pub(super) fn set_global_cancellation_checker<'py>(
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
pub(super) fn get_global_cancellation_checker<'py>(
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

/// Raise :class:`RunCancelled` if the checker of the current run says so; without a run, do nothing.
///
/// Calls the checker on this thread, with no lock held; what it raises passes through. Thread-safe, re-entrant.
#[pyfunction]
#[pyo3(signature = (*rest), text_signature = "()")]
pub(super) fn check_cancellation<'py>(py: Python<'py>, rest: &Bound<'py, PyTuple>) -> PyResult<()> {
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
        Some(run_id) => entry.find(py, &RunKey::new(&run_id)?),
        None => Ok(None),
    })
}
