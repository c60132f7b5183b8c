//! A cancellation token, as Python holds it: the part that `llm_callback.cancel.CancelToken` inherits.

use crate::cancel::NoTimer;
use crate::python::cpython::arguments::shown;
use crate::python::cpython::attached::AttachedMutex;
use crate::python::cpython::encode;
use crate::python::cpython::errors::thread_refused;
use crate::python::cpython::exit::{
    call_from_any_thread, raise_interrupt, sleep_if_ended, wake_from_any_thread,
};
use crate::python::cpython::process::Owned;
use crate::python::cpython::wait::{seconds, wait};
use crate::{CancelKind, CancelToken, OpenError, Registration};
use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyString, PyTuple, PyType};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

/// `llm_callback.cancel.CancelToken`, once that is imported.
static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();

/// What :class:`CancelToken` does in Rust.
#[pyclass(
    name = "_Token",
    module = "llm_callback._core",
    subclass,
    weakref,
    frozen
)]
pub(crate) struct PyToken(Owned<CancelToken>);

/// A core token on its way into an object of the Python class.
#[pyclass(name = "_Handle", module = "llm_callback._core", frozen)]
struct Handle(CancelToken);

/// Set the Python class of tokens.
#[pyfunction]
#[pyo3(name = "_set_token_class")]
pub(crate) fn set_token_class(token_class: &Bound<'_, PyType>) {
    // Only `llm_callback.cancel` calls this, once.
    let _ = CLASS.set(token_class.py(), token_class.clone().unbind());
}

/// Makes the classes, which would otherwise be made at first use. To be called at import.
pub(crate) fn prepare(py: Python<'_>) {
    py.get_type::<Handle>();
    py.get_type::<PyToken>();
    py.get_type::<PyRegistration>();
}

impl PyToken {
    /// An object of the Python class for a token of the core.
    pub(crate) fn wrap(py: Python<'_>, token: CancelToken) -> PyResult<Py<Self>> {
        let class = CLASS.get(py).ok_or_else(|| {
            PyRuntimeError::new_err("import llm_callback, not llm_callback._core")
        })?;
        let object = class.bind(py).call1((Handle(token),))?;
        Ok(object.cast_into::<Self>()?.unbind())
    }

    fn token(&self) -> PyResult<&CancelToken> {
        self.0.get_or_raise("token")
    }
}

