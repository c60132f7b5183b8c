//! Appending an event to a run's log, on a thread that may have the GIL.

use crate::python::cpython::exit::raise_interrupt;
use crate::python::cpython::wait::wait;
use crate::{EncodedBody, EventId, Run, TryAppendError, Wait};
use pyo3::prelude::*;
use std::time::Instant;

/// Appends an event to the run's log. Returns the event's id, or None if the run has ended. Waits, if it must, without
/// the GIL.
///
/// Raises what a signal handler raises while this thread waits for a reader; then the event is not in the log. A Ctrl-C
/// that comes while readers are woken is raised afterwards; then the event is in the log.
#[inline]
pub(crate) fn append(py: Python<'_>, run: &Run, body: &EncodedBody) -> PyResult<Option<EventId>> {
    let id = match run.try_emit(body) {
        Err(TryAppendError::WouldBlock) => append_waiting(py, run, body)?,
        appended => appended.ok(),
    };
    raise_interrupt().map(|()| id)
}

#[cold]
fn append_waiting(py: Python<'_>, run: &Run, body: &EncodedBody) -> PyResult<Option<EventId>> {
    let since = Instant::now();
    let emitted = wait(py, None, |slice| {
        let end = slice.and_then(|slice| Instant::now().checked_add(slice));
        let wait = end.map_or(Wait::Patiently, |end| Wait::Until { since, end });
        match run.emit_within(body, wait) {
            Err(TryAppendError::WouldBlock) => None,
            appended => Some(appended.ok()),
        }
    })?;
    Ok(emitted.flatten())
}
