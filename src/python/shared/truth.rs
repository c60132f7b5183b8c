//! Python's truth of a value that may be missing.

use pyo3::prelude::*;

/// The value, if there is one and it is true.
pub(crate) fn truthy(value: Option<Bound<'_, PyAny>>) -> PyResult<Option<Bound<'_, PyAny>>> {
    match value {
        Some(value) if value.is_truthy()? => Ok(Some(value)),
        _ => Ok(None),
    }
}
