//! A file that gets every run's events.

use super::sink::{PySinkHandle, added, hold};
use crate::python::cpython::arguments::Arg;
use crate::python::cpython::exit::sleep_if_ended;
use crate::{NdjsonFile, SinkHandle};
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use std::io;
use std::path::{Path, PathBuf};

/// Write the events of all runs that are opened from now on to a file, as newline-delimited JSON.
///
/// A separate thread writes the file, without the GIL: no other thread waits for the disk. Events that the disk has not
/// taken wait in the runs' logs. If the disk is full or hangs, the events are tried again; if a log evicts events
/// meanwhile, a `stream.gap` line says so. The logs of ended runs are held for the file, at most `hold_bytes` of events
/// and for `hold_seconds` (None: for any time). Beyond that only their lifecycle events are held, in 16 MiB more, and
/// the others count as dropped in `stats()["sinks"]`, under the file's real path.
///
/// One system call writes several whole lines: lines that another process appends come between two such calls. If an
/// event would make the file larger than `max_bytes`, the file is renamed with `.1` at its end, in place of an older
/// one. If the renaming fails, the file goes on growing, and the error is counted. No other program may move either
/// file. With `fsync` each flush waits for the disk: after lifecycle events, and once a second while events come.
///
/// Returns the :class:`SinkHandle`, which flushes and closes the file; it need not be kept. In the child of a fork
/// nothing is written: call this function there, for example in a hook of the server's workers. Thread-safe. Raises
/// OSError if the file cannot be opened or the system refuses the thread, and ValueError if this process writes to that
/// path already.
#[pyfunction]
#[pyo3(
    signature = (path, /, *, max_bytes=256 << 20, fsync=false, hold_bytes=Arg::Missing, hold_seconds=Arg::Missing),
    text_signature = "(path, /, *, max_bytes=268435456, fsync=False, hold_bytes=67108864, hold_seconds=300.0)"
)]
#[expect(clippy::needless_pass_by_value, reason = "PyO3 makes it for us")]
pub(crate) fn log_to_file<'py>(
    py: Python<'py>,
    path: PathBuf,
    max_bytes: u64,
    fsync: bool,
    hold_bytes: Arg<'_, 'py>,
    hold_seconds: Arg<'_, 'py>,
) -> PyResult<Bound<'py, PySinkHandle>> {
    sleep_if_ended(|| {
        let hold = hold(hold_bytes, hold_seconds)?;
        let opened = py.detach(|| {
            let file = NdjsonFile::open(&path, max_bytes)?;
            let name = match file.path().to_str() {
                Some(name) => name.to_owned(),
                // The name of a path that is no UTF-8: two such files must not get the same name.
                None => file
                    .path()
                    .as_os_str()
                    .as_encoded_bytes()
                    .escape_ascii()
                    .to_string(),
            };
            SinkHandle::start(&name, if fsync { file.synced() } else { file }, hold)
        });
        let handle =
            opened.map_err(|error| os_error(py, &error, &path).unwrap_or_else(|error| error))?;
        added(py, handle, || {
            format!("events are written to {} already", path.display())
        })
    })
}

/// An OSError like that of Python's `open`: with the number, the message and the path.
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
