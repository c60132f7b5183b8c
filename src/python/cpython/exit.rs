//! What happens to a thread that the exiting interpreter ends inside a call of this extension.
//!
//! Before 3.14, `CPython` ends a daemon thread that asks for the GIL again at the interpreter's exit by `pthread_exit`
//! ("Caution" at `PyGILState_Ensure` in the C API's reference). With glibc that unwinds the stack by force. Rust's
//! frames do not allow such unwinding, and the process aborts. Here the thread is stopped before its first frame is
//! unwound, and sleeps until the process ends, as in `CPython` itself since 3.14.
//!
//! Not covered: if C code leaves a callback by `longjmp`, glibc forgets the thread's cleanup handlers, and the rest of
//! the call is unprotected.

use super::interpreter::may_get_signals;
use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;
use std::cell::Cell;

/// Runs `body`, which may run Python code or give up the GIL. If the interpreter ends the thread there, the thread
/// sleeps, and never leaves `body`.
#[inline]
pub(crate) fn sleep_if_ended<R>(body: impl FnOnce() -> R) -> R {
    let _watch = thread::Watch::new();
    body()
}

thread_local! {
    /// Whether a Ctrl-C was raised in a callback or a wake that this thread called, and is still to be raised by
    /// [`raise_interrupt`].
    static INTERRUPTED: Cell<bool> = const { Cell::new(false) };
}

/// Calls a Python function, from any thread. At the interpreter's exit it does nothing: nobody waits for the call any
/// more.
///
/// An exception of the function goes to `sys.unraisablehook`; a Ctrl-C is left to [`raise_interrupt`].
pub(crate) fn call_from_any_thread(function: &Py<PyAny>) {
    sleep_if_ended(|| {
        Python::try_attach(|py| {
            if let Err(error) = function.call0(py) {
                if is_interrupt(py, &error) {
                    INTERRUPTED.set(true);
                } else {
                    error.write_unraisable(py, Some(function.bind(py)));
                }
            }
        });
    });
}

/// Calls `wake`, which wakes a coroutine, from any thread. If the call fails, for example because this thread's stack
/// is full or a Ctrl-C came, a new thread calls it again: a lost wake would leave the coroutine waiting for ever.
pub(crate) fn wake_from_any_thread(wake: Py<PyAny>) {
    let failed = sleep_if_ended(|| {
        Python::try_attach(|py| {
            let error = wake.call0(py).err()?;
            INTERRUPTED.set(INTERRUPTED.get() || is_interrupt(py, &error));
            Some(error)
        })
        .flatten()
    });
    if let Some(error) = failed {
        let again = std::thread::Builder::new().name("llm-wake".into());
        if again.spawn(move || call_from_any_thread(&wake)).is_err() {
            sleep_if_ended(|| Python::try_attach(|py| error.write_unraisable(py, None)));
        }
    }
}

/// Whether `error` is the Ctrl-C that a signal handler raises. Signal handlers run on Python's main thread only.
fn is_interrupt(py: Python<'_>, error: &PyErr) -> bool {
    may_get_signals() && error.is_instance_of::<PyKeyboardInterrupt>(py)
}

/// Raises the Ctrl-C that came during a callback or a wake, if there was one. To be called once all of them were
/// called.
#[inline]
pub(crate) fn raise_interrupt() -> PyResult<()> {
    if INTERRUPTED.replace(false) {
        return Err(PyKeyboardInterrupt::new_err(()));
    }
    Ok(())
}

/// Pass `error`, which `thing` has raised, to `sys.unraisablehook`. Python code cannot make the argument of that hook.
#[pyfunction]
#[pyo3(name = "_write_unraisable")]
pub(crate) fn write_unraisable(error: &Bound<'_, PyAny>, thing: &Bound<'_, PyAny>) {
    sleep_if_ended(|| {
        PyErr::from_value(error.clone()).write_unraisable(error.py(), Some(thing));
    });
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "a cleanup handler of the C library")]
mod thread {
    use std::cell::{Cell, UnsafeCell};
    use std::ffi::{c_int, c_void};
    use std::ptr;

    /// `struct _pthread_cleanup_buffer` of glibc's `pthread.h`.
    #[repr(C)]
    struct CleanupBuffer {
        routine: Option<unsafe extern "C" fn(*mut c_void)>,
        arg: *mut c_void,
        cancel_type: c_int,
        previous: *mut Self,
    }

    unsafe extern "C" {
        fn _pthread_cleanup_push(
            buffer: *mut CleanupBuffer,
            routine: unsafe extern "C" fn(*mut c_void),
            arg: *mut c_void,
        );
        fn _pthread_cleanup_pop(buffer: *mut CleanupBuffer, execute: c_int);
    }

    thread_local! {
        static DEPTH: Cell<usize> = const { Cell::new(0) };
        // If the buffer is gone already, the thread is ending by itself, and the interpreter does not end it.
        // On the heap: glibc runs the handler of a buffer on the stack only when the unwinding reaches that buffer, but
        // the handler of any other buffer at once.
        #[expect(clippy::unnecessary_box_returns, reason = "see above")]
        static BUFFER: Box<UnsafeCell<CleanupBuffer>> = Box::new(UnsafeCell::new(CleanupBuffer {
            routine: None,
            arg: ptr::null_mut(),
            cancel_type: 0,
            previous: ptr::null_mut(),
        }));
    }

    /// While a watch exists, its thread is not unwound by force. Watches nest, as calls do.
    pub(crate) struct Watch(());

    impl Watch {
        #[inline]
        pub(crate) fn new() -> Self {
            let depth = DEPTH.get();
            if depth == 0 {
                // SAFETY: the buffer outlives its registration, which ends in drop() at the latest on the same
                // thread, and nothing else looks into it.
                let _ = BUFFER.try_with(|buffer| unsafe {
                    _pthread_cleanup_push(buffer.get(), sleep, ptr::null_mut());
                });
            }
            DEPTH.set(depth + 1);
            Self(())
        }
    }

    impl Drop for Watch {
        #[inline]
        fn drop(&mut self) {
            let depth = DEPTH.get() - 1;
            DEPTH.set(depth);
            if depth == 0 {
                // SAFETY: the outermost Watch of this thread registered the buffer, and that is the latest registration
                // again, since every call in between has returned.
                let _ = BUFFER.try_with(|buffer| unsafe {
                    _pthread_cleanup_pop(buffer.get(), 0);
                });
            }
        }
    }

    unsafe extern "C" fn sleep(_: *mut c_void) {
        loop {
            std::thread::park();
        }
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
mod thread {
    /// On other platforms `pthread_exit` does not unwind the stack.
    pub(crate) struct Watch;

    impl Watch {
        pub(crate) fn new() -> Self {
            Self
        }
    }
}
