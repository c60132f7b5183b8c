//! Counting a handler's tool calls: a new call is told apart from a further piece of the latest one.

use super::attributes::Attribute;
use super::handler::PyHandler;
use super::print::print;
use super::truth::truthy;
use crate::python::cpython::names::names;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyInt};

/// Looks up the Python objects that this file needs. To be called at import.
pub(crate) fn prepare(py: Python<'_>) -> PyResult<()> {
    iadd(py).map(drop)
}

/// How the attributes of a handler are read and written: a user's subclass may override them.
pub(crate) trait Attribution<'py> {
    fn get(&self, attribute: Attribute) -> PyResult<Bound<'py, PyAny>>;

    fn set(&self, attribute: Attribute, value: Bound<'py, PyAny>) -> PyResult<()>;
}

/// A plain handler.
impl<'py> Attribution<'py> for Bound<'py, PyHandler> {
    fn get(&self, attribute: Attribute) -> PyResult<Bound<'py, PyAny>> {
        PyHandler::own_of_plain(self, attribute)
    }

    fn set(&self, attribute: Attribute, value: Bound<'py, PyAny>) -> PyResult<()> {
        PyHandler::set_own(self, attribute, value)
    }
}

/// A tool call.
pub(crate) struct ToolCall<'py> {
    pub(crate) name: Bound<'py, PyAny>,
    /// Its number among its handler's calls, from 1.
    pub(crate) count: Bound<'py, PyAny>,
}

/// Counts a tool call, and prints it if the handler is verbose. Returns None if the tool has no name, or if the
/// handler's latest tool call equals it.
pub(crate) fn new_tool_call<'py>(
    handler: &impl Attribution<'py>,
    tool: Bound<'py, PyAny>,
) -> PyResult<Option<ToolCall<'py>>> {
    let py = tool.py();
    let name = match tool.cast_exact::<PyDict>() {
        Ok(tool) => tool.get_item(names(py).name.bind(py))?,
        Err(_) => Some(tool.call_method1(names(py).get.bind(py), (names(py).name.bind(py),))?),
    };
    let Some(name) = truthy(name)? else {
        return Ok(None);
    };
    if !handler.get(Attribute::PreviousToolUse)?.ne(&tool)? {
        return Ok(None);
    }
    handler.set(Attribute::PreviousToolUse, tool)?;
    let count = increment(&handler.get(Attribute::ToolCount)?)?;
    handler.set(Attribute::ToolCount, count)?;
    let count = handler.get(Attribute::ToolCount)?;
    if handler.get(Attribute::Verbose)?.is_truthy()? {
        let line = names(py)
            .tool_line
            .bind(py)
            .call_method1(names(py).format.bind(py), (&count, &name))?;
        print(&line, None)?;
    }
    Ok(Some(ToolCall { name, count }))
}

/// `count += 1`.
fn increment<'py>(count: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    if count.is_exact_instance_of::<PyInt>() {
        count.add(1)
    } else {
        iadd(count.py())?.call1((count, 1))
    }
}

fn iadd(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static FUNCTION: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    FUNCTION.import(py, "operator", "iadd")
}
