//! The current run: a `ContextVar`.

use crate::python::cpython::exit::sleep_if_ended;
use crate::python::cpython::names::names;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;
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
pub(crate) fn current(py: Python<'_>) -> PyResult<Option<Bound<'_, PyAny>>> {
    let value = variable(py)?.call_method0(names(py).get.bind(py))?;
    let Ok(current) = value.cast_exact::<CurrentRun>() else {
        return Ok(None);
    };
    let current = current.get();
    // On another thread the value came with a copy of the context. A copy that was made on purpose is trusted; one that
    // the thread only inherited is not.
    if current.thread != std::thread::current().id() && threads_inherit(py)? && is_inherited(py)? {
        return Ok(None);
    }
    Ok(Some(current.run_id.bind(py).clone()))
}

/// Looks up the Python objects that this file needs. To be called at import.
pub(crate) fn prepare(py: Python<'_>) -> PyResult<()> {
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

/// Whether the calling context is the one that its thread was started with, and not one that was entered since.
///
/// `CPython` has no function for this. But if the two contexts are the same, a variable that is set in the calling
/// context is also set in the thread's first context.
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

/// Makes `run_id` the run of the calling context; None leaves it without one.
pub(crate) fn set_current(run_id: &Bound<'_, PyAny>) -> PyResult<()> {
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
