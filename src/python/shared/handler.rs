//! `LLMCallbackHandler` as an object: its class, and its attributes, which are readable, writable and deletable as
//! those of any Python object.
//!
//! A plain handler keeps its attributes in a Rust struct (`attributes.rs`). An object of a user's subclass keeps them
//! in its `__dict__`. What a call of a handler does is in the rooms `dropin` and `runs`.

use super::attributes::{Attribute, Attributes, Inline};
use crate::python::cpython::exit::sleep_if_ended;
use pyo3::exceptions::{PyAttributeError, PyKeyError};
use pyo3::ffi;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyString, PyTuple, PyType};
use std::ptr;

/// Turns what an agent framework calls it with into events of one run.
///
/// Give it to the framework as its callback handler. Each call first asks the token of `run_id`, if that run is open,
/// and its cancellation checker, and raises :class:`RunCancelled` if the run is cancelled. Then it reports reasoning,
/// text, tool calls and completion, in this order. Each is an event `{"source", "event", "data"}`, which goes to
/// `event_callback`. If that is None, the event goes to the log of `run_id`, if that run is open, and to the callback
/// registered for `run_id`. An event that reaches neither is dropped and counted: see :func:`stats`.
///
/// `caller_context` is the source of the events; with `verbose`, text is also printed to `sys.stdout`. All attributes
/// can be changed at any time. Thread-safe and re-entrant: callbacks run on the calling thread with no lock held, and
/// their exceptions reach the caller.
#[pyclass(
    name = "LLMCallbackHandler",
    module = "llm_callback",
    subclass,
    weakref,
    frozen,
    immutable_type
)]
pub(crate) struct PyHandler {
    pub(crate) attributes: Attributes,
}

/// The tool count of every new handler.
pub(crate) fn zero(py: Python<'_>) -> PyResult<&Py<PyAny>> {
    static ZERO: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    ZERO.get_or_try_init(py, || Ok(0_u8.into_pyobject(py)?.into_any().unbind()))
}

impl PyHandler {
    /// What `__init__` does: sets all attributes, of a new handler and of one that has attributes already.
    pub(crate) fn initialize(slf: &Bound<'_, Self>, inline: Inline) -> PyResult<()> {
        let py = slf.py();
        let inline = if is_plain(slf) {
            match slf.get().attributes.initialize(py, inline) {
                Ok(()) => return Ok(()),
                Err(inline) => inline,
            }
        } else {
            inline
        };
        sleep_if_ended(|| {
            for (attribute, value) in inline.into_values(py) {
                // As `self.name = value` would: a subclass may have a property of that name.
                slf.setattr(attribute.name(py), value)?;
            }
            Ok(())
        })
    }

    /// Reads an own attribute.
    pub(crate) fn own<'py>(
        slf: &Bound<'py, Self>,
        attribute: Attribute,
    ) -> PyResult<Bound<'py, PyAny>> {
        if is_plain(slf) {
            Self::own_of_plain(slf, attribute)
        } else {
            Self::own_from_dict(slf, attribute)
        }
    }

    /// Reads an own attribute of a plain handler.
    #[inline]
    pub(crate) fn own_of_plain<'py>(
        slf: &Bound<'py, Self>,
        attribute: Attribute,
    ) -> PyResult<Bound<'py, PyAny>> {
        match slf.get().attributes.get(slf.py(), attribute) {
            Some(value) => Ok(value),
            None => Self::own_from_dict(slf, attribute),
        }
    }

    #[cold]
    fn own_from_dict<'py>(
        slf: &Bound<'py, Self>,
        attribute: Attribute,
    ) -> PyResult<Bound<'py, PyAny>> {
        let name = attribute.name(slf.py());
        let value = Self::dict(slf)?.get_item(name)?;
        value.ok_or_else(|| missing(slf, name))
    }

    /// Sets an own attribute.
    pub(crate) fn set_own(
        slf: &Bound<'_, Self>,
        attribute: Attribute,
        value: Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let value = if is_plain(slf) {
            match slf.get().attributes.set(attribute, value) {
                Ok(()) => return Ok(()),
                Err(value) => value,
            }
        } else {
            value
        };
        Self::dict(slf)?.set_item(attribute.name(slf.py()), value)
    }

    /// The object's `__dict__`, with the own attributes in it.
    pub(crate) fn dict<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyDict>> {
        match subclass_dict(slf)? {
            Some(dict) => Ok(dict),
            None => slf.get().attributes.dict(slf.py()),
        }
    }
}

