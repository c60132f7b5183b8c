//! Python's `print`.

use crate::python::cpython::names::names;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;

/// Looks up the Python objects that this file needs. To be called at import.
pub(crate) fn prepare(py: Python<'_>) -> PyResult<()> {
    builtins(py).map(drop)
}

fn builtins(py: Python<'_>) -> PyResult<&Bound<'_, PyModule>> {
    static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    Ok(MODULE
        .get_or_try_init(py, || py.import("builtins").map(Bound::unbind))?
        .bind(py))
}

/// Calls `print` of `builtins`, which a host may have replaced.
pub(crate) fn print(value: &Bound<'_, PyAny>, end: Option<&str>) -> PyResult<()> {
    let py = value.py();
    let print = builtins(py)?.getattr(names(py).print.bind(py))?;
    let options = PyDict::new(py);
    if let Some(end) = end {
        options.set_item(names(py).end.bind(py), end)?;
    }
    print.call((value,), Some(&options)).map(drop)
}
