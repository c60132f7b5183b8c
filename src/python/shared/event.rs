//! An event as Python sees it: a fresh dict of `source`, `event` and `data`.

use crate::python::cpython::arguments::shown;
use crate::python::cpython::names::names;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyString, PyType};
use std::ptr;

/// The kinds of events that a handler reports: actions of category `llm`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Reasoning,
    Stream,
    ToolCall,
    Completed,
}

impl Kind {
    fn action(self) -> &'static str {
        match self {
            Self::Reasoning => "reasoning",
            Self::Stream => "stream",
            Self::ToolCall => "tool_call",
            Self::Completed => "completed",
        }
    }

    const ALL: [Self; 4] = [
        Self::Reasoning,
        Self::Stream,
        Self::ToolCall,
        Self::Completed,
    ];

    /// The members of `EventCategory` and `EventAction`: the arguments of an overridden `_emit_event`.
    pub(crate) fn members(self, py: Python<'_>) -> PyResult<&(Py<PyAny>, Py<PyAny>)> {
        static MEMBERS: [PyOnceLock<(Py<PyAny>, Py<PyAny>)>; 4] = [const { PyOnceLock::new() }; 4];
        MEMBERS[self as usize].get_or_try_init(py, || {
            let enums = py.import("llm_callback.enums")?;
            Ok((
                enums.getattr("EventCategory")?.call1(("llm",))?.unbind(),
                enums
                    .getattr("EventAction")?
                    .call1((self.action(),))?
                    .unbind(),
            ))
        })
    }

    /// A fresh dict of category and action: a copy of a prepared dict, which is cheaper than building one.
    fn word(self, py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
        static WORDS: [PyOnceLock<Py<PyDict>>; 4] = [const { PyOnceLock::new() }; 4];
        WORDS[self as usize]
            .get_or_try_init(py, || {
                let category = names(py).llm.bind(py).as_any();
                word(py, category, PyString::intern(py, self.action()).as_any()).map(Bound::unbind)
            })?
            .bind(py)
            .copy()
    }
}

/// Looks up the Python objects that this file needs. To be called at import.
pub(crate) fn prepare(py: Python<'_>) -> PyResult<()> {
    for kind in Kind::ALL {
        kind.members(py)?;
        kind.word(py)?;
    }
    caller_context(py)?;
    agent_types(py).map(drop)
}

fn word<'py>(
    py: Python<'py>,
    category: &Bound<'py, PyAny>,
    action: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyDict>> {
    let word = PyDict::new(py);
    word.set_item(names(py).category.bind(py), category)?;
    word.set_item(names(py).action.bind(py), action)?;
    Ok(word)
}

/// The event of one of the handler's own kinds.
pub(crate) fn of_kind<'py>(
    context: &Bound<'py, PyAny>,
    kind: Kind,
    data: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyDict>> {
    assemble(&source(context)?, &kind.word(context.py())?, data)
}

/// The event of any category and action, given as enum members.
pub(crate) fn of_members<'py>(
    context: &Bound<'py, PyAny>,
    category: &Bound<'py, PyAny>,
    action: &Bound<'py, PyAny>,
    data: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyDict>> {
    let py = context.py();
    let source = source(context)?;
    let value = names(py).value.bind(py);
    assemble(
        &source,
        &word(py, &category.getattr(value)?, &action.getattr(value)?)?,
        data,
    )
}

/// The event of any source, category and action, given as they appear in the event.
pub(crate) fn of_words<'py>(
    source: &Bound<'py, PyAny>,
    category: &str,
    action: &str,
    data: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyDict>> {
    let py = source.py();
    let text = |text| PyString::new(py, text).into_any();
    assemble(source, &word(py, &text(category), &text(action))?, data)
}

