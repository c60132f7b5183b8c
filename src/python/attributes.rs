//! The attributes of a handler: readable, writable and deletable as those of any Python object, and cheap to make.
//!
//! A plain handler keeps its own attributes beside the object. They move into a dict when one is needed: when
//! somebody asks for `__dict__`, deletes an attribute or sets a further one; so that `vars()`, `copy`, `pickle` and
//! `__dict__.update(…)` see what they expect. An object of a subclass has a `__dict__` of its own and keeps them there.

use super::attached::AttachedMutex;
use super::exit::sleep_if_ended;
use super::handler::PyHandler;
use super::names::names;
use super::run_handler::PyRunHandler;
use pyo3::exceptions::{PyAttributeError, PyKeyError};
use pyo3::ffi;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyTuple};
use std::ptr;

/// Which of the handler's own attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attribute {
    CallerContext,
    EventCallback,
    Verbose,
    RunId,
    ToolCount,
    PreviousToolUse,
    Buffer,
}

impl Attribute {
    pub(super) const ALL: [Self; 7] = [
        Self::CallerContext,
        Self::EventCallback,
        Self::Verbose,
        Self::RunId,
        Self::ToolCount,
        Self::PreviousToolUse,
        Self::Buffer,
    ];

    pub(super) fn name(self, py: Python<'_>) -> &Bound<'_, PyString> {
        match self {
            Self::CallerContext => names(py).caller_context.bind(py),
            Self::EventCallback => names(py).event_callback.bind(py),
            Self::Verbose => names(py).verbose.bind(py),
            Self::RunId => names(py).run_id.bind(py),
            Self::ToolCount => names(py).tool_count.bind(py),
            Self::PreviousToolUse => names(py).previous_tool_use.bind(py),
            Self::Buffer => names(py).buffer.bind(py),
        }
    }
}

/// The attributes of a new handler, in the order of [`Attribute::ALL`]. The buffer is made when it is first asked for.
pub(super) struct Inline {
    pub(super) first_six: [Py<PyAny>; 6],
    pub(super) buffer: Option<Py<PyAny>>,
}

impl Inline {
    /// None if it is the buffer, which nobody has asked for yet.
    fn get(&self, py: Python<'_>, attribute: Attribute) -> Option<Py<PyAny>> {
        self.first_six
            .get(attribute as usize)
            .or(self.buffer.as_ref())
            .map(|value| value.clone_ref(py))
    }

    fn into_values(self, py: Python<'_>) -> impl Iterator<Item = (Attribute, Py<PyAny>)> {
        let buffer = self
            .buffer
            .unwrap_or_else(|| PyList::empty(py).into_any().unbind());
        Attribute::ALL
            .into_iter()
            .zip(self.first_six.into_iter().chain([buffer]))
    }

    /// Gives back what was there.
    fn set(&mut self, attribute: Attribute, value: Py<PyAny>) -> Option<Py<PyAny>> {
        match self.first_six.get_mut(attribute as usize) {
            Some(place) => Some(std::mem::replace(place, value)),
            None => self.buffer.replace(value),
        }
    }
}

enum State {
    /// `__init__` has not been called.
    Unset,
    Inline(Inline),
    Dict(Py<PyDict>),
}

/// Where one handler's attributes are.
///
/// The lock protects the state. Under it references are copied and moved, never dropped, and no Python code runs.
pub(super) struct Attributes(AttachedMutex<State>);

impl Drop for Attributes {
    fn drop(&mut self) {
        let state = std::mem::replace(self.0.get_mut(), State::Unset);
        sleep_if_ended(|| drop(state));
    }
}

impl Attributes {
    pub(super) fn unset() -> Self {
        Self(AttachedMutex::new(State::Unset))
    }

    pub(super) fn new(inline: Inline) -> Self {
        Self(AttachedMutex::new(State::Inline(inline)))
    }

    /// What `__init__` does: gives a handler that has no attributes yet those of a new one, any other the new values.
    pub(super) fn initialize(handler: &Bound<'_, PyHandler>, inline: Inline) -> PyResult<()> {
        let py = handler.py();
        if is_plain(handler) {
            let mut state = handler.get().attributes.0.lock(py);
            if let State::Unset = &*state {
                *state = State::Inline(inline);
                return Ok(());
            }
        }
        sleep_if_ended(|| {
            for (attribute, value) in inline.into_values(py) {
                // As an assignment to self: a subclass may have a property of that name.
                handler.setattr(attribute.name(py), value)?;
            }
            Ok(())
        })
    }

