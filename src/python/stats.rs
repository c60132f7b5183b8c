//! `stats()`: everything that this process counts.

use crate::python::runs::sink;
use crate::python::shared::counters::COUNTERS;
use crate::python::shared::registered;
use crate::python::shared::table;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Return what was delivered, dropped and cancelled since import, and what is registered now.
///
/// `emitted`: events handed to a callback. `dropped`: events that were not, by reason: `no_callback` (their run had none,
/// or one that is false), `route` (see :func:`configure`). `cancelled`: how often :class:`RunCancelled` was raised.
/// `callbacks`, `checkers`: live registrations, zero when every run has cleaned up. `runs`: how many are `live`, the
/// `oldest` of them (its `run_id`, and when it was `opened_at` in seconds since 1970; or None), how many `finished` ones
/// can still be read, the `finished_bytes` that are kept of ended runs, how many were `opened`, and the events and
/// annotations that came `late`, after the end of their run. `readers`: how many subscriptions are `open`, and the `lag`:
/// how many events the slowest of them has still to read. `sinks`: for each, by its name (of a file its real path), the
/// events that were `written` and `dropped`, how often it failed (`errors`) and with which text (`last_error`), and the
/// ended runs that it has not taken to their end (`waiting`), with the bytes that are held for them (`waiting_bytes`).
///
/// A new dict each time. Thread-safe. Takes the lock of each run's log for a moment, without the GIL.
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
