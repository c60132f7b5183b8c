//! After `fork`, the child starts with empty registries: its parent's runs are not its own.

use crate::python::cpython::interpreter;
use crate::python::cpython::process;
use crate::python::shared::registered;
use crate::python::shared::table;
use pyo3::prelude::*;
use pyo3::types::PyDict;

#[pyfunction]
fn forget_the_parents_runs(py: Python<'_>) -> PyResult<()> {
    process::has_forked();
    crate::after_fork_in_child();
    table::forget(py);
    interpreter::find_main_thread(py)?;
    registered::forget(py)
}

/// Registers the function that empties the registries in the child of every later fork.
pub(crate) fn install(py: Python<'_>) -> PyResult<()> {
    // Windows has no fork.
    let Some(register) = py.import("os")?.getattr_opt("register_at_fork")? else {
        return Ok(());
    };
    let hooks = PyDict::new(py);
    hooks.set_item(
        "after_in_child",
        wrap_pyfunction!(forget_the_parents_runs, py)?,
    )?;
    register.call((), Some(&hooks)).map(drop)
}
