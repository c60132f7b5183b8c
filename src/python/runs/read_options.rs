//! The arguments that say where a reader begins, and what happens to a slow one.

use crate::python::cpython::arguments::shown;
use crate::python::cpython::wait::seconds;
use crate::{EventId, Overflow, Start};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyInt, PyString};
use std::time::Duration;

/// How long an emitting thread waits for a reader with `overflow="block"`, if `patience` is not given.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where a reader begins, from the argument `after`. Raises TypeError or ValueError for an invalid one.
pub(crate) fn start(after: Option<&Bound<'_, PyAny>>) -> PyResult<Start> {
    let Some(after) = after.filter(|after| !after.is_none()) else {
        return Ok(Start::Live);
    };
    let wrong = || {
        format!(
            "after must be None, 'start', an event's id '<ms>-<sequence>' or a sequence number, not {}",
            shown(after)
        )
    };
    if let Ok(text) = after.cast::<PyString>() {
        let text = text.to_string_lossy();
        if text == "start" {
            return Ok(Start::Beginning);
        }
        return match text.parse::<EventId>() {
            Ok(id) => Ok(Start::AfterId(id)),
            Err(_) => Err(PyValueError::new_err(wrong())),
        };
    }
    if !after.is_instance_of::<PyInt>() || after.is_instance_of::<PyBool>() {
        return Err(PyTypeError::new_err(wrong()));
    }
    match after.extract::<u64>() {
        Ok(sequence) => Ok(Start::AfterSequence(sequence)),
        Err(_) => Err(PyValueError::new_err(wrong())),
    }
}

/// What happens to a slow reader, from the arguments `overflow` and `patience`. Raises TypeError or ValueError for
/// invalid ones.
pub(crate) fn overflow(overflow: &str, patience: Option<&Bound<'_, PyAny>>) -> PyResult<Overflow> {
    if overflow != "block" && patience.is_some_and(|patience| !patience.is_none()) {
        return Err(PyValueError::new_err(
            "patience is how long producers wait with overflow='block': others do not wait",
        ));
    }
    match overflow {
        "disconnect" => Ok(Overflow::Disconnect),
        "gap" => Ok(Overflow::Gap),
        "coalesce" => Ok(Overflow::Coalesce),
        "block" => Ok(Overflow::Block(match patience {
            // A time that no clock can hold is no limit.
            Some(patience) => seconds("patience", Some(patience))?.unwrap_or(Duration::MAX),
            None => PATIENCE,
        })),
        _ => Err(PyValueError::new_err(format!(
            "overflow must be 'disconnect', 'gap', 'coalesce' or 'block', not {overflow:?}"
        ))),
    }
}