    /// Reads an own attribute.
    pub(super) fn get<'py>(
        handler: &Bound<'py, PyHandler>,
        attribute: Attribute,
    ) -> PyResult<Bound<'py, PyAny>> {
        if is_plain(handler) {
            Self::get_plain(handler, attribute)
        } else {
            Self::get_from_dict(handler, attribute)
        }
    }

    /// Reads an own attribute of a plain handler.
    #[inline]
    pub(super) fn get_plain<'py>(
        handler: &Bound<'py, PyHandler>,
        attribute: Attribute,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = handler.py();
        let state = &handler.get().attributes.0;
        let found = match &*state.lock(py) {
            State::Inline(inline) => Some(inline.get(py, attribute)),
            State::Unset | State::Dict(_) => None,
        };
        match found {
            Some(Some(value)) => return Ok(value.into_bound(py)),
            Some(None) => {
                // Not under the lock: making an object may start the garbage collector.
                let buffer = PyList::empty(py).into_any();
                if let State::Inline(inline) = &mut *state.lock(py) {
                    let buffer = inline.buffer.get_or_insert_with(|| buffer.unbind());
                    return Ok(buffer.bind(py).clone());
                }
            }
            None => {}
        }
        Self::get_from_dict(handler, attribute)
    }

    #[cold]
    fn get_from_dict<'py>(
        handler: &Bound<'py, PyHandler>,
        attribute: Attribute,
    ) -> PyResult<Bound<'py, PyAny>> {
        let name = attribute.name(handler.py());
        Self::dict(handler)?
            .get_item(name)?
            .ok_or_else(|| missing(handler, name))
    }

    /// Sets an own attribute.
    pub(super) fn set(
        handler: &Bound<'_, PyHandler>,
        attribute: Attribute,
        value: Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let py = handler.py();
        if is_plain(handler) {
            let mut state = handler.get().attributes.0.lock(py);
            if let State::Inline(inline) = &mut *state {
                let replaced = inline.set(attribute, value.unbind());
                drop(state);
                // Only now: its destructor may come back in.
                drop(replaced);
                return Ok(());
            }
        }
        Self::dict(handler)?.set_item(attribute.name(py), value)
    }

    /// Deletes an own attribute.
    pub(super) fn delete(handler: &Bound<'_, PyHandler>, attribute: Attribute) -> PyResult<()> {
        sleep_if_ended(|| delete(handler, attribute.name(handler.py())))
    }

    /// The object's `__dict__`, with the own attributes moved into it.
    pub(super) fn dict<'py>(handler: &Bound<'py, PyHandler>) -> PyResult<Bound<'py, PyDict>> {
        let py = handler.py();
        if let Some(dict) = subclass_dict(handler)? {
            return Ok(dict);
        }
        // Made before the lock is taken: making an object may start the garbage collector. What happens under it, the
        // filling of a new dict with strs as keys, runs no Python code and makes no object that is collected.
        let (dict, buffer) = (PyDict::new(py), PyList::empty(py).into_any().unbind());
        let mut state = handler.get().attributes.0.lock(py);
        match &*state {
            State::Dict(dict) => return Ok(dict.bind(py).clone()),
            State::Inline(inline) => {
                for attribute in Attribute::ALL {
                    let value = inline
                        .get(py, attribute)
                        .unwrap_or_else(|| buffer.clone_ref(py));
                    dict.set_item(attribute.name(py), value)?;
                }
            }
            State::Unset => {}
        }
        let moved = std::mem::replace(&mut *state, State::Dict(dict.clone().unbind()));
        drop(state);
        drop(moved);
        Ok(dict)
    }

    /// Replaces the `__dict__` of a plain handler.
    pub(super) fn set_dict(&self, dict: Bound<'_, PyDict>) {
        let py = dict.py();
        sleep_if_ended(|| {
            let replaced = std::mem::replace(&mut *self.0.lock(py), State::Dict(dict.unbind()));
            drop(replaced);
        });
    }

    /// What was set on a plain handler under a name that is not its class's.
    pub(super) fn further<'py>(
        handler: &Bound<'py, PyHandler>,
        name: &Bound<'py, PyString>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let py = handler.py();
        let dict = match &*handler.get().attributes.0.lock(py) {
            State::Dict(dict) => dict.bind(py).clone(),
            State::Unset | State::Inline(_) => return Ok(None),
        };
        dict.get_item(name)
    }

    #[expect(unsafe_code, reason = "the collector hands out no token")]
    pub(super) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        // SAFETY: the collector runs attached, and the token is used for no more than to say so.
        let py = unsafe { Python::assume_attached() };
        // The collector must not wait. Nothing under the lock can start it, so the lock is free; were it not, an
        // object that is not traversed is only taken for alive.
        match self.0.try_lock(py).as_deref() {
            Some(State::Inline(inline)) => {
                inline
                    .first_six
                    .iter()
                    .try_for_each(|value| visit.call(value))?;
                visit.call(&inline.buffer)
            }
            Some(State::Dict(dict)) => visit.call(dict),
            Some(State::Unset) | None => Ok(()),
        }
    }

    pub(super) fn clear(&self, py: Python<'_>) {
        let cleared = std::mem::replace(&mut *self.0.lock(py), State::Unset);
        sleep_if_ended(|| drop(cleared));
    }
}