/// The one subclass of `LLMCallbackHandler` in this package.
static PLAIN_SUBCLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();

/// Makes the objects of `class`, this package's subclass of `LLMCallbackHandler`, count as plain. To be called at
/// import.
pub(crate) fn count_as_plain(class: Bound<'_, PyType>) {
    // Called once, for the class `RunHandler`.
    let _ = PLAIN_SUBCLASS.set(class.py(), class.unbind());
}

/// Whether the object is plain: of a class of this package. Then `Attributes` has its attributes, and none is
/// overridden.
pub(crate) fn is_plain(handler: &Bound<'_, PyHandler>) -> bool {
    let (class, py) = (handler.get_type(), handler.py());
    class.is(py.get_type::<PyHandler>())
        || PLAIN_SUBCLASS.get(py).is_some_and(|plain| class.is(plain))
}

/// Whether `Attributes` has the object's attributes, because `CPython` has no dict for them.
fn keeps_its_own(handler: &Bound<'_, PyHandler>) -> PyResult<bool> {
    Ok(subclass_dict(handler)?.is_none())
}

fn missing(handler: &Bound<'_, PyHandler>, name: &Bound<'_, PyString>) -> PyErr {
    let class = handler
        .get_type()
        .name()
        .map_or_else(|_| "object".to_owned(), |name| name.to_string());
    PyAttributeError::new_err(format!("'{class}' object has no attribute '{name}'"))
}

fn delete(handler: &Bound<'_, PyHandler>, name: &Bound<'_, PyString>) -> PyResult<()> {
    PyHandler::dict(handler)?.del_item(name).map_err(|error| {
        if error.is_instance_of::<PyKeyError>(handler.py()) {
            // Python 3.10 has the name alone as the message.
            if cfg!(Py_3_11) {
                missing(handler, name)
            } else {
                PyAttributeError::new_err(name.clone().unbind())
            }
        } else {
            error
        }
    })
}

/// The dict of an object of a user's subclass. None for a plain handler, and for a subclass with `__slots__` that has
/// none.
#[expect(
    unsafe_code,
    reason = "CPython's own accessor, which PyO3 does not wrap"
)]
fn subclass_dict<'py>(handler: &Bound<'py, PyHandler>) -> PyResult<Option<Bound<'py, PyDict>>> {
    if is_plain(handler) {
        return Ok(None);
    }
    // SAFETY: the thread is attached and the object is alive; the result is a new reference, or null with an error.
    let dict = unsafe {
        let dict = ffi::PyObject_GenericGetDict(handler.as_ptr(), ptr::null_mut());
        Bound::from_owned_ptr_or_err(handler.py(), dict)
    };
    match dict {
        Ok(dict) => Ok(Some(dict.cast_into()?)),
        Err(error) if error.is_instance_of::<PyAttributeError>(handler.py()) => Ok(None),
        Err(error) => Err(error),
    }
}