#[pymethods]
impl PyToken {
    #[new]
    #[pyo3(signature = (deadline=None), text_signature = "(deadline=None)")]
    fn __new__(py: Python<'_>, deadline: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        if let Some(handle) = deadline.and_then(|given| given.cast::<Handle>().ok()) {
            return Ok(Self(Owned::new(handle.get().0.clone())));
        }
        let token = match in_seconds(deadline)? {
            Some(at) => py.detach(|| CancelToken::try_with_deadline(at)),
            None => Ok(CancelToken::new()),
        };
        Ok(Self(Owned::new(
            token.map_err(|error| no_timer(py, error))?,
        )))
    }

    /// In place of `threading.Event.__init__`.
    #[pyo3(signature = (*_args, **_kwargs))]
    #[expect(clippy::unused_self, reason = "__init__ is a method")]
    fn __init__(&self, _args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) {}

    /// Return whether the token is cancelled. Once True, always True. Does not block.
    fn is_set(&self) -> bool {
        self.0.anyway().is_cancelled()
    }

    /// As :meth:`is_set`, which `threading.Event` has under this name too.
    #[pyo3(name = "isSet")]
    fn is_set_by_its_old_name(&self) -> bool {
        self.is_set()
    }

    /// As :meth:`cancel` without a reason: for code that expects a `threading.Event`.
    fn set(&self, py: Python<'_>) -> PyResult<()> {
        self.cancel(py, None, CancelKind::User.as_str()).map(drop)
    }

    /// Raise RuntimeError: a cancel cannot be taken back.
    #[expect(clippy::unused_self, reason = "a method of threading.Event")]
    fn clear(&self) -> PyResult<()> {
        Err(PyRuntimeError::new_err(
            "a cancel cannot be taken back: make another token",
        ))
    }

    /// Block until the token is cancelled, at most `timeout` seconds. Returns whether it is cancelled. Blocks without
    /// the GIL; Ctrl-C works.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<bool> {
        sleep_if_ended(|| {
            if self.is_set() {
                return Ok(true);
            }
            let token = self.token()?;
            let timeout = seconds("timeout", timeout)?;
            let cancelled = wait(py, timeout, |slice| token.wait(slice).then_some(()))?;
            Ok(cancelled.is_some())
        })
    }

    /// Cancel this token and all tokens below it. Returns True if this call was the first to cancel this token; the
    /// first reason stays.
    ///
    /// `kind` is `user`, `deadline`, `parent`, `shutdown` or `disconnect`. First all tokens are cancelled, and the
    /// threads that wait for one are woken. Then the `on_cancel` callbacks are called, on this thread, with no lock
    /// held. An exception of a callback goes to `sys.unraisablehook`, and the other callbacks are called; a Ctrl-C is
    /// raised after them. Thread-safe, re-entrant.
    #[pyo3(signature = (reason=None, *, kind="user"), text_signature = "($self, reason='', *, kind='user')")]
    fn cancel(
        &self,
        py: Python<'_>,
        reason: Option<&Bound<'_, PyString>>,
        kind: &str,
    ) -> PyResult<bool> {
        sleep_if_ended(|| {
            let token = self.token()?;
            let empty = PyString::new(py, "");
            let (kind, reason) = kind_and_reason(kind, reason.unwrap_or(&empty))?;
            let was_first = py.detach(|| token.cancel(kind, reason));
            raise_interrupt().map(|()| was_first)
        })
    }

    /// Call `callback()` once, when the token is cancelled; now, on this thread, if it is cancelled already.
    ///
    /// The callback is called with no lock held on the thread that cancels. After a deadline that is a thread which
    /// calls the callbacks of all deadlines, one after another; if a callback takes longer than a second, another
    /// thread calls those of the other deadlines. The callback may do anything: ask, cancel, register, subscribe,
    /// raise.
    ///
    /// Returns a :class:`CancelRegistration`. Its `stop` takes the callback back; dropping the registration does not.
    /// The token keeps the callback until it is called or stopped, or the run has ended.
    fn on_cancel(&self, py: Python<'_>, callback: Py<PyAny>) -> PyResult<PyRegistration> {
        sleep_if_ended(|| {
            let token = self.token()?;
            if !callback.bind(py).is_callable() {
                return Err(PyTypeError::new_err(format!(
                    "callback must be callable, not {}",
                    shown(callback.bind(py))
                )));
            }
            let call = move |_: &_| call_from_any_thread(&callback);
            let registration = py.detach(|| token.on_cancel(call));
            raise_interrupt()?;
            Ok(PyRegistration::new(registration))
        })
    }

    /// As `on_cancel`, for a waiting coroutine: `wake` is also called if the token drops it uncalled, for example at
    /// the end of the token's run.
    fn _wake_on_cancel(&self, py: Python<'_>, wake: Py<PyAny>) -> PyResult<PyRegistration> {
        sleep_if_ended(|| {
            let token = self.token()?;
            let wake = WakeOnDrop(Some(wake));
            let registration = py.detach(|| token.on_cancel(move |_| drop(wake)));
            Ok(PyRegistration::new(registration))
        })
    }

    /// Return a token below this one: it is cancelled when this token is, and at its own `deadline`, in seconds from
    /// now.
    #[pyo3(signature = (deadline=None))]
    fn child(&self, py: Python<'_>, deadline: Option<&Bound<'_, PyAny>>) -> PyResult<Py<Self>> {
        sleep_if_ended(|| {
            let token = self.token()?;
            let deadline = in_seconds(deadline)?;
            let child = py.detach(|| match deadline {
                Some(at) => token.try_child_with_deadline(at),
                None => Ok(token.child()),
            });
            Self::wrap(py, child.map_err(|error| no_timer(py, error))?)
        })
    }

    /// Return a token that no cancel and no deadline of this token reaches: for work that must be done after a cancel.
    fn shield(&self, py: Python<'_>) -> PyResult<Py<Self>> {
        sleep_if_ended(|| Self::wrap(py, self.token()?.shield()))
    }

    /// Who cancelled the token: `user`, `deadline`, `parent`, `shutdown` or `disconnect`; None if it is not cancelled.
    #[getter]
    fn kind(&self, py: Python<'_>) -> PyResult<Option<&'static str>> {
        let token = self.token()?;
        Ok(py
            .detach(|| token.reason())
            .map(|reason| reason.kind.as_str()))
    }

    /// The message of the cancel, which may be empty; None if the token is not cancelled.
    #[getter]
    fn reason(&self, py: Python<'_>) -> PyResult<Option<String>> {
        let token = self.token()?;
        Ok(py
            .detach(|| token.reason())
            .map(|reason| reason.message.to_string()))
    }

    /// How many seconds are left until the token's deadline, at least 0; None without a deadline.
    #[getter]
    fn remaining(&self) -> Option<f64> {
        let deadline = self.0.anyway().deadline()?;
        let left: Duration = deadline.saturating_duration_since(Instant::now());
        Some(left.as_secs_f64())
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        let other = other.cast::<Self>();
        other.is_ok_and(|other| self.0.anyway() == other.get().0.anyway())
    }

    fn __hash__(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.0.anyway().hash(&mut hasher);
        hasher.finish()
    }

    /// `threading.Event` has one; nothing here needs it.
    #[expect(clippy::unused_self, reason = "a method of threading.Event")]
    fn _at_fork_reinit(&self) {}

    fn __repr__(&self, py: Python<'_>) -> String {
        let state = match (self.is_set(), self.0.get()) {
            (false, _) => "not cancelled".to_owned(),
            (true, None) => "cancelled".to_owned(),
            (true, Some(token)) => {
                let reason = py.detach(|| token.reason());
                reason.map_or_else(String::new, |reason| reason.to_string())
            }
        };
        format!("<llm_callback.CancelToken: {state}>")
    }
}

