//! Looking up modules that may not have been imported, without importing them.

use pyo3::prelude::*;
use pyo3::types::PyDict;

/// The module `name`, or None if it has not been imported.
pub(crate) fn loaded<'py>(py: Python<'py>, name: &str) -> PyResult<Option<Bound<'py, PyAny>>> {
    let modules = py.import("sys")?.getattr("modules")?;
    Ok(modules
        .cast::<PyDict>()?
        .get_item(name)?
        .filter(|module| !module.is_none()))
}

/// Whether `object` is an instance of `class` of `module`. False if the module has not been imported.
pub(crate) fn is_instance_of_loaded(
    object: &Bound<'_, PyAny>,
    module: &str,
    class: &str,
) -> PyResult<bool> {
    match loaded(object.py(), module)? {
        Some(module) => object.is_instance(&module.getattr(class)?),
        None => Ok(false),
    }
}
