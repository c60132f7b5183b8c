//! The id of an open run in Python: an int or a str. A UUID stands for its text.
//!
//! Events contain the id, so it must be one that JSON can hold. The legacy functions take any hashable: see
//! `run_key.rs`.

use super::run_key::RunKey;
use crate::RunId;
use crate::python::cpython::arguments::shown;
use crate::python::cpython::loaded::is_instance_of_loaded;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyInt, PyString};

/// The run id that an int, a str or a UUID gives; a UUID stands for its text. Raises TypeError for any other object,
/// and ValueError for an int or a str that cannot be a run id.
pub(crate) fn id_from_python(object: &Bound<'_, PyAny>) -> PyResult<RunId> {
    let is_text = object.is_instance_of::<PyString>();
    if is_text || (object.is_instance_of::<PyInt>() && !object.is_instance_of::<PyBool>()) {
        if let RunKey::Core(id) = RunKey::new(object)? {
            return Ok(id);
        }
        return Err(PyValueError::new_err(format!(
            "a run id is an int of at most 60 bits, or a str that UTF-8 can hold, not {}",
            shown(object)
        )));
    }
    if let Some(id) = id_of_uuid(object)? {
        return Ok(id);
    }
    Err(PyTypeError::new_err(format!(
        "a run id is an int, a str or a UUID, not {}",
        shown(object)
    )))
}

/// The id of the open run that `key` means. None if no open run can have this id.
pub(crate) fn id_of_key(key: &RunKey<'_>) -> PyResult<Option<RunId>> {
    Ok(match key {
        RunKey::Core(id) => Some(id.clone()),
        RunKey::Other(object) => id_of_uuid(object)?,
    })
}

pub(crate) fn id_to_python<'py>(py: Python<'py>, id: &RunId) -> PyResult<Bound<'py, PyAny>> {
    Ok(match id {
        RunId::Int(id) => id.into_pyobject(py)?.into_any(),
        RunId::Str(id) => PyString::new(py, id).into_any(),
    })
}

/// Whether both objects are ids of the same run, as a UUID and its text are.
pub(crate) fn are_one_run(one: &Bound<'_, PyAny>, other: &Bound<'_, PyAny>) -> bool {
    matches!((id_from_python(one), id_from_python(other)), (Ok(one), Ok(other)) if one == other)
}

/// A new run id: the text of a random UUID (RFC 9562, version 4). Does not import the module `uuid`: after a fork
/// during an import by another thread, the child would wait for that import for ever.
pub(crate) fn minted(py: Python<'_>) -> PyResult<RunId> {
    let random = py.import("os")?.call_method1("urandom", (16,))?;
    let mut bytes: [u8; 16] = random.extract()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = format!("{:032x}", u128::from_be_bytes(bytes));
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &hex[part]);
    Ok(RunId::from(parts.join("-")))
}

/// The text of a UUID; None if `object` is no UUID.
fn id_of_uuid(object: &Bound<'_, PyAny>) -> PyResult<Option<RunId>> {
    if !is_instance_of_loaded(object, "uuid", "UUID")? {
        return Ok(None);
    }
    Ok(Some(RunId::from(object.str()?.to_str()?)))
}
