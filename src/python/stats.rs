//! `stats()`: everything that this process counts.

use crate::python::runs::sink;
use crate::python::shared::counters::COUNTERS;
use crate::python::shared::registered;
use crate::python::shared::table;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Return what was delivered, dropped and cancelled since import, and what is registered now.
///
/// - `emitted`: events given to a callback.
/// - `dropped`: events that reached no callback, by reason: `no_callback` (their run has none, or a false one), `route`
///   (see :func:`configure`).
/// - `cancelled`: how often :class:`RunCancelled` was raised.
/// - `callbacks`, `checkers`: registrations now; zero once every run has cleaned up.
/// - `runs`: the number of `live` runs; the `oldest` live run (its `run_id`, and `opened_at` in seconds since 1970) or
///   None; the number of `finished` runs that can still be read; the `finished_bytes` that ended runs hold; the number
///   of runs that were `opened`; the number of events and annotations that came `late`, after their run's end.
/// - `readers`: the number of `open` subscriptions, and the `lag`: how many events the slowest has still to read.
/// - `sinks`: by name (of a file its real path) the events `written` and `dropped`, the number of `errors` and the
///   `last_error`, and the ended runs that the sink has still to take (`waiting`, `waiting_bytes`).
///
/// Returns a new dict each time. Thread-safe. Takes the lock of each run's log for a moment, without the GIL.
#[pyfunction]
pub(crate) fn stats(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let counted = COUNTERS.stats();
    let (callbacks, checkers) = registered::len(py);
    let dropped = PyDict::new(py);
    dropped.set_item("no_callback", counted.no_callback)?;
    dropped.set_item("route", counted.route)?;
    let stats = PyDict::new(py);
    stats.set_item("emitted", counted.emitted)?;
    stats.set_item("dropped", dropped)?;
    stats.set_item("cancelled", counted.cancelled)?;
    stats.set_item("callbacks", callbacks)?;
    stats.set_item("checkers", checkers)?;
    table::add_stats(py, &stats)?;
    sink::add_stats(py, &stats)?;
    Ok(stats)
}
