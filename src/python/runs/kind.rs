//! The kind of an event, as Python names it.

use crate::python::cpython::arguments::shown;
use crate::{Action, Category, EventKind};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyString;

/// The kind that one dotted text names. None if `kind` is no str or has no dot, and so is a category alone.
pub(crate) fn dotted_kind(kind: &Bound<'_, PyAny>) -> PyResult<Option<EventKind>> {
    let Ok(text) = kind.cast::<PyString>() else {
        return Ok(None);
    };
    let text = text.to_string_lossy();
    if !text.contains('.') {
        return Ok(None);
    }
    let kind = text.parse::<EventKind>();
    let kind = kind.map_err(|error| PyValueError::new_err(error.to_string()))?;
    refuse_stream(kind.category())?;
    Ok(Some(kind))
}

/// Raises ValueError for the category of the events that only the log itself makes, for its readers.
fn refuse_stream(category: &str) -> PyResult<()> {
    if category == Category::Stream.as_str() {
        return Err(PyValueError::new_err(
            "category 'stream' is for what the log itself tells its readers",
        ));
    }
    Ok(())
}

/// The texts of a category and an action, which are given as str or as members of their enums.
fn texts(category: &Bound<'_, PyAny>, action: &Bound<'_, PyAny>) -> PyResult<(String, String)> {
    let text = |name: &str, value: &Bound<'_, PyAny>| match value.cast::<PyString>() {
        Ok(text) => Ok(text.to_string_lossy().into_owned()),
        Err(_) => Err(PyTypeError::new_err(format!(
            "{name} must be a str, or a member of its enum, not {}",
            shown(value)
        ))),
    };
    Ok((text("category", category)?, text("action", action)?))
}

/// The kind of an event that is handed to a run's callback: a built-in kind, or a host's own.
pub(crate) fn forwarded_kind(
    category: &Bound<'_, PyAny>,
    action: &Bound<'_, PyAny>,
) -> PyResult<EventKind> {
    let (category, action) = texts(category, action)?;
    let kind = EventKind::from_parts(&category, &action);
    let kind = kind.map_err(|error| PyValueError::new_err(error.to_string()))?;
    refuse_stream(kind.category())?;
    Ok(kind)
}

/// The built-in kind of a category and an action, each a text or a member of its enum.
pub(crate) fn kind(category: &Bound<'_, PyAny>, action: &Bound<'_, PyAny>) -> PyResult<EventKind> {
    let (category, action) = texts(category, action)?;
    let list = |words: Vec<&str>| words.join(", ");
    let category = category.parse::<Category>().map_err(|_| {
        let known = Category::ALL
            .iter()
            .filter(|word| **word != Category::Stream);
        let known = list(known.map(|word| word.as_str()).collect());
        PyValueError::new_err(format!(
            "category must be one of {known}, not {category:?}; a kind of your own is one dotted text: \
             emit(\"billing.charged\", data)"
        ))
    })?;
    let action = action.parse::<Action>().map_err(|_| {
        let known = list(Action::ALL.iter().map(|word| word.as_str()).collect());
        PyValueError::new_err(format!(
            "action must be one of {known}, not {action:?}; a kind of your own is one dotted text: \
             emit(\"billing.charged\", data)"
        ))
    })?;
    refuse_stream(category.as_str())?;
    Ok(EventKind::new(category, action))
}
