//! The arguments of Python functions, and the `TypeError`s of calls that do not match a signature.
//!
//! `PyO3`'s error texts differ from `CPython`'s in small ways, and `CPython`'s differ between versions. So the
//! functions of the drop-in accept any arguments, as `(a=Arg::Missing, …, *rest)`. A call that does not match is
//! repeated on a Python function of the same signature (`llm_callback._signatures`), and the error of that function is
//! raised. Only an unexpected keyword is left to `PyO3`: its text is the same except for the hints of 3.13, and
//! accepting `**extra` would cost the fast calling convention.

use pyo3::exceptions::PyTypeError;
use pyo3::types::{PyDict, PyTuple};
use pyo3::{Borrowed, prelude::*};
use std::convert::Infallible;

/// An argument that may be left out, which is not the same as passing `None`.
#[derive(Clone, Copy)]
pub(crate) enum Arg<'a, 'py> {
    Missing,
    Given(Borrowed<'a, 'py, PyAny>),
}

impl Arg<'_, '_> {
    pub(crate) fn or_else(self, default: impl FnOnce() -> Py<PyAny>) -> Py<PyAny> {
        match self {
            Self::Given(object) => (*object).clone().unbind(),
            Self::Missing => default(),
        }
    }
}

impl<'a, 'py> FromPyObject<'a, 'py> for Arg<'a, 'py> {
    type Error = Infallible;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> Result<Self, Infallible> {
        Ok(Self::Given(object))
    }
}

/// An object as error messages show it: the first part of its `repr`, or its class if `repr` fails.
pub(crate) fn shown(object: &Bound<'_, PyAny>) -> String {
    const MOST: usize = 200;
    let repr = object
        .repr()
        .map(|text| text.to_string_lossy().into_owned());
    match repr {
        Ok(text) if text.chars().nth(MOST).is_none() => text,
        Ok(text) => text.chars().take(MOST).chain(['…']).collect(),
        Err(_) => match object.get_type().name() {
            Ok(class) => format!("an object of class {class}"),
            Err(_) => "an object".to_owned(),
        },
    }
}

/// Returns the required arguments `given`, or the `TypeError` of the Python function `name` (`"function"` or
/// `"Class.method"`) if the call does not match its signature.
///
/// `receiver` is a method's `self`. `given` are the required parameters, in order, with the arguments that were
/// received. `optional` are the parameters after them, which only matter for the error. `rest` and `extra` are the
/// arguments beyond the parameters: if there are any, the call does not match.
pub(crate) fn require<'a, 'py, const N: usize>(
    py: Python<'py>,
    name: &str,
    receiver: Option<&Bound<'py, PyAny>>,
    given: [(&str, Arg<'a, 'py>); N],
    optional: &[(&str, Arg<'a, 'py>)],
    rest: &Bound<'py, PyTuple>,
    extra: Option<&Bound<'py, PyDict>>,
) -> PyResult<[Borrowed<'a, 'py, PyAny>; N]> {
    let fits = rest.is_empty() && extra.is_none_or(PyDictMethods::is_empty);
    if !fits || given.iter().any(|(_, arg)| matches!(arg, Arg::Missing)) {
        return Err(mismatch(
            py,
            name,
            receiver,
            given.iter().chain(optional),
            rest,
            extra,
        ));
    }
    Ok(given.map(|(_, arg)| match arg {
        Arg::Given(object) => object,
        Arg::Missing => unreachable!("no required argument is missing"),
    }))
}

#[cold]
fn mismatch<'s, 'a, 'py: 'a>(
    py: Python<'py>,
    name: &str,
    receiver: Option<&Bound<'py, PyAny>>,
    given: impl Iterator<Item = &'s (&'s str, Arg<'a, 'py>)>,
    rest: &Bound<'py, PyTuple>,
    extra: Option<&Bound<'py, PyDict>>,
) -> PyErr
where
    'a: 's,
{
    let repeat = || -> PyResult<PyErr> {
        let mut function = py.import("llm_callback._signatures")?.into_any();
        for part in name.split('.') {
            function = function.getattr(part)?;
        }
        let mut args: Vec<Bound<'py, PyAny>> = receiver.cloned().into_iter().collect();
        let kwargs = PyDict::new(py);
        if let Some(extra) = extra {
            kwargs.update(extra.as_mapping())?;
        }
        let mut by_position = true;
        for (name, arg) in given {
            match arg {
                Arg::Given(object) if by_position => args.push((*object).to_owned()),
                Arg::Given(object) => kwargs.set_item(name, object)?,
                // Arguments after a missing one were given by keyword.
                Arg::Missing => by_position = false,
            }
        }
        args.extend(rest);
        function.call(PyTuple::new(py, args)?, Some(&kwargs))?;
        Ok(PyTypeError::new_err(format!(
            "{name}() was called with arguments that do not fit"
        )))
    };
    repeat().unwrap_or_else(|error| error)
}
