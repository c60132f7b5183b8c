//! `configure`: the settings of the whole process.

use crate::python::cpython::arguments::Arg;
use crate::python::cpython::exit::sleep_if_ended;
use crate::python::cpython::wait::{number, seconds};
use crate::python::dropin::route;
use crate::python::shared::table;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::time::Duration;

/// Change the settings of this process. A setting that is not given stays as it is; the signature shows the defaults.
///
/// `route` says to which run an event goes if a handler's run id and the current run of the calling context differ.
/// `"handler"`: to the run id that the handler was given, as in the original module. `"context"`: to the current run,
/// if there is one; this repairs a host whose run id is a process-wide variable. `"strict"`: to neither; the event is
/// dropped and counted in `stats()["dropped"]["route"]`. The environment variable `LLM_CALLBACK_ROUTE` sets the route
/// at import.
///
/// `log_events` and `log_bytes` bound the log of each run that is opened from now on: the oldest events make room for
/// new ones, and a reader that has not read them is told. A finished run can be found and read for `keep_seconds`, as
/// one of the latest `keep_runs`. All finished runs together, and the events that readers of forgotten runs have still
/// to read, hold at most `keep_bytes` of encoded events. `max_live` is the number of runs that may be live at once,
/// None for any number; beyond it :func:`open_run` raises :class:`TooManyRuns`.
///
/// A child of a fork keeps the settings. Thread-safe; does not block. Raises TypeError or ValueError for invalid
/// arguments; then nothing is changed.
#[pyfunction]
#[pyo3(
    signature = (
        *, route=Arg::Missing, log_events=Arg::Missing, log_bytes=Arg::Missing, keep_seconds=Arg::Missing,
        keep_runs=Arg::Missing, keep_bytes=Arg::Missing, max_live=Arg::Missing
    ),
    text_signature = "(*, route='handler', log_events=10000, log_bytes=16777216, keep_seconds=300.0, keep_runs=1000, keep_bytes=268435456, max_live=None)"
)]
#[expect(
    clippy::too_many_arguments,
    reason = "each is a keyword of its own in Python"
)]
pub(crate) fn configure<'py>(
    py: Python<'py>,
    route: Arg<'_, 'py>,
    log_events: Arg<'_, 'py>,
    log_bytes: Arg<'_, 'py>,
    keep_seconds: Arg<'_, 'py>,
    keep_runs: Arg<'_, 'py>,
    keep_bytes: Arg<'_, 'py>,
    max_live: Arg<'_, 'py>,
) -> PyResult<()> {
    sleep_if_ended(|| {
        let route = match route {
            Arg::Given(route) => Some(route::parse(&route)?),
            Arg::Missing => None,
        };
        let log_events = given(log_events, |events| number("log_events", events, 1))?;
        let log_bytes = given(log_bytes, |bytes| number("log_bytes", bytes, 1))?;
        let keep_seconds = given(keep_seconds, |time| {
            if time.is_none() {
                return Err(PyValueError::new_err(
                    "keep_seconds must be a number of seconds, not None: float('inf') keeps runs until another bound is reached",
                ));
            }
            // A time beyond the clock's range is no limit.
            Ok(seconds("keep_seconds", Some(time))?.unwrap_or(Duration::MAX))
        })?;
        let keep_runs = given(keep_runs, |runs| number("keep_runs", runs, 0))?;
        let keep_bytes = given(keep_bytes, |bytes| number("keep_bytes", bytes, 0))?;
        let max_live = given(max_live, |runs| {
            let is_bounded = !runs.is_none();
            is_bounded.then(|| number("max_live", runs, 1)).transpose()
        })?;
        // All arguments are valid.
        if let Some(route) = route {
            route::set(route);
        }
        table::configure(py, |options| {
            replace(&mut options.limits.events, log_events);
            replace(&mut options.limits.bytes, log_bytes);
            replace(&mut options.grace, keep_seconds);
            replace(&mut options.finished, keep_runs);
            replace(&mut options.finished_bytes, keep_bytes);
            replace(&mut options.max_live, max_live);
        });
        Ok(())
    })
}

/// The value of an argument, if it is given.
fn given<'py, T>(
    argument: Arg<'_, 'py>,
    read: impl FnOnce(&Bound<'py, PyAny>) -> PyResult<T>,
) -> PyResult<Option<T>> {
    match argument {
        Arg::Given(value) => read(&value).map(Some),
        Arg::Missing => Ok(None),
    }
}

fn replace<T: Copy>(setting: &mut T, value: Option<T>) {
    *setting = value.unwrap_or(*setting);
}
