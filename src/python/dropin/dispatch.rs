//! One call of a handler: ask whether the run is cancelled, choose the callback, report what the framework sent.
//!
//! The order of steps, and what each looks at, is the contract of the original module.

use super::route::{self, Target};
use crate::python::cpython::exit::sleep_if_ended;
use crate::python::cpython::names::names;
use crate::python::runs::run_callback;
use crate::python::shared::attributes::Attribute;
use crate::python::shared::cancelled;
use crate::python::shared::counters::COUNTERS;
use crate::python::shared::data::{content, round_completed, tool_call};
use crate::python::shared::event::{self, Kind};
use crate::python::shared::handler::{PyHandler, is_plain};
use crate::python::shared::print::print;
use crate::python::shared::registered::{self, Entry, deliver, says_so};
use crate::python::shared::run_key::RunKey;
use crate::python::shared::table;
use crate::python::shared::tool_calls::{Attribution, ToolCall, new_tool_call};
use crate::python::shared::truth::truthy;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, string::PyStringData};

/// How many pieces of text a handler keeps if the framework never says `complete`. Beyond that the older half is
/// dropped.
const BUFFER_LIMIT: usize = 10_000;

/// Where a call's events go, chosen once.
enum Listener<'py> {
    Callback(Bound<'py, PyAny>),
    Nobody,
    /// The handler and the calling context name two different runs, and the route is `strict`.
    Refused,
}

impl<'py> Listener<'py> {
    /// The callback, unless there is none or it is false.
    fn callback(&self) -> PyResult<Option<&Bound<'py, PyAny>>> {
        match self {
            Self::Callback(callback) if callback.is_truthy()? => Ok(Some(callback)),
            Self::Callback(_) | Self::Nobody | Self::Refused => Ok(None),
        }
    }

    fn count_dropped(&self) {
        match self {
            Self::Callback(_) | Self::Nobody => COUNTERS.count_no_callback(),
            Self::Refused => COUNTERS.count_route(),
        }
    }

    /// The callback; without one, the event that was meant for it is counted as dropped.
    fn callback_or_drop(&self) -> PyResult<Option<&Bound<'py, PyAny>>> {
        let callback = self.callback()?;
        if callback.is_none() {
            self.count_dropped();
        }
        Ok(callback)
    }
}

/// Calls the handler with the framework's keyword arguments.
pub(crate) fn call<'py>(
    handler: &Bound<'py, PyHandler>,
    kwargs: Option<&Bound<'py, PyDict>>,
) -> PyResult<()> {
    sleep_if_ended(|| {
        let py = handler.py();
        let call = Call {
            handler,
            plain: is_plain(handler),
        };
        let listener = call.choose()?;
        let Some(kwargs) = kwargs else { return Ok(()) };

        if let Some(reasoning) = truthy(kwargs.get_item(names(py).reasoning_text.bind(py))?)? {
            call.reasoning(&listener, reasoning)?;
        }
        let data = truthy(kwargs.get_item(names(py).data.bind(py))?)?;
        let complete = kwargs.get_item(names(py).complete.bind(py))?;
        if let Some(data) = &data {
            call.data(&listener, data, complete.as_ref())?;
        }
        if let Some(tool) = truthy(kwargs.get_item(names(py).current_tool_use.bind(py))?)? {
            call.tool(&listener, tool)?;
        }
        if truthy(complete)?.is_some() {
            call.complete(&listener, data.as_ref())?;
        }
        Ok(())
    })
}

/// Raises `RunCancelled` if the run of `key` is cancelled: by its token, if the run is open, or by its checker.
pub(crate) fn raise_if_cancelled<'py>(
    run_id: &Bound<'py, PyAny>,
    key: &RunKey<'py>,
) -> PyResult<()> {
    let py = run_id.py();
    if let Some(open) = table::live(py, key)? {
        cancelled::raise_if_cancelled(py, &open)?;
    }
    if says_so(Entry::Checker.get(py, key)?)? {
        return Err(cancelled::by_checker(run_id));
    }
    Ok(())
}

/// Whether the run of `key` is cancelled: by its token, if the run is open, or by its checker.
fn is_cancelled(py: Python<'_>, key: &RunKey<'_>) -> PyResult<bool> {
    let by_token = table::live(py, key)?.is_some_and(|open| open.token().is_cancelled());
    Ok(by_token || says_so(Entry::Checker.get(py, key)?)?)
}

