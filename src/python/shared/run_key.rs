//! A Python object as a run id: any hashable object. Equal objects are one id, as in a dict.
//!
//! There is one exception: an id of a custom class that is neither a number nor a str never matches an int or str id,
//! even if `==` says so.

use crate::RunId;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyComplex, PyFloat, PyInt, PyString};

/// Integers below this hash to themselves in Python, and so does every number equal to one of them.
///
/// See "Hashing of numeric types" in the Python library reference: the modulus is 2**61 - 1 on 64-bit machines.
const HASH_MODULUS: u64 = (1 << 61) - 1;

/// A run id as the registry looks it up.
pub(crate) enum RunKey<'py> {
    /// Equal to an int or a str, and therefore looked up as that int or str.
    Core(RunId),
    /// Any other hashable object, looked up in a Python dict.
    Other(Bound<'py, PyAny>),
}

impl<'py> RunKey<'py> {
    /// The key that stands for `object`. Calls `__hash__`, and also `__eq__` of numbers and of str subclasses. Raises
    /// TypeError for an unhashable object.
    pub(crate) fn new(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        if let Ok(int) = object.cast_exact::<PyInt>() {
            return Ok(int
                .extract()
                .ok()
                .and_then(Self::int)
                .unwrap_or_else(|| Self::other(object)));
        }
        if let Ok(text) = object.cast_exact::<PyString>() {
            // A str with lone surrogates has no UTF-8.
            return Ok(text
                .to_str()
                .map_or_else(|_| Self::other(object), |text| Self::Core(text.into())));
        }
        Self::of_other_type(object)
    }

    fn int(value: i64) -> Option<Self> {
        (value.unsigned_abs() < HASH_MODULUS).then_some(Self::Core(RunId::Int(value)))
    }

    fn other(object: &Bound<'py, PyAny>) -> Self {
        Self::Other(object.clone())
    }

    fn of_other_type(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        if let Ok(flag) = object.cast::<PyBool>() {
            return Ok(Self::Core(RunId::Int(flag.is_true().into())));
        }
        let hash = object.hash()?;
        if let Ok(text) = object.cast::<PyString>() {
            // A subclass may override `__hash__` or `__eq__`, as a str enum does.
            let plain = py_str(text)?;
            if plain.hash()? == hash && object.eq(&plain)? {
                return Self::new(plain.as_any());
            }
        } else if is_number(object)? {
            // -1 is the one integer that does not hash to itself: it hashes to -2.
            let candidates = [i64::try_from(hash).ok(), (hash == -2).then_some(-1)];
            for candidate in candidates.into_iter().flatten() {
                if let Some(key) = Self::int(candidate)
                    && object.eq(candidate)?
                {
                    return Ok(key);
                }
            }
        }
        Ok(Self::other(object))
    }
}

/// The text of a str subclass, as an exact str.
fn py_str<'py>(text: &Bound<'py, PyString>) -> PyResult<Bound<'py, PyString>> {
    let py = text.py();
    Ok(py
        .get_type::<PyString>()
        .call_method1("__str__", (text,))?
        .cast_into()?)
}

/// Whether `object` may equal an int. Only then is its `__eq__` called.
fn is_number(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    if object.is_instance_of::<PyInt>()
        || object.is_instance_of::<PyFloat>()
        || object.is_instance_of::<PyComplex>()
    {
        return Ok(true);
    }
    let class = object.get_type();
    Ok(class.hasattr("__int__")? || class.hasattr("__complex__")?)
}
