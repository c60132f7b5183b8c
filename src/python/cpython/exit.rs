//! What becomes of a thread that the interpreter ends, at its exit, inside a call of ours.
//!
//! Before 3.14, `CPython` ends a daemon thread that comes back for the GIL by `pthread_exit` ("Caution" at
//! `PyGILState_Ensure` in the C API's reference). With glibc that unwinds the stack by force; Rust's frames are not
//! made to be unwound so, and the process aborts. Here such a thread is stopped before the first frame is unwound, and
//! sleeps until the process is gone: what `CPython` itself does since 3.14.
//!
//! Not covered: the rest of a call in which C code has left a callback by `longjmp`, since glibc then forgets the
//! handlers of this thread.

use super::interpreter::may_get_signals;
use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;
use std::cell::Cell;

/// Runs `body`, in which Python code may run or the GIL be given up. A thread that is ended in it never leaves it.
#[inline]
pub(crate) fn sleep_if_ended<R>(body: impl FnOnce() -> R) -> R {
    let _watch = thread::Watch::new();
    body()
}

thread_local! {
    /// Whether a Ctrl-C came in the middle of a function that is called for somebody else.
    static INTERRUPTED: Cell<bool> = const { Cell::new(false) };
}

/// Calls a Python function, from whichever thread; not at the interpreter's exit, when nobody waits for it any more.
///
/// What it raises goes to `sys.unraisablehook`, but a Ctrl-C to [`raise_interrupt`].
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

/// Wakes a coroutine, as [`call_from_any_thread`]. What fails here, as at the end of this thread's stack or in a
/// Ctrl-C, is done by a thread of its own: a wake that went unheard would leave the coroutine waiting for ever.
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

/// Whether it is the Ctrl-C that a signal handler raises, which it does on one thread only.
fn is_interrupt(py: Python<'_>, error: &PyErr) -> bool {
    may_get_signals() && error.is_instance_of::<PyKeyboardInterrupt>(py)
}

/// Raises the Ctrl-C that came while functions were called for others, now that all of them were.
#[inline]
pub(crate) fn raise_interrupt() -> PyResult<()> {
    if INTERRUPTED.replace(false) {
        return Err(PyKeyboardInterrupt::new_err(()));
    }
    Ok(())
}

/// Hand what `thing` has raised to `sys.unraisablehook`, whose argument Python code cannot make.
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
        // Where it is gone already, the thread is at its end, and not inside the interpreter's.
        // On the heap: glibc runs a handler when the unwinding leaves the buffer's place on the stack, and one that
        // is not on the stack at once.
        #[expect(clippy::unnecessary_box_returns, reason = "see above")]
        static BUFFER: Box<UnsafeCell<CleanupBuffer>> = Box::new(UnsafeCell::new(CleanupBuffer {
            routine: None,
            arg: ptr::null_mut(),
            cancel_type: 0,
            previous: ptr::null_mut(),
        }));
    }

    /// While there is one, the thread is not unwound by force. They nest, as calls do.
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
                // SAFETY: registered by the outermost Watch of this thread, and by now the last registration again,
                // since whatever was called in between has returned.
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
    /// Elsewhere `pthread_exit` leaves the stack as it is.
    pub(crate) struct Watch;

    impl Watch {
        pub(crate) fn new() -> Self {
            Self
        }
    }
}