struct Call<'a, 'py> {
    handler: &'a Bound<'py, PyHandler>,
    /// Whether the handler is plain: a user's subclass may override an attribute or `_emit_event`.
    plain: bool,
}

/// Where the events of `run_id` go. Does not ask whether that run is cancelled.
#[cold]
fn listener_of<'py>(run_id: &Bound<'py, PyAny>) -> PyResult<Listener<'py>> {
    let py = run_id.py();
    let run_id = match route::resolve(run_id)? {
        Target::Given => run_id.clone(),
        Target::Context(current) => current,
        Target::Disagreement(_) => return Ok(Listener::Refused),
    };
    if run_id.is_none() {
        return Ok(Listener::Nobody);
    }
    let key = RunKey::new(&run_id)?;
    let callback = match table::live(py, &key)? {
        Some(open) => Some(run_callback::of(py, Entry::Callback, open)?),
        None => Entry::Callback.get(py, &key)?,
    };
    Ok(callback.map_or(Listener::Nobody, Listener::Callback))
}

impl<'py> Call<'_, 'py> {
    fn choose(&self) -> PyResult<Listener<'py>> {
        let py = self.handler.py();
        let given = self.get(Attribute::RunId)?;
        let mut run_id = given.clone();
        match route::resolve(&run_id)? {
            Target::Given => {}
            Target::Context(current) => run_id = current,
            Target::Disagreement(current) => {
                // One of the two runs is the wrong one, and it is uncertain which. So a cancel only counts if both are
                // cancelled.
                if is_cancelled(py, &RunKey::new(&current)?)? {
                    raise_if_cancelled(&run_id, &RunKey::new(&run_id)?)?;
                }
                return Ok(Listener::Refused);
            }
        }
        let key = if run_id.is_none() {
            None
        } else {
            Some(RunKey::new(&run_id)?)
        };
        let open = match &key {
            Some(key) => table::live(py, key)?,
            None => None,
        };
        if let Some(open) = &open {
            cancelled::raise_if_cancelled(py, open)?;
        }
        let (mut registered, checker) = match &key {
            Some(key) => registered::both(py, key)?,
            None => (None, None),
        };
        let asked = checker.is_some();
        if says_so(checker)? {
            return Err(cancelled::by_checker(&run_id));
        }
        let explicit = self.get(Attribute::EventCallback)?;
        if !explicit.is_none() {
            return Ok(Listener::Callback(explicit));
        }
        if asked {
            // The checker may have changed the handler's run id.
            let now = self.get(Attribute::RunId)?;
            if !now.is(&given) {
                return listener_of(&now);
            }
        }
        if let Some(open) = open {
            let callback = run_callback::of(py, Entry::Callback, open)?;
            return Ok(Listener::Callback(callback));
        }
        // The checker may have registered another callback.
        if let Some(key) = key.filter(|_| asked) {
            registered = Entry::Callback.get(py, &key)?;
        }
        Ok(registered.map_or(Listener::Nobody, Listener::Callback))
    }

    fn reasoning(&self, listener: &Listener<'py>, reasoning: Bound<'py, PyAny>) -> PyResult<()> {
        if self.verbose()? {
            print(&reasoning, Some(""))?;
        }
        if let Some(callback) = listener.callback_or_drop()? {
            self.emit(callback, Kind::Reasoning, &content(reasoning)?)?;
        }
        Ok(())
    }

    fn data(
        &self,
        listener: &Listener<'py>,
        data: &Bound<'py, PyAny>,
        complete: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<()> {
        self.remember(data)?;
        if self.verbose()? {
            let complete = truthy(complete.cloned())?.is_some();
            print(data, Some(if complete { "\n" } else { "" }))?;
        }
        let text = data.cast_exact::<PyString>();
        match listener.callback()? {
            Some(callback) if !is_blank(data)? => {
                self.emit(callback, Kind::Stream, &content(data.clone())?)
            }
            // A blank text is no event, so no event is dropped.
            None if !text.map_or(Ok(false), is_blank_text)? => {
                listener.count_dropped();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn tool(&self, listener: &Listener<'py>, tool: Bound<'py, PyAny>) -> PyResult<()> {
        let Some(ToolCall { name, count }) = new_tool_call(self, tool)? else {
            return Ok(());
        };
        if let Some(callback) = listener.callback_or_drop()? {
            self.emit(callback, Kind::ToolCall, &tool_call(name, count)?)?;
        }
        Ok(())
    }

    fn complete(&self, listener: &Listener<'py>, data: Option<&Bound<'py, PyAny>>) -> PyResult<()> {
        let py = self.handler.py();
        self.set(Attribute::Buffer, PyList::empty(py).into_any())?;
        if self.verbose()? && data.is_some() {
            print(names(py).newline.bind(py).as_any(), None)?;
        }
        if let Some(callback) = listener.callback_or_drop()? {
            self.emit(callback, Kind::Completed, &round_completed(py)?)?;
        }
        Ok(())
    }

    fn remember(&self, data: &Bound<'py, PyAny>) -> PyResult<()> {
        let buffer = self.get(Attribute::Buffer)?;
        let Ok(list) = buffer.cast_exact::<PyList>() else {
            return buffer
                .call_method1(
                    names(self.handler.py()).append.bind(self.handler.py()),
                    (data,),
                )
                .map(drop);
        };
        list.append(data)?;
        if list.len() > BUFFER_LIMIT {
            list.del_slice(0, BUFFER_LIMIT / 2)
        } else {
            Ok(())
        }
    }

    fn emit(
        &self,
        callback: &Bound<'py, PyAny>,
        kind: Kind,
        data: &Bound<'py, PyDict>,
    ) -> PyResult<()> {
        if self.plain
            && self
                .handler
                .get()
                .attributes
                .in_dict(names(self.handler.py()).emit_event.bind(self.handler.py()))?
                .is_none()
        {
            let context = self.get(Attribute::CallerContext)?;
            return deliver(callback, &event::of_kind(&context, kind, data)?);
        }
        let py = self.handler.py();
        let (category, action) = kind.members(py)?;
        self.handler
            .call_method1(
                names(py).emit_event.bind(py),
                (callback, category, action, data),
            )
            .map(drop)
    }

    fn verbose(&self) -> PyResult<bool> {
        self.get(Attribute::Verbose)?.is_truthy()
    }
}

impl<'py> Attribution<'py> for Call<'_, 'py> {
    fn get(&self, attribute: Attribute) -> PyResult<Bound<'py, PyAny>> {
        if self.plain {
            PyHandler::own_of_plain(self.handler, attribute)
        } else {
            self.handler.getattr(attribute.name(self.handler.py()))
        }
    }

    fn set(&self, attribute: Attribute, value: Bound<'py, PyAny>) -> PyResult<()> {
        if self.plain {
            PyHandler::set_own(self.handler, attribute, value)
        } else {
            self.handler
                .setattr(attribute.name(self.handler.py()), value)
        }
    }
}

/// Whether `data.strip()` is empty.
fn is_blank(data: &Bound<'_, PyAny>) -> PyResult<bool> {
    if let Ok(text) = data.cast_exact::<PyString>() {
        return is_blank_text(text);
    }
    let stripped = data.call_method0(names(data.py()).strip.bind(data.py()))?;
    Ok(stripped.len()? == 0)
}

#[expect(
    unsafe_code,
    reason = "a str's own memory: UTF-8 would copy it, and has no lone surrogates"
)]
fn is_blank_text(text: &Bound<'_, PyString>) -> PyResult<bool> {
    // SAFETY: the thread is attached, and a str is not changed while there is another reference to it.
    Ok(match unsafe { text.data() }? {
        PyStringData::Ucs1(units) => units.iter().all(|&unit| is_space(unit.into())),
        PyStringData::Ucs2(units) => units.iter().all(|&unit| is_space(unit.into())),
        PyStringData::Ucs4(units) => units.iter().all(|&unit| is_space(unit)),
    })
}

/// Python's idea of white space: Unicode's, and the four separators U+001C to U+001F.
fn is_space(code_point: u32) -> bool {
    matches!(code_point, 0x1c..=0x1f) || char::from_u32(code_point).is_some_and(char::is_whitespace)
}
