//! How an `LLMCallbackHandler` is made and called.

use super::dispatch;
use crate::python::cpython::arguments::{Arg, require};
use crate::python::cpython::exit::sleep_if_ended;
use crate::python::cpython::names::names;
use crate::python::shared::attributes::{Attribute, Attributes, Inline};
use crate::python::shared::event;
use crate::python::shared::handler::{PyHandler, zero};
use crate::python::shared::registered::deliver;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyTuple};

impl PyHandler {
    /// The attributes that `__init__` sets.
    fn initial(
        caller_context: Borrowed<'_, '_, PyAny>,
        event_callback: Arg<'_, '_>,
        verbose: Arg<'_, '_>,
        run_id: Arg<'_, '_>,
    ) -> PyResult<Inline> {
        let py = caller_context.py();
        let first_six = [
            (*caller_context).clone().unbind(),
            event_callback.or_else(|| py.None()),
            verbose.or_else(|| PyBool::new(py, false).to_owned().into_any().unbind()),
            run_id.or_else(|| py.None()),
            zero(py)?.clone_ref(py),
            py.None(),
        ];
        Ok(Inline {
            first_six,
            buffer: None,
        })
    }
}

#[pymethods]
impl PyHandler {
    #[new]
    #[pyo3(
        signature = (*_args, **_kwargs),
        text_signature = "(caller_context, event_callback=None, verbose=False, run_id=None)"
    )]
    fn __new__(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            attributes: Attributes::unset(),
        }
    }

    #[pyo3(signature = (
        caller_context=Arg::Missing, event_callback=Arg::Missing, verbose=Arg::Missing, run_id=Arg::Missing,
        *rest, **extra
    ))]
    fn __init__<'py>(
        slf: &Bound<'py, Self>,
        caller_context: Arg<'_, 'py>,
        event_callback: Arg<'_, 'py>,
        verbose: Arg<'_, 'py>,
        run_id: Arg<'_, 'py>,
        rest: &Bound<'py, PyTuple>,
        extra: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<()> {
        let py = slf.py();
        let given = [("caller_context", caller_context)];
        let optional = [
            ("event_callback", event_callback),
            ("verbose", verbose),
            ("run_id", run_id),
        ];
        let [caller_context] = require(
            py,
            "LLMCallbackHandler.__init__",
            Some(slf),
            given,
            &optional,
            rest,
            extra,
        )?;
        Self::initialize(
            slf,
            Self::initial(caller_context, event_callback, verbose, run_id)?,
        )
    }

    /// Report what the framework sent. Keyword arguments only; those that it does not know are ignored.
    #[pyo3(signature = (*args, **kwargs))]
    pub(crate) fn __call__<'py>(
        slf: &Bound<'py, Self>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<()> {
        let py = slf.py();
        let names_self = match kwargs {
            Some(kwargs) => kwargs.contains(names(py).self_.bind(py))?,
            None => false,
        };
        if names_self || !args.is_empty() {
            let [] = require(
                py,
                "LLMCallbackHandler.__call__",
                Some(slf),
                [],
                &[],
                args,
                kwargs,
            )?;
        }
        dispatch::call(slf, kwargs)
    }

    /// Call `callback` with the event of `category` and `action`, members of the enums, and `data`.
    ///
    /// A subclass may override it to see or change the events.
    #[pyo3(
        signature = (callback=Arg::Missing, category=Arg::Missing, action=Arg::Missing, data=Arg::Missing, *rest),
        text_signature = "($self, callback, category, action, data)"
    )]
    fn _emit_event<'py>(
        slf: &Bound<'py, Self>,
        callback: Arg<'_, 'py>,
        category: Arg<'_, 'py>,
        action: Arg<'_, 'py>,
        data: Arg<'_, 'py>,
        rest: &Bound<'py, PyTuple>,
    ) -> PyResult<()> {
        let name = "LLMCallbackHandler._emit_event";
        let given = [
            ("callback", callback),
            ("category", category),
            ("action", action),
            ("data", data),
        ];
        let [callback, category, action, data] =
            require(slf.py(), name, Some(slf), given, &[], rest, None)?;
        sleep_if_ended(|| {
            let context = slf.getattr(Attribute::CallerContext.name(slf.py()))?;
            deliver(
                &callback,
                &event::of_members(&context, &category, &action, &data)?,
            )
        })
    }
}

/// Make an :class:`LLMCallbackHandler`; a function under the name that hosts call.
#[pyfunction]
#[pyo3(
    signature = (
        caller_context=Arg::Missing, event_callback=Arg::Missing, verbose=Arg::Missing, run_id=Arg::Missing,
        *rest
    ),
    text_signature = "(caller_context, event_callback=None, verbose=False, run_id=None)"
)]
pub(crate) fn create_callback_handler<'py>(
    py: Python<'py>,
    caller_context: Arg<'_, 'py>,
    event_callback: Arg<'_, 'py>,
    verbose: Arg<'_, 'py>,
    run_id: Arg<'_, 'py>,
    rest: &Bound<'py, PyTuple>,
) -> PyResult<Py<PyHandler>> {
    let given = [("caller_context", caller_context)];
    let optional = [
        ("event_callback", event_callback),
        ("verbose", verbose),
        ("run_id", run_id),
    ];
    let [caller_context] = require(
        py,
        "create_callback_handler",
        None,
        given,
        &optional,
        rest,
        None,
    )?;
    let inline = PyHandler::initial(caller_context, event_callback, verbose, run_id)?;
    Py::new(
        py,
        PyHandler {
            attributes: Attributes::new(inline),
        },
    )
}
