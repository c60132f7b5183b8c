//! One call of a handler: ask whether the run is cancelled, choose the callback, report what the framework sent.
//!
//! The order of steps, and what each looks at, is the contract of the original module.

use super::attributes::{Attribute, Attributes, is_plain};
use super::cancelled::{self, run_cancelled};
use super::event::{self, Kind};
use super::exit::sleep_if_ended;
use super::handler::PyHandler;
use super::names::names;
use super::registry::{self, Entry};
use super::route::{self, Target};
use super::run_id::id_to_python;
use super::run_key::RunKey;
use super::stats::COUNTERS;
use super::{run_callback, table};
use crate::{Run, RunId};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyInt, PyList, PyString, string::PyStringData};

/// How many tokens a handler keeps where the framework never says `complete`; the older half goes.
const BUFFER_LIMIT: usize = 10_000;

/// Where a call's events go, chosen once.
enum Listener<'py> {
    Callback(Bound<'py, PyAny>),
    Nobody,
    /// Two answers to whose the events are.
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
pub(super) fn call<'py>(
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

/// Looks up what is needed from Python.
pub(super) fn prepare(py: Python<'_>) -> PyResult<()> {
    run_cancelled(py)?;
    iadd(py)?;
    builtins(py).map(drop)
}

fn builtins(py: Python<'_>) -> PyResult<&Bound<'_, PyModule>> {
    static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    Ok(MODULE
        .get_or_try_init(py, || py.import("builtins").map(Bound::unbind))?
        .bind(py))
}

fn iadd(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static FUNCTION: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    FUNCTION.import(py, "operator", "iadd")
}

/// Asks the open run's token and the run's checker, as far as there are any, and raises `RunCancelled` if one says
/// so.
pub(super) fn raise_if_cancelled<'py>(
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

/// Asks the checker that is registered for an open run, if there is one, and raises `RunCancelled` if it says so.
pub(super) fn raise_if_checker_says_so(py: Python<'_>, run: &Run) -> PyResult<()> {
    if says_so(Entry::Checker.of(py, run.id())?)? && py.detach(|| run.times().finished.is_none()) {
        return Err(cancelled::by_checker(&id_to_python(py, run.id())?));
    }
    Ok(())
}

/// Whether the open run of `key`, or its checker, says that it is cancelled.
fn is_cancelled(py: Python<'_>, key: &RunKey<'_>) -> PyResult<bool> {
    let by_token = table::live(py, key)?.is_some_and(|open| open.token().is_cancelled());
    Ok(by_token || says_so(Entry::Checker.get(py, key)?)?)
}

/// Hands an event that a run's log has to the callback that is registered for that run, if there is one.
#[inline]
pub(super) fn tell_registered<'py>(
    py: Python<'py>,
    run_id: &RunId,
    event: impl FnOnce() -> PyResult<Bound<'py, PyDict>>,
) -> PyResult<()> {
    match truthy(Entry::Callback.of(py, run_id)?)? {
        Some(callback) => deliver(&callback, &event()?),
        None => Ok(()),
    }
}

/// Whether the checker, if there is one, says that its run is cancelled.
pub(super) fn says_so(checker: Option<Bound<'_, PyAny>>) -> PyResult<bool> {
    match truthy(checker)? {
        Some(checker) => checker.call0()?.is_truthy(),
        None => Ok(false),
    }
}

pub(super) fn truthy(value: Option<Bound<'_, PyAny>>) -> PyResult<Option<Bound<'_, PyAny>>> {
    match value {
        Some(value) if value.is_truthy()? => Ok(Some(value)),
        _ => Ok(None),
    }
}

pub(super) struct Call<'a, 'py> {
    handler: &'a Bound<'py, PyHandler>,
    /// Whether the handler is of the class itself: a subclass may define an attribute or `_emit_event` anew.
    plain: bool,
}

/// Whom the events of this run go to, which no checker is asked about.
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

impl<'a, 'py> Call<'a, 'py> {
    /// A call of a handler whose attributes are its own.
    pub(super) fn plain(handler: &'a Bound<'py, PyHandler>) -> Self {
        Self {
            handler,
            plain: true,
        }
    }

    fn choose(&self) -> PyResult<Listener<'py>> {
        let py = self.handler.py();
        let given = self.get(Attribute::RunId)?;
        let mut run_id = given.clone();
        match route::resolve(&run_id)? {
            Target::Given => {}
            Target::Context(current) => run_id = current,
            Target::Disagreement(current) => {
                // One of the two is wrong, and whose cancel it is as uncertain as whose event: unless both say so.
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
            Some(key) => registry::both(py, key)?,
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
            // The checker may have given the handler another run.
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
            // A blank text is no event, and so not one that is dropped.
            None if !text.map_or(Ok(false), is_blank_text)? => {
                listener.count_dropped();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn tool(&self, listener: &Listener<'py>, tool: Bound<'py, PyAny>) -> PyResult<()> {
        let Some((name, count)) = self.new_tool(tool)? else {
            return Ok(());
        };
        if let Some(callback) = listener.callback_or_drop()? {
            self.emit(callback, Kind::ToolCall, &tool_call(name, count)?)?;
        }
        Ok(())
    }

    /// Counts and prints a tool call that was not seen before: its name and number.
    pub(super) fn new_tool(
        &self,
        tool: Bound<'py, PyAny>,
    ) -> PyResult<Option<(Bound<'py, PyAny>, Bound<'py, PyAny>)>> {
        let py = self.handler.py();
        let name = match tool.cast_exact::<PyDict>() {
            Ok(tool) => tool.get_item(names(py).name.bind(py))?,
            Err(_) => Some(tool.call_method1(names(py).get.bind(py), (names(py).name.bind(py),))?),
        };
        let Some(name) = truthy(name)? else {
            return Ok(None);
        };
        if !self.get(Attribute::PreviousToolUse)?.ne(&tool)? {
            return Ok(None);
        }
        self.set(Attribute::PreviousToolUse, tool)?;
        self.set(
            Attribute::ToolCount,
            increment(&self.get(Attribute::ToolCount)?)?,
        )?;
        let count = self.get(Attribute::ToolCount)?;
        if self.verbose()? {
            let line = names(py)
                .tool_line
                .bind(py)
                .call_method1(names(py).format.bind(py), (&count, &name))?;
            print(&line, None)?;
        }
        Ok(Some((name, count)))
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
            && Attributes::further(
                self.handler,
                names(self.handler.py()).emit_event.bind(self.handler.py()),
            )?
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

    fn get(&self, attribute: Attribute) -> PyResult<Bound<'py, PyAny>> {
        if self.plain {
            Attributes::get_plain(self.handler, attribute)
        } else {
            self.handler.getattr(attribute.name(self.handler.py()))
        }
    }

    fn set(&self, attribute: Attribute, value: Bound<'py, PyAny>) -> PyResult<()> {
        if self.plain {
            Attributes::set(self.handler, attribute, value)
        } else {
            self.handler
                .setattr(attribute.name(self.handler.py()), value)
        }
    }
}

/// Hands the event to the callback, on this thread and with no lock held.
pub(super) fn deliver<'py>(
    callback: &Bound<'py, PyAny>,
    event: &Bound<'py, PyDict>,
) -> PyResult<()> {
    COUNTERS.count_emitted();
    callback.call1((event,)).map(drop)
}

/// `count += 1`.
fn increment<'py>(count: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    if count.is_exact_instance_of::<PyInt>() {
        count.add(1)
    } else {
        iadd(count.py())?.call1((count, 1))
    }
}

/// The data of `llm.stream` and `llm.reasoning`.
pub(super) fn content(content: Bound<'_, PyAny>) -> PyResult<Bound<'_, PyDict>> {
    let py = content.py();
    let data = PyDict::new(py);
    data.set_item(names(py).content.bind(py), content)?;
    Ok(data)
}

/// The data of `llm.tool_call`.
pub(super) fn tool_call<'py>(
    name: Bound<'py, PyAny>,
    count: Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyDict>> {
    let py = name.py();
    let data = PyDict::new(py);
    data.set_item(names(py).tool_name.bind(py), name)?;
    data.set_item(names(py).tool_count.bind(py), count)?;
    Ok(data)
}

/// The data of `llm.completed`.
pub(super) fn round_completed(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let data = PyDict::new(py);
    data.set_item(
        names(py).message.bind(py),
        names(py).round_completed.bind(py),
    )?;
    Ok(data)
}

/// Whether `data.strip()` has nothing left.
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

/// Python's `print`, with everything that a host may have put in its place.
pub(super) fn print(value: &Bound<'_, PyAny>, end: Option<&str>) -> PyResult<()> {
    let py = value.py();
    let print = builtins(py)?.getattr(names(py).print.bind(py))?;
    let options = PyDict::new(py);
    if let Some(end) = end {
        options.set_item(names(py).end.bind(py), end)?;
    }
    print.call((value,), Some(&options)).map(drop)
}