fn parse_kind(kind: &str) -> PyResult<CancelKind> {
    kind.parse().map_err(|_| {
        PyValueError::new_err(format!(
            "kind must be 'user', 'deadline', 'parent', 'shutdown' or 'disconnect', not {kind:?}"
        ))
    })
}

/// The kind and the reason of a cancellation, from the arguments of a Python call. Raises ValueError for an unknown
/// kind.
pub(crate) fn kind_and_reason(
    kind: &str,
    reason: &Bound<'_, PyString>,
) -> PyResult<(CancelKind, String)> {
    Ok((parse_kind(kind)?, encode::lossy(reason)?))
}

/// The moment that is `deadline` seconds from now; None without a deadline, and if no clock can hold that moment.
fn in_seconds(deadline: Option<&Bound<'_, PyAny>>) -> PyResult<Option<Instant>> {
    Ok(seconds("deadline", deadline)?.and_then(|after| Instant::now().checked_add(after)))
}

/// `ThreadRefused`: the system refuses the thread that watches deadlines.
fn no_timer(py: Python<'_>, _: NoTimer) -> PyErr {
    thread_refused(py, OpenError::NoTimer.to_string())
}

/// Calls a function when it is dropped.
struct WakeOnDrop(Option<Py<PyAny>>);

impl Drop for WakeOnDrop {
    fn drop(&mut self) {
        if let Some(wake) = self.0.take() {
            wake_from_any_thread(wake);
        }
    }
}

/// What :meth:`CancelToken.on_cancel` returns. Dropping it does not stop the callback.
#[pyclass(name = "CancelRegistration", module = "llm_callback", frozen)]
pub(crate) struct PyRegistration(Owned<AttachedMutex<Option<Registration>>>);

impl PyRegistration {
    fn new(registration: Registration) -> Self {
        Self(Owned::new(AttachedMutex::new(Some(registration))))
    }
}

#[pymethods]
impl PyRegistration {
    /// Take the callback back. Returns True if this call did so: then the callback was not called, and never will be.
    /// Thread-safe; does not wait for a call that has begun.
    fn stop(&self, py: Python<'_>) -> PyResult<bool> {
        sleep_if_ended(|| {
            let registration = self.0.get_or_raise("registration")?.lock(py).take();
            Ok(registration.is_some_and(|registration| py.detach(|| registration.stop())))
        })
    }
}
