//! Which interpreter, and which of its threads, the calling code runs on.

#![expect(unsafe_code, reason = "PyO3 has no face for interpreters")]

use crate::sync::{AtomicU64, Ordering};
use pyo3::exceptions::PyImportError;
use pyo3::ffi;
use pyo3::prelude::*;

/// Raises `ImportError` in any interpreter but the main one: a second interpreter would get the first one's objects.
pub(crate) fn refuse_all_but_the_main(_py: Python<'_>) -> PyResult<()> {
    // SAFETY: the thread is attached; neither pointer is dereferenced.
    if unsafe { ffi::PyInterpreterState_Get() == ffi::PyInterpreterState_Main() } {
        return Ok(());
    }
    Err(PyImportError::new_err(
        "llm_callback cannot be imported in a subinterpreter: its runs are those of the whole process",
    ))
}

/// `threading.main_thread().ident`. Relaxed: it is written at import, and in the child of a fork.
static MAIN_THREAD: AtomicU64 = AtomicU64::new(0);

/// Notes which thread is Python's main thread: the one whose signal handlers run.
pub(crate) fn find_main_thread(py: Python<'_>) -> PyResult<()> {
    let main = py.import("threading")?.call_method0("main_thread")?;
    let ident: Option<u64> = main.getattr("ident")?.extract()?;
    MAIN_THREAD.store(ident.unwrap_or_default(), Ordering::Relaxed);
    Ok(())
}

/// Whether this is Python's main thread.
pub(crate) fn may_get_signals() -> bool {
    // SAFETY: it only asks the C library for a number; it is an `unsigned long`.
    let here = unsafe { ffi::PyThread_get_thread_ident() } as u64;
    here == MAIN_THREAD.load(Ordering::Relaxed)
}