/// The dict of a source, which is given as a `CallerContext`, or as the dict that its `to_source_dict()` makes. Raises
/// TypeError or ValueError for anything else.
pub(crate) fn source_dict<'py>(source: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = source.py();
    let Ok(dict) = source.cast::<PyDict>() else {
        if !source.hasattr(names(py).to_source_dict.bind(py))? {
            return Err(PyTypeError::new_err(format!(
                "who speaks is a CallerContext, or the dict that its to_source_dict() makes, not {}",
                shown(source)
            )));
        }
        return self::source(source);
    };
    for name in [
        &names(py).agent_id,
        &names(py).agent_type,
        &names(py).agent_name,
    ] {
        let name = name.bind(py);
        if !dict
            .get_item(name)?
            .is_some_and(|value| value.is_instance_of::<PyString>())
        {
            return Err(PyValueError::new_err(format!(
                "a source has agent_id, agent_type, agent_name (str) and team_name: {name} is missing, or no str"
            )));
        }
    }
    Ok(source.clone())
}

fn assemble<'py>(
    source: &Bound<'py, PyAny>,
    word: &Bound<'py, PyDict>,
    data: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyDict>> {
    let py = source.py();
    let event = PyDict::new(py);
    event.set_item(names(py).source.bind(py), source)?;
    event.set_item(names(py).event.bind(py), word)?;
    event.set_item(names(py).data.bind(py), data)?;
    Ok(event)
}

/// The dict of a source: what `context.to_source_dict()` returns.
///
/// The attributes of a plain `CallerContext` are read here, without a Python call; any other object's method is called.
fn source<'py>(context: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = context.py();
    if !context.get_type().is(caller_context(py)?) {
        return context.call_method0(names(py).to_source_dict.bind(py));
    }
    let attributes = instance_dict(context)?;
    if attributes.contains(names(py).to_source_dict.bind(py))? {
        return context.call_method0(names(py).to_source_dict.bind(py));
    }
    // An attribute that the object lacks is looked up on its class.
    let read = |name: &Bound<'py, PyString>| match attributes.get_item(name)? {
        Some(value) => Ok(value),
        None => context.getattr(name),
    };
    let source = PyDict::new(py);
    let agent_id = names(py).agent_id.bind(py);
    source.set_item(agent_id, read(agent_id)?)?;
    let agent_type = names(py).agent_type.bind(py);
    source.set_item(agent_type, plain_agent_type(read(agent_type)?)?)?;
    let agent_name = names(py).agent_name.bind(py);
    source.set_item(agent_name, read(agent_name)?)?;
    let team_name = names(py).team_name.bind(py);
    source.set_item(team_name, read(team_name)?)?;
    Ok(source.into_any())
}

/// An object's `__dict__`.
#[expect(
    unsafe_code,
    reason = "CPython's own accessor, which PyO3 does not wrap"
)]
fn instance_dict<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyDict>> {
    // SAFETY: the thread is attached and the object is alive; the result is a new reference, or null with an error.
    let dict = unsafe {
        let dict = ffi::PyObject_GenericGetDict(object.as_ptr(), ptr::null_mut());
        Bound::from_owned_ptr_or_err(object.py(), dict)?
    };
    Ok(dict.cast_into()?)
}

/// The value of an `AgentType`, as a plain str; anything else as it is.
fn plain_agent_type(agent_type: Bound<'_, PyAny>) -> PyResult<Bound<'_, PyAny>> {
    let py = agent_type.py();
    let known = agent_types(py)?
        .iter()
        .find(|(member, _)| agent_type.is(member));
    Ok(known.map_or(agent_type, |(_, value)| value.bind(py).clone()))
}

fn caller_context(py: Python<'_>) -> PyResult<&Bound<'_, PyType>> {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    CLASS.import(py, "llm_callback.caller", "CallerContext")
}

/// The members of `AgentType`, each with its value.
fn agent_types(py: Python<'_>) -> PyResult<&Vec<(Py<PyAny>, Py<PyAny>)>> {
    static MEMBERS: PyOnceLock<Vec<(Py<PyAny>, Py<PyAny>)>> = PyOnceLock::new();
    MEMBERS.get_or_try_init(py, || {
        let enums = py.import("llm_callback.enums")?;
        enums
            .getattr("AgentType")?
            .try_iter()?
            .map(|member| {
                let member = member?;
                Ok((member.clone().unbind(), member.getattr("value")?.unbind()))
            })
            .collect()
    })
}
