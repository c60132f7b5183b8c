//! A Python value as JSON text, as `json.dumps` writes it; a value that JSON has no form for becomes `str(value)`.

use crate::wire::json;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{
    PyBool, PyByteArray, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple,
    string::PyStringData,
};
use serde_json::value::RawValue;
use std::io::Write;

/// How deep lists and dicts may be nested. `serde_json`, with which readers in Rust parse them, allows some more: 128.
const DEEPEST: usize = 100;

/// Appends the JSON of `value`.
///
/// Lone surrogates in a `str` are escaped. NaN and the infinities become texts, `bytes` a text that says how many there
/// are, and any other object `str(value)`. A key that is no `str` becomes a text.
///
/// # Errors
///
/// `ValueError` if the value is nested too deep or contains itself, and the exceptions of `str(value)`.
pub(crate) fn encode(out: &mut Vec<u8>, value: &Bound<'_, PyAny>) -> PyResult<()> {
    write(out, value, 0)
}

/// The JSON of keyword arguments: an empty object if there are none.
pub(crate) fn keywords(data: Option<&Bound<'_, PyDict>>) -> PyResult<Box<RawValue>> {
    match data {
        Some(data) if !data.is_empty() => to_raw(data),
        _ => RawValue::from_string("{}".to_owned())
            .map_err(|error| PyValueError::new_err(error.to_string())),
    }
}

/// The JSON of `value`, as a new text.
pub(crate) fn to_raw(value: &Bound<'_, PyAny>) -> PyResult<Box<RawValue>> {
    let mut out = Vec::with_capacity(256);
    encode(&mut out, value)?;
    let text = String::from_utf8(out).map_err(|error| PyValueError::new_err(error.to_string()))?;
    RawValue::from_string(text).map_err(|error| PyValueError::new_err(error.to_string()))
}

/// Appends a JSON string.
#[inline]
pub(crate) fn string(out: &mut Vec<u8>, text: Borrowed<'_, '_, PyString>) -> PyResult<()> {
    out.push(b'"');
    match text.to_str() {
        Ok(text) => json::escape_str(out, text),
        // Lone surrogates have no UTF-8.
        Err(_) => surrogates(out, text)?,
    }
    out.push(b'"');
    Ok(())
}

/// The text as a Rust string, with U+FFFD in place of each lone surrogate.
pub(crate) fn lossy(text: &Bound<'_, PyString>) -> PyResult<String> {
    if let Ok(text) = text.to_str() {
        return Ok(text.to_owned());
    }
    let replaced = text.call_method1("encode", ("utf-16-le", "surrogatepass"))?;
    let units = replaced.cast::<PyBytes>()?.as_bytes().as_chunks().0;
    let units = units.iter().map(|unit| u16::from_le_bytes(*unit));
    Ok(char::decode_utf16(units)
        .map(|character| character.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect())
}

#[cold]
#[expect(unsafe_code, reason = "a str's own memory: it has no UTF-8")]
fn surrogates(out: &mut Vec<u8>, text: Borrowed<'_, '_, PyString>) -> PyResult<()> {
    // SAFETY: the thread is attached, and a str is not changed while there is another reference to it.
    match unsafe { text.data() }? {
        PyStringData::Ucs1(units) => json::escape_code_points(out, units.iter().map(|&u| u.into())),
        PyStringData::Ucs2(units) => json::escape_code_points(out, units.iter().map(|&u| u.into())),
        PyStringData::Ucs4(units) => json::escape_code_points(out, units.iter().copied()),
    }
    Ok(())
}

fn write(out: &mut Vec<u8>, value: &Bound<'_, PyAny>, depth: usize) -> PyResult<()> {
    if let Ok(text) = value.cast::<PyString>() {
        return string(out, text.as_borrowed());
    }
    if let Some(constant) = constant(value) {
        out.extend_from_slice(constant);
        return Ok(());
    }
    if value.is_instance_of::<PyInt>() {
        return int(out, value);
    }
    if let Ok(float) = value.cast::<PyFloat>() {
        let float = float.value();
        if float.is_finite() {
            serde_json::to_writer(out, &float).expect("a Vec takes every byte");
            return Ok(());
        }
    }
    if depth == DEEPEST {
        return Err(PyValueError::new_err(format!(
            "an event's data may be nested {DEEPEST} levels deep: this is deeper, or contains itself"
        )));
    }
    if let Ok(dict) = value.cast::<PyDict>() {
        return object(out, dict, depth + 1);
    }
    if let Ok(list) = value.cast::<PyList>() {
        return array(out, list.iter(), depth + 1);
    }
    if let Ok(tuple) = value.cast::<PyTuple>() {
        return array(out, tuple.iter(), depth + 1);
    }
    if value.is_instance_of::<PyBytes>() || value.is_instance_of::<PyByteArray>() {
        write!(out, "\"<{} bytes>\"", value.len()?).expect("a Vec takes every byte");
        return Ok(());
    }
    string(out, value.str()?.as_borrowed())
}

fn constant(value: &Bound<'_, PyAny>) -> Option<&'static [u8]> {
    if value.is_none() {
        return Some(b"null");
    }
    let flag = value.cast::<PyBool>().ok()?;
    Some(if flag.is_true() { b"true" } else { b"false" })
}

fn int(out: &mut Vec<u8>, value: &Bound<'_, PyAny>) -> PyResult<()> {
    if let Ok(small) = value.extract::<i64>() {
        out.extend_from_slice(itoa::Buffer::new().format(small).as_bytes());
        return Ok(());
    }
    // `int.__repr__` itself: a subclass may override it.
    let class = value.py().get_type::<PyInt>();
    let digits = class.call_method1("__repr__", (value,))?;
    out.extend_from_slice(digits.cast::<PyString>()?.to_str()?.as_bytes());
    Ok(())
}

fn object(out: &mut Vec<u8>, dict: &Bound<'_, PyDict>, depth: usize) -> PyResult<()> {
    out.push(b'{');
    // A copy of the items, because `str(value)` may run code that changes the dict.
    for (index, item) in dict.items().iter().enumerate() {
        let (key, value): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item.extract()?;
        if index > 0 {
            out.push(b',');
        }
        key_text(out, &key)?;
        out.push(b':');
        write(out, &value, depth)?;
    }
    out.push(b'}');
    Ok(())
}

fn key_text(out: &mut Vec<u8>, key: &Bound<'_, PyAny>) -> PyResult<()> {
    if let Ok(text) = key.cast::<PyString>() {
        return string(out, text.as_borrowed());
    }
    if let Some(constant) = constant(key) {
        out.push(b'"');
        out.extend_from_slice(constant);
        out.push(b'"');
        return Ok(());
    }
    string(out, key.str()?.as_borrowed())
}

fn array<'py>(
    out: &mut Vec<u8>,
    items: impl Iterator<Item = Bound<'py, PyAny>>,
    depth: usize,
) -> PyResult<()> {
    out.push(b'[');
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(out, &item, depth)?;
    }
    out.push(b']');
    Ok(())
}
