//! Emitting an event: into a run's log, and to the callback that is registered for the run.

use super::append::append;
use super::ending::ending;
use crate::python::cpython::encode;
use crate::python::shared::event;
use crate::python::shared::registered::tell_registered;
use crate::{EncodedBody, EventKind, Run};
use pyo3::prelude::*;

/// Appends an event to the log, then hands it to the callback that is registered for the run. Returns the event's id,
/// or None if the run has ended.
pub(crate) fn emit<'py>(
    py: Python<'py>,
    run: &Run,
    kind: &EventKind,
    source: &Bound<'py, PyAny>,
    data: &Bound<'py, PyAny>,
) -> PyResult<Option<String>> {
    let (mut source_json, mut data_json) = (Vec::with_capacity(160), Vec::with_capacity(160));
    encode::encode(&mut source_json, source)?;
    encode::encode(&mut data_json, data)?;
    let body = EncodedBody::from_json(kind.clone(), &source_json, &data_json);
    let appended = if kind.is_terminal() {
        ending(py, run, || append(py, run, &body))?
    } else {
        append(py, run, &body)
    };
    let Some(id) = appended? else {
        return Ok(None);
    };
    tell_registered(py, run.id(), || {
        event::of_words(source, kind.category(), kind.action(), data)
    })?;
    Ok(Some(id.to_string()))
}
