//! A file that gets every run's events.

use super::exit::sleep_if_ended;
use super::table::runs;
use crate::{NdjsonFile, Outlet};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::io;
use std::path::{Path, PathBuf};

/// How many events wait for a file at most.
const CHANNEL: usize = 65_536;

/// Write the events of all runs that are opened from now on to a file, as newline-delimited JSON.
///
/// A thread of its own writes, without the GIL; nobody waits for the disk. Up to 65 536 events wait for it: what
/// comes beyond is dropped from the file, and counted in `stats()["sinks"]`, under the file's real path. When an event
/// would make the file larger than `max_bytes`, it is renamed with `.1` at its end, in place of an older one. Lifecycle
/// events are flushed. Nobody else is to write to either file, nor to move them: what one puts aside another would lose.
///
/// Thread-safe. Raises OSError if the file cannot be opened, ValueError if this process writes to that path already.
#[pyfunction]
#[pyo3(signature = (path, /, *, max_bytes=256 << 20), text_signature = "(path, /, *, max_bytes=268435456)")]
#[expect(clippy::needless_pass_by_value, reason = "PyO3 makes it for us")]
pub(super) fn log_to_file(py: Python<'_>, path: PathBuf, max_bytes: u64) -> PyResult<()> {
    sleep_if_ended(|| {
        let runs = runs(py);
        let opened = py.detach(|| {
            let file = NdjsonFile::open(&path, max_bytes)?;
            let name = match file.path().to_str() {
                Some(name) => name.to_owned(),
                // Two such files must not have one name.
                None => file
                    .path()
                    .as_os_str()
                    .as_encoded_bytes()
                    .escape_ascii()
                    .to_string(),
            };
            Outlet::start(&name, file, CHANNEL)
        });
        let outlet =
            opened.map_err(|error| os_error(py, &error, &path).unwrap_or_else(|error| error))?;
        py.detach(|| runs.add_sink(outlet).map_err(drop))
            .map_err(|()| {
                PyValueError::new_err(format!("events are written to {} already", path.display()))
            })
    })
}

/// As Python's own `open` has it: with the number, the words and the file.
fn os_error(py: Python<'_>, error: &io::Error, path: &Path) -> PyResult<PyErr> {
    let Some(number) = error.raw_os_error() else {
        return Ok(PyOSError::new_err(format!("{}: {error}", path.display())));
    };
    let words = py.import("os")?.call_method1("strerror", (number,))?;
    let arguments = (number, words.unbind(), path.as_os_str());
    Ok(PyErr::from_value(
        py.get_type::<PyOSError>().call1(arguments)?,
    ))
}

/// Adds what the sinks of all runs count to the dict of `stats()`.
pub(super) fn add_stats(py: Python<'_>, stats: &Bound<'_, PyDict>) -> PyResult<()> {
    let runs = runs(py);
    let outlets = py.detach(|| runs.sinks());
    let sinks = PyDict::new(py);
    for (name, counted) in outlets {
        let sink = PyDict::new(py);
        sink.set_item("written", counted.written)?;
        sink.set_item("dropped", counted.dropped)?;
        sink.set_item("failed", counted.failed)?;
        sink.set_item("errors", counted.errors)?;
        sinks.set_item(name, sink)?;
    }
    stats.set_item("sinks", sinks)
}
