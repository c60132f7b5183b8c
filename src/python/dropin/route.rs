//! Which run an event goes to if the handler and the calling context name different runs.

use super::current::current;
use crate::python::cpython::arguments::shown;
use crate::python::shared::run_id::are_one_run;
use crate::sync::{AtomicU8, Ordering};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyString;

const VARIABLE: &str = "LLM_CALLBACK_ROUTE";

/// Relaxed: the setting stands alone, it publishes nothing else.
static ROUTE: AtomicU8 = AtomicU8::new(Route::Handler as u8);

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Route {
    /// The handler's run id, as the original does.
    Handler,
    /// The calling context's run, if one is known.
    Context,
    /// Neither, if the two differ.
    Strict,
}

impl Route {
    fn current() -> Self {
        match ROUTE.load(Ordering::Relaxed) {
            1 => Self::Context,
            2 => Self::Strict,
            _ => Self::Handler,
        }
    }

    fn parse(text: &str, origin: &str) -> PyResult<Self> {
        match text {
            "handler" => Ok(Self::Handler),
            "context" => Ok(Self::Context),
            "strict" => Ok(Self::Strict),
            _ => Err(PyValueError::new_err(format!(
                "{origin} must be 'handler', 'context' or 'strict', not {text:?}"
            ))),
        }
    }
}

/// The run that an event, a lookup or a check goes to.
pub(crate) enum Target<'py> {
    /// The run that the handler or the caller names.
    Given,
    /// The run of the calling context.
    Context(Bound<'py, PyAny>),
    /// The calling context names this other run, and `strict` does not choose between the two.
    Disagreement(Bound<'py, PyAny>),
}

/// Decides between `run_id`, which may be None, and the run of the calling context.
#[inline]
pub(crate) fn resolve<'py>(run_id: &Bound<'py, PyAny>) -> PyResult<Target<'py>> {
    let route = Route::current();
    if route == Route::Handler {
        return Ok(Target::Given);
    }
    let Some(current) = current(run_id.py())? else {
        return Ok(Target::Given);
    };
    let agrees = || {
        PyResult::Ok(
            run_id.is_none()
                || run_id.is(&current)
                || run_id.eq(&current)?
                || are_one_run(run_id, &current),
        )
    };
    if route == Route::Strict && !agrees()? {
        return Ok(Target::Disagreement(current));
    }
    Ok(Target::Context(current))
}

/// The route that an argument names.
pub(crate) fn parse(route: &Bound<'_, PyAny>) -> PyResult<Route> {
    let Ok(text) = route.cast::<PyString>() else {
        return Err(PyTypeError::new_err(format!(
            "route must be 'handler', 'context' or 'strict', not {}",
            shown(route)
        )));
    };
    Route::parse(&text.to_string_lossy(), "route")
}

/// Sets the route of this process.
pub(crate) fn set(route: Route) {
    ROUTE.store(route as u8, Ordering::Relaxed);
}

/// Sets the route from the environment variable, if that is set and not empty. Raises ValueError for an unknown route.
pub(crate) fn read_environment() -> PyResult<()> {
    if let Some(text) = std::env::var_os(VARIABLE)
        && !text.is_empty()
    {
        let route = Route::parse(&text.to_string_lossy(), VARIABLE)?;
        ROUTE.store(route as u8, Ordering::Relaxed);
    }
    Ok(())
}
