//! What the legacy functions return for an open run: a callback that emits into the run, and a checker that asks its
//! token.

use super::emit::emit;
use super::kind::forwarded_kind;
use crate::Run;
use crate::python::cpython::arguments::shown;
use crate::python::cpython::exit::sleep_if_ended;
use crate::python::cpython::names::names;
use crate::python::cpython::process::Owned;
use crate::python::shared::counters::COUNTERS;
use crate::python::shared::event;
use crate::python::shared::registered::{Entry, says_so};
use pyo3::exceptions::{PyKeyError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use std::sync::Arc;

/// The callback of one run. Called with an event `{"source", "event", "data"}`, it appends the event to the run's log,
/// then calls the callback that is registered for the run.
#[pyclass(name = "RunCallback", module = "llm_callback", frozen)]
pub(crate) struct PyRunCallback(Owned<Arc<Run>>);

/// The checker of one run. Called, it returns whether the run is cancelled: by its token, or by the registered checker.
#[pyclass(name = "RunChecker", module = "llm_callback", frozen)]
pub(crate) struct PyRunChecker(Owned<Arc<Run>>);

/// The callback or the checker of an open run, in place of a registered one.
pub(crate) fn of(py: Python<'_>, entry: Entry, run: Arc<Run>) -> PyResult<Bound<'_, PyAny>> {
    Ok(match entry {
        Entry::Callback => Bound::new(py, PyRunCallback(Owned::new(run)))?.into_any(),
        Entry::Checker => Bound::new(py, PyRunChecker(Owned::new(run)))?.into_any(),
    })
}

/// The value of a key that the dict of an event must have. Raises `KeyError` if it is missing, and `TypeError` if
/// `dict` is no dict.
fn item<'py>(dict: &Bound<'py, PyAny>, name: &Py<PyString>) -> PyResult<Bound<'py, PyAny>> {
    let name = name.bind(dict.py());
    let Ok(dict) = dict.cast::<PyDict>() else {
        return Err(PyTypeError::new_err(format!(
            "an event is a dict {{'source', 'event': {{'category', 'action'}}, 'data'}}: {} is none",
            shown(dict)
        )));
    };
    dict.get_item(name)?.ok_or_else(|| {
        PyKeyError::new_err(format!(
            "an event is a dict {{'source', 'event': {{'category', 'action'}}, 'data'}}: {name} is missing"
        ))
    })
}

#[pymethods]
impl PyRunCallback {
    fn __call__(&self, py: Python<'_>, event: &Bound<'_, PyAny>) -> PyResult<()> {
        sleep_if_ended(|| {
            let Some(run) = self.0.get() else {
                COUNTERS.count_no_callback();
                return Ok(());
            };
            let kind = item(event, &names(py).event)?;
            let kind = forwarded_kind(
                &item(&kind, &names(py).category)?,
                &item(&kind, &names(py).action)?,
            )?;
            let mut source = item(event, &names(py).source)?;
            if !source.is_none() {
                source = event::source_dict(&source)?;
            }
            emit(py, run, &kind, &source, &item(event, &names(py).data)?).map(drop)
        })
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        let other = other.cast::<Self>();
        other.is_ok_and(|other| Arc::ptr_eq(self.0.anyway(), other.get().0.anyway()))
    }

    fn __hash__(&self) -> usize {
        Arc::as_ptr(self.0.anyway()).addr()
    }
}

#[pymethods]
impl PyRunChecker {
    fn __call__(&self, py: Python<'_>) -> PyResult<bool> {
        sleep_if_ended(|| {
            let run = self.0.anyway();
            Ok(run.token().is_cancelled() || says_so(Entry::Checker.of(py, run.id())?)?)
        })
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        let other = other.cast::<Self>();
        other.is_ok_and(|other| Arc::ptr_eq(self.0.anyway(), other.get().0.anyway()))
    }

    fn __hash__(&self) -> usize {
        Arc::as_ptr(self.0.anyway()).addr()
    }
}
