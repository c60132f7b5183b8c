//! One registry is one interpreter's: a second one would get the first one's objects.

#![expect(unsafe_code, reason = "PyO3 has no face for interpreters")]

use pyo3::exceptions::PyImportError;
use pyo3::ffi;
use pyo3::prelude::*;

/// Refuses to be imported by any interpreter but the main one.
pub(super) fn refuse_all_but_the_main(_py: Python<'_>) -> PyResult<()> {
    // SAFETY: the thread is attached; neither pointer is looked into.
    if unsafe { ffi::PyInterpreterState_Get() == ffi::PyInterpreterState_Main() } {
        return Ok(());
    }
    Err(PyImportError::new_err(
        "llm_callback cannot be imported in a subinterpreter: its runs are those of the whole process",
    ))
}
