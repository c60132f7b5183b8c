//! Waiting without the GIL, with a working Ctrl-C; arguments and results that are times and numbers.

use super::arguments::shown;
use super::interpreter::may_get_signals;
use pyo3::conversion::FromPyObjectOwned;
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyInt;
use std::fmt::Display;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often the main thread looks for signals while it waits.
const SLICE: Duration = Duration::from_millis(50);

/// Calls `wait`, detached, with the longest time that it may take, and returns its result. Returns `None` if `timeout`
/// passes first.
///
/// Signal handlers run on Python's main thread only. So the main thread waits in slices, runs the handlers between two
/// slices, and raises what they raise; every other thread waits in one piece.
pub(crate) fn wait<T: Send>(
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

/// The duration that the argument `name` gives in seconds. None, and a number that no clock can hold, are no limit; a
/// negative number is zero. Raises ValueError for NaN, and TypeError for an object that is no number.
pub(crate) fn seconds(name: &str, value: Option<&Bound<'_, PyAny>>) -> PyResult<Option<Duration>> {
    let Some(value) = value.filter(|value| !value.is_none()) else {
        return Ok(None);
    };
    let wrong = || {
        format!(
            "{name} must be a number of seconds, or None, not {}",
            shown(value)
        )
    };
    match value.extract::<f64>() {
        Ok(seconds) if seconds.is_nan() => Err(PyValueError::new_err(wrong())),
        Ok(seconds) => Ok(Duration::try_from_secs_f64(seconds.max(0.0)).ok()),
        // An int that no float can hold.
        Err(error) if error.is_instance_of::<PyOverflowError>(value.py()) => {
            Ok(value.lt(0)?.then_some(Duration::ZERO))
        }
        Err(_) => Err(PyTypeError::new_err(wrong())),
    }
}

/// Seconds since 1970, as in `time.time()`, cut to whole milliseconds, as in events.
pub(crate) fn unix_time(time: Option<SystemTime>) -> Option<f64> {
    let since = time?.duration_since(UNIX_EPOCH).unwrap_or_default();
    let millis = Duration::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
    Some(millis.as_secs_f64())
}

/// The integer that the argument `name` gives, at least `least`. Raises TypeError if `value` is no int, and ValueError
/// if it is out of range.
pub(crate) fn number<'py, T>(name: &str, value: &Bound<'py, PyAny>, least: T) -> PyResult<T>
where
    T: FromPyObjectOwned<'py> + PartialOrd + Display + Copy,
{
    if !value.is_instance_of::<PyInt>() {
        return Err(PyTypeError::new_err(format!(
            "{name} must be an int, not {}",
            shown(value)
        )));
    }
    match value.extract::<T>() {
        Ok(number) if number >= least => Ok(number),
        _ => Err(PyValueError::new_err(format!(
            "{name} must be at least {least}, and what 64 bits can hold, not {}",
            shown(value)
        ))),
    }
}
