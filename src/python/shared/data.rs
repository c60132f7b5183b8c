//! The data of the events that both kinds of handlers report.

use crate::python::cpython::names::names;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// The data of `llm.stream` and `llm.reasoning`.
pub(crate) fn content(content: Bound<'_, PyAny>) -> PyResult<Bound<'_, PyDict>> {
    let py = content.py();
    let data = PyDict::new(py);
    data.set_item(names(py).content.bind(py), content)?;
    Ok(data)
}

/// The data of `llm.tool_call`.
pub(crate) fn tool_call<'py>(
    name: Bound<'py, PyAny>,
    count: Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyDict>> {
    let py = name.py();
    let data = PyDict::new(py);
    data.set_item(names(py).tool_name.bind(py), name)?;
    data.set_item(names(py).tool_count.bind(py), count)?;
    Ok(data)
}

/// The data of `llm.completed`.
pub(crate) fn round_completed(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let data = PyDict::new(py);
    data.set_item(
        names(py).message.bind(py),
        names(py).round_completed.bind(py),
    )?;
    Ok(data)
}
