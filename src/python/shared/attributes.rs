//! The attributes of a plain handler. They are kept in a Rust struct, so that a new handler is cheap, until a dict is
//! needed.
//!
//! They move into a dict when `__dict__` is read, when an attribute is deleted, and when an attribute of another name
//! is set: so `vars()`, `copy`, `pickle` and `__dict__.update(…)` work as with any object.

use crate::python::cpython::attached::AttachedMutex;
use crate::python::cpython::exit::sleep_if_ended;
use crate::python::cpython::names::names;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString};

/// One of the handler's own attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attribute {
    CallerContext,
    EventCallback,
    Verbose,
    RunId,
    ToolCount,
    PreviousToolUse,
    Buffer,
}

impl Attribute {
    pub(crate) const ALL: [Self; 7] = [
        Self::CallerContext,
        Self::EventCallback,
        Self::Verbose,
        Self::RunId,
        Self::ToolCount,
        Self::PreviousToolUse,
        Self::Buffer,
    ];

    pub(crate) fn name(self, py: Python<'_>) -> &Bound<'_, PyString> {
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
pub(crate) struct Inline {
    pub(crate) first_six: [Py<PyAny>; 6],
    pub(crate) buffer: Option<Py<PyAny>>,
}

impl Inline {
    /// None for a buffer that was not made yet.
    fn get(&self, py: Python<'_>, attribute: Attribute) -> Option<Py<PyAny>> {
        self.first_six
            .get(attribute as usize)
            .or(self.buffer.as_ref())
            .map(|value| value.clone_ref(py))
    }

    /// The attributes with their values, in order.
    pub(crate) fn into_values(
        self,
        py: Python<'_>,
    ) -> impl Iterator<Item = (Attribute, Py<PyAny>)> {
        let buffer = self
            .buffer
            .unwrap_or_else(|| PyList::empty(py).into_any().unbind());
        Attribute::ALL
            .into_iter()
            .zip(self.first_six.into_iter().chain([buffer]))
    }

    /// Returns the value that is replaced.
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

/// The attributes of one handler.
///
/// The lock protects the state. Under it references are copied and moved, never dropped, and no Python code runs.
pub(crate) struct Attributes(AttachedMutex<State>);

impl Drop for Attributes {
    fn drop(&mut self) {
        let state = std::mem::replace(self.0.get_mut(), State::Unset);
        sleep_if_ended(|| drop(state));
    }
}

impl Attributes {
    /// The attributes of a handler whose `__init__` has not been called.
    pub(crate) fn unset() -> Self {
        Self(AttachedMutex::new(State::Unset))
    }

    pub(crate) fn new(inline: Inline) -> Self {
        Self(AttachedMutex::new(State::Inline(inline)))
    }

    /// Sets the attributes of a handler that has none yet. A handler that has attributes keeps them, and `inline` is
    /// returned as the error.
    pub(crate) fn initialize(&self, py: Python<'_>, inline: Inline) -> Result<(), Inline> {
        let mut state = self.0.lock(py);
        match &*state {
            State::Unset => {
                *state = State::Inline(inline);
                Ok(())
            }
            State::Inline(_) | State::Dict(_) => Err(inline),
        }
    }

    /// The value of an attribute; None if the attributes are in a dict, or if there are none.
    #[inline]
    pub(crate) fn get<'py>(
        &self,
        py: Python<'py>,
        attribute: Attribute,
    ) -> Option<Bound<'py, PyAny>> {
        let found = match &*self.0.lock(py) {
            State::Inline(inline) => inline.get(py, attribute),
            State::Unset | State::Dict(_) => return None,
        };
        if let Some(value) = found {
            return Some(value.into_bound(py));
        }
        // Not under the lock: making an object may start the garbage collector.
        let buffer = PyList::empty(py).into_any();
        match &mut *self.0.lock(py) {
            State::Inline(inline) => {
                let buffer = inline.buffer.get_or_insert_with(|| buffer.unbind());
                Some(buffer.bind(py).clone())
            }
            State::Unset | State::Dict(_) => None,
        }
    }

    /// Sets an attribute. Returns the value as the error if the attributes are in a dict, or if there are none.
    pub(crate) fn set<'py>(
        &self,
        attribute: Attribute,
        value: Bound<'py, PyAny>,
    ) -> Result<(), Bound<'py, PyAny>> {
        let py = value.py();
        let mut state = self.0.lock(py);
        let State::Inline(inline) = &mut *state else {
            return Err(value);
        };
        let replaced = inline.set(attribute, value.unbind());
        drop(state);
        // Dropped after the lock is released: its destructor may use this handler.
        drop(replaced);
        Ok(())
    }

    /// The dict of the attributes. They move into it now, unless they are in a dict already.
    pub(crate) fn dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        // Made before the lock is taken: making an object may start the garbage collector. Under the lock only str keys
        // are put into a new dict, which runs no Python code and makes no object that the collector tracks.
        let (dict, buffer) = (PyDict::new(py), PyList::empty(py).into_any().unbind());
        let mut state = self.0.lock(py);
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

    /// Replaces the dict of the attributes.
    pub(crate) fn set_dict(&self, dict: Bound<'_, PyDict>) {
        let py = dict.py();
        sleep_if_ended(|| {
            let replaced = std::mem::replace(&mut *self.0.lock(py), State::Dict(dict.unbind()));
            drop(replaced);
        });
    }

    /// The value of `name` in the dict of the attributes; None if it is not there, or if there is no such dict.
    pub(crate) fn in_dict<'py>(
        &self,
        name: &Bound<'py, PyString>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let py = name.py();
        let dict = match &*self.0.lock(py) {
            State::Dict(dict) => dict.bind(py).clone(),
            State::Unset | State::Inline(_) => return Ok(None),
        };
        dict.get_item(name)
    }

    #[expect(unsafe_code, reason = "the collector hands out no token")]
    pub(crate) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        // SAFETY: the collector runs attached, and the token is only shown to `try_lock` as evidence of that.
        let py = unsafe { Python::assume_attached() };
        // The collector must not wait. Nothing under the lock can start it, so the lock is free. If it were not, the
        // objects that are not visited here would only be taken for alive.
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

    pub(crate) fn clear(&self, py: Python<'_>) {
        let cleared = std::mem::replace(&mut *self.0.lock(py), State::Unset);
        sleep_if_ended(|| drop(cleared));
    }
}