#[pymethods]
impl PyHandler {
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.attributes.traverse(&visit)
    }

    fn __clear__(&self, py: Python<'_>) {
        self.attributes.clear(py);
    }

    #[expect(
        unsafe_code,
        reason = "CPython's own accessor, which PyO3 does not wrap"
    )]
    fn __getattribute__<'py>(
        slf: &Bound<'py, Self>,
        name: &Bound<'py, PyString>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if let Some(value) = slf.get().attributes.in_dict(name)? {
            return Ok(value);
        }
        // SAFETY: the thread is attached and both objects are alive; the result is a new reference, or null.
        sleep_if_ended(|| unsafe {
            let value = ffi::PyObject_GenericGetAttr(slf.as_ptr(), name.as_ptr());
            Bound::from_owned_ptr_or_err(slf.py(), value)
        })
    }

    /// Called if `__getattribute__` finds nothing.
    fn __getattr__<'py>(
        slf: &Bound<'py, Self>,
        name: &Bound<'py, PyString>,
    ) -> PyResult<Bound<'py, PyAny>> {
        Err(missing(slf, name))
    }

    pub(crate) fn __setattr__(
        slf: &Bound<'_, Self>,
        name: &Bound<'_, PyString>,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        match generic_set(slf, name, Some(value)) {
            // The class has no attribute of that name that can be set, and CPython has no dict for the object.
            Err(error)
                if error.is_instance_of::<PyAttributeError>(slf.py()) && keeps_its_own(slf)? =>
            {
                Self::dict(slf)?.set_item(name, value)
            }
            done => done,
        }
    }

    pub(crate) fn __delattr__(slf: &Bound<'_, Self>, name: &Bound<'_, PyString>) -> PyResult<()> {
        match generic_set(slf, name, None) {
            // As in `__setattr__`.
            Err(error)
                if error.is_instance_of::<PyAttributeError>(slf.py()) && keeps_its_own(slf)? =>
            {
                sleep_if_ended(|| delete(slf, name))
            }
            done => done,
        }
    }

    #[getter(__dict__)]
    fn get_dict<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyDict>> {
        Self::dict(slf)
    }

    #[setter(__dict__)]
    fn set_dict(&self, dict: Bound<'_, PyDict>) {
        self.attributes.set_dict(dict);
    }

    /// Return the attributes, for `copy` and `pickle`: a new dict, or a tuple of it and a dict of the slots, if there
    /// are any.
    fn __getstate__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let state = Self::dict(slf)?.copy()?;
        let slots = PyDict::new(py);
        for name in py
            .import("copyreg")?
            .call_method1("_slotnames", (slf.get_type(),))?
            .try_iter()?
        {
            let name = name?.cast_into::<PyString>()?;
            if let Some(value) = slf.getattr_opt(&name)? {
                slots.set_item(name, value)?;
            }
        }
        if slots.is_empty() {
            Ok(state.into_any())
        } else {
            Ok((state, slots).into_pyobject(py)?.into_any())
        }
    }

    /// Return how to make a copy: without a call of `__init__`, in every protocol.
    fn __reduce_ex__<'py>(slf: &Bound<'py, Self>, _protocol: i32) -> PyResult<Bound<'py, PyTuple>> {
        let py = slf.py();
        let new = py.import("copyreg")?.getattr("__newobj__")?;
        (new, (slf.get_type(),), slf.call_method0("__getstate__")?).into_pyobject(py)
    }
}

/// `object.__setattr__`, or `object.__delattr__` if `value` is None.
#[expect(
    unsafe_code,
    reason = "CPython's own accessor, which PyO3 does not wrap"
)]
fn generic_set(
    handler: &Bound<'_, PyHandler>,
    name: &Bound<'_, PyString>,
    value: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    sleep_if_ended(|| {
        let value = value.map_or(ptr::null_mut(), Bound::as_ptr);
        // SAFETY: the thread is attached and the objects are alive; a null value means to delete.
        if unsafe { ffi::PyObject_GenericSetAttr(handler.as_ptr(), name.as_ptr(), value) } == 0 {
            Ok(())
        } else {
            Err(PyErr::fetch(handler.py()))
        }
    })
}

macro_rules! descriptors {
    ($($attribute:ident $name:literal $get:ident $set:ident $delete:ident $doc:literal)*) => {
        #[pymethods]
        impl PyHandler {
            $(
                #[doc = $doc]
                #[getter($name)]
                fn $get<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
                    Self::own(slf, Attribute::$attribute)
                }

                #[setter($name)]
                fn $set(slf: &Bound<'_, Self>, value: Bound<'_, PyAny>) -> PyResult<()> {
                    sleep_if_ended(|| Self::set_own(slf, Attribute::$attribute, value))
                }

                #[deleter($name)]
                fn $delete(slf: &Bound<'_, Self>) -> PyResult<()> {
                    sleep_if_ended(|| delete(slf, Attribute::$attribute.name(slf.py())))
                }
            )*
        }
    };
}

descriptors! {
    CallerContext "caller_context" get_caller_context set_caller_context delete_caller_context
        "Who speaks: read anew for each event."
    EventCallback "event_callback" get_event_callback set_event_callback delete_event_callback
        "Where the events go; None: to the callback registered for the run."
    Verbose "verbose" get_verbose set_verbose delete_verbose
        "Whether text is printed to ``sys.stdout`` too."
    RunId "run_id" get_run_id set_run_id delete_run_id
        "The run that the events belong to, or None."
    ToolCount "tool_count" get_tool_count set_tool_count delete_tool_count
        "How many tool calls were seen."
    PreviousToolUse "previous_tool_use" get_previous_tool_use set_previous_tool_use delete_previous_tool_use
        "The tool use that was counted last, or None."
    Buffer "_buffer" get_buffer set_buffer delete_buffer
        "The latest tokens since the last ``complete``."
}