/// Whether the object is of the class itself, not of a subclass.
pub(super) fn is_plain(handler: &Bound<'_, PyHandler>) -> bool {
    let (class, py) = (handler.get_type(), handler.py());
    class.is(py.get_type::<PyHandler>()) || class.is(py.get_type::<PyRunHandler>())
}

/// Whether the object has no dict that `CPython` knows of.
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
    Attributes::dict(handler)?.del_item(name).map_err(|error| {
        if error.is_instance_of::<PyKeyError>(handler.py()) {
            // Python 3.10 has no more to say.
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

/// The dict that an object of a subclass has, unless the subclass forgoes it with `__slots__`.
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
    #[expect(
        unsafe_code,
        reason = "CPython's own accessor, which PyO3 does not wrap"
    )]
    fn __getattribute__<'py>(
        slf: &Bound<'py, Self>,
        name: &Bound<'py, PyString>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if let Some(value) = Attributes::further(slf, name)? {
            return Ok(value);
        }
        // SAFETY: the thread is attached and both objects are alive; the result is a new reference, or null.
        sleep_if_ended(|| unsafe {
            let value = ffi::PyObject_GenericGetAttr(slf.as_ptr(), name.as_ptr());
            Bound::from_owned_ptr_or_err(slf.py(), value)
        })
    }

    /// Where `__getattribute__` found nothing.
    fn __getattr__<'py>(
        slf: &Bound<'py, Self>,
        name: &Bound<'py, PyString>,
    ) -> PyResult<Bound<'py, PyAny>> {
        Err(missing(slf, name))
    }

    pub(super) fn __setattr__(
        slf: &Bound<'_, Self>,
        name: &Bound<'_, PyString>,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        match generic_set(slf, name, Some(value)) {
            // The class has nothing of that name that can be set, and a plain object no dict that CPython knows of.
            Err(error)
                if error.is_instance_of::<PyAttributeError>(slf.py()) && keeps_its_own(slf)? =>
            {
                Attributes::dict(slf)?.set_item(name, value)
            }
            done => done,
        }
    }

    pub(super) fn __delattr__(slf: &Bound<'_, Self>, name: &Bound<'_, PyString>) -> PyResult<()> {
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
        Attributes::dict(slf)
    }

    #[setter(__dict__)]
    fn set_dict(&self, dict: Bound<'_, PyDict>) {
        self.attributes.set_dict(dict);
    }

    /// Return the attributes, for `copy` and `pickle`: a new dict, and with it one of the slots, where there are any.
    fn __getstate__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let state = Attributes::dict(slf)?.copy()?;
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

    /// Made anew without a call of `__init__`, whatever the protocol.
    fn __reduce_ex__<'py>(slf: &Bound<'py, Self>, _protocol: i32) -> PyResult<Bound<'py, PyTuple>> {
        let py = slf.py();
        let new = py.import("copyreg")?.getattr("__newobj__")?;
        (new, (slf.get_type(),), slf.call_method0("__getstate__")?).into_pyobject(py)
    }
}

/// `object.__setattr__`, or `object.__delattr__` where there is no value.
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
                    Attributes::get(slf, Attribute::$attribute)
                }

                #[setter($name)]
                fn $set(slf: &Bound<'_, Self>, value: Bound<'_, PyAny>) -> PyResult<()> {
                    sleep_if_ended(|| Attributes::set(slf, Attribute::$attribute, value))
                }

                #[deleter($name)]
                fn $delete(slf: &Bound<'_, Self>) -> PyResult<()> {
                    Attributes::delete(slf, Attribute::$attribute)
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
