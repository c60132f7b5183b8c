//! Waiting without the GIL, so that Ctrl-C still works.

use super::interpreter::may_get_signals;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use std::time::{Duration, Instant};

/// How often the main thread looks for signals while it waits.
const SLICE: Duration = Duration::from_millis(50);

/// Calls `wait`, detached, with how long it may take; until it returns something, or `timeout` is over, which is
/// `None`.
///
/// Signals reach Python's main thread only, so that this one waits in slices. Raises what a signal handler raises.
pub(super) fn wait<T: Send>(
    py: Python<'_>,
    timeout: Option<Duration>,
    mut wait: impl FnMut(Option<Duration>) -> Option<T> + Send,
) -> PyResult<Option<T>> {
    if !may_get_signals() {
        return Ok(py.detach(|| wait(timeout)));
    }
    let end = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    loop {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        let slice = left.map_or(SLICE, |left| left.min(SLICE));
        if let Some(done) = py.detach(|| wait(Some(slice))) {
            return Ok(Some(done));
        }
        py.check_signals()?;
        if left == Some(slice) {
            return Ok(None);
        }
    }
}

/// A number of seconds; None is no limit. What is below zero is zero, and what no clock can hold is no limit.
pub(super) fn seconds(name: &str, value: Option<&Bound<'_, PyAny>>) -> PyResult<Option<Duration>> {
    let Some(value) = value.filter(|value| !value.is_none()) else {
        return Ok(None);
    };
    let wrong = |what: &str| format!("{name} must be {what}, not {value:?}");
    let Ok(seconds) = value.extract::<f64>() else {
        return Err(PyTypeError::new_err(wrong("a number of seconds, or None")));
    };
    if seconds.is_nan() {
        return Err(PyValueError::new_err(wrong("a number of seconds, or None")));
    }
    Ok(Duration::try_from_secs_f64(seconds.max(0.0)).ok())
}
