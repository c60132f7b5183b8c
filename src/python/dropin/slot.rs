//! The type slot through which Python calls a handler, without `PyO3`'s copy of the keyword arguments.
//!
//! `CPython` passes the arguments of `handler(**kwargs)` to the slot as a dict. `PyO3` builds a second dict from it for
//! a `**kwargs` parameter, which with a framework's dozen arguments takes as long as everything else together. This
//! slot reads the first dict. Subclasses that are called through `PyO3`'s slot behave the same.

#![expect(unsafe_code, reason = "a type slot is a C function")]

use crate::python::runs::run_handler::{self, PyRunHandler};
use crate::python::shared::handler::PyHandler;
use pyo3::PyTypeCheck;
use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

/// Installs the slot, and sets the class's name without its module, as error messages about Python classes have it. To
/// be called at import.
pub(crate) fn install(py: Python<'_>) {
    let class = py.get_type::<PyHandler>();
    let of_runs = py.get_type::<PyRunHandler>();
    // SAFETY: the type objects are alive and, during their module's import, used by nobody else. A heap type does not
    // own its `tp_name`; `__module__` was stored elsewhere when the type was made.
    unsafe {
        (*class.as_type_ptr()).tp_call = Some(call::<PyHandler>);
        (*of_runs.as_type_ptr()).tp_call = Some(call::<PyRunHandler>);
        (*class.as_type_ptr()).tp_name = c"LLMCallbackHandler".as_ptr();
    }
}

/// A class whose objects can be called.
trait Callable: PyTypeCheck + Sized {
    fn call<'py>(
        object: &Bound<'py, Self>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<()>;
}

impl Callable for PyHandler {
    fn call<'py>(
        object: &Bound<'py, Self>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<()> {
        Self::__call__(object, args, kwargs)
    }
}

impl Callable for PyRunHandler {
    fn call<'py>(
        object: &Bound<'py, Self>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<()> {
        if args.is_empty() {
            run_handler::call(object, kwargs)
        } else {
            // Raises the TypeError of a Python method that takes keywords only.
            PyHandler::__call__(object.as_super(), args, kwargs)
        }
    }
}

unsafe extern "C" fn call<T: Callable>(
    handler: *mut ffi::PyObject,
    args: *mut ffi::PyObject,
    kwargs: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    let call = |py: Python<'_>| -> PyResult<()> {
        // SAFETY: CPython calls a slot with an object of the slot's type, a tuple, and a dict or null, all borrowed.
        let (handler, args, kwargs) = unsafe {
            (
                Borrowed::from_ptr(py, handler).cast_unchecked::<T>(),
                Borrowed::from_ptr(py, args).cast_unchecked::<PyTuple>(),
                Borrowed::from_ptr_or_opt(py, kwargs)
                    .map(|kwargs| kwargs.cast_unchecked::<PyDict>()),
            )
        };
        T::call(&handler, &args, kwargs.as_deref())
    };
    // A panic must not cross into C. There is none that we know of.
    let guarded = |py: Python<'_>| {
        catch_unwind(AssertUnwindSafe(|| call(py))).unwrap_or_else(|_| {
            Err(PyRuntimeError::new_err(
                "llm_callback failed inside (a bug, please report it): see stderr",
            ))
        })
    };
    let finish = |py: Python<'_>| match guarded(py) {
        Ok(()) => py.None().into_ptr(),
        Err(error) => {
            error.restore(py);
            ptr::null_mut()
        }
    };
    // `try_attach` tells PyO3 that this thread is attached, so that references are released at once. It fails while the
    // interpreter is finalizing; then they may be released later.
    // SAFETY: CPython calls a slot only from an attached thread.
    Python::try_attach(finish).unwrap_or_else(|| finish(unsafe { Python::assume_attached() }))
}
