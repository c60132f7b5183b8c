//! The handler of one run: it turns an agent framework's calls into events of that run's log.

use super::append::append;
use crate::python::cpython::encode;
use crate::python::cpython::exit::sleep_if_ended;
use crate::python::cpython::names::names;
use crate::python::cpython::process::Owned;
use crate::python::shared::attributes::{Attribute, Attributes, Inline};
use crate::python::shared::cancelled::raise_if_cancelled;
use crate::python::shared::counters::COUNTERS;
use crate::python::shared::data::{content, round_completed, tool_call};
use crate::python::shared::event;
use crate::python::shared::handler::{PyHandler, count_as_plain, zero};
use crate::python::shared::print::print;
use crate::python::shared::registered::{raise_if_checker_says_so, tell_registered};
use crate::python::shared::run_id::id_to_python;
use crate::python::shared::tool_calls::{ToolCall, new_tool_call};
use crate::python::shared::truth::truthy;
use crate::{BodyTemplate, EventKind, Run};
use pyo3::exceptions::{PyAttributeError, PyTypeError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyList, PyString};
use std::cell::Cell;
use std::sync::Arc;

thread_local! {
    /// The buffer that this thread's next event is written to.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The largest buffer that is kept for the next event, in bytes.
const LARGEST_BUFFER: usize = 1 << 16;

/// A handler that is bound to one run. Made by :meth:`Run.handler`.
///
/// Give it to a framework as its callback handler. Thread-safe, re-entrant. Its run and its `caller_context` cannot be
/// changed, and copying it returns the handler itself.
#[pyclass(name = "RunHandler", module = "llm_callback", extends = PyHandler, frozen)]
pub(crate) struct PyRunHandler {
    run: Owned<Arc<Run>>,
    /// The JSON of the source.
    source: Box<[u8]>,
    /// The encoded beginning of all `llm.stream` events.
    stream: BodyTemplate,
    /// The source, for the callback that is registered for the run.
    source_dict: Py<PyAny>,
}

impl PyRunHandler {
    pub(crate) fn make<'py>(
        py: Python<'py>,
        run: &Arc<Run>,
        caller_context: &Bound<'py, PyAny>,
        verbose: bool,
    ) -> PyResult<Bound<'py, Self>> {
        let source_dict = event::source_dict(caller_context)?;
        let mut source = Vec::with_capacity(160);
        encode::encode(&mut source, &source_dict)?;
        let inline = Inline {
            first_six: [
                caller_context.clone().unbind(),
                py.None(),
                PyBool::new(py, verbose).to_owned().into_any().unbind(),
                id_to_python(py, run.id())?.unbind(),
                zero(py)?.clone_ref(py),
                py.None(),
            ],
            buffer: None,
        };
        let base = PyHandler {
            attributes: Attributes::new(inline),
        };
        let this = Self {
            run: Owned::new(Arc::clone(run)),
            stream: BodyTemplate::new(EventKind::LLM_STREAM, &source),
            source: source.into(),
            source_dict: source_dict.unbind(),
        };
        Bound::new(py, PyClassInitializer::from(base).add_subclass(this))
    }
}

/// To be called at import.
pub(crate) fn prepare(py: Python<'_>) {
    count_as_plain(py.get_type::<PyRunHandler>());
}

/// One call.
struct Call<'a, 'py> {
    base: &'a Bound<'py, PyHandler>,
    handler: &'a PyRunHandler,
    run: &'a Run,
    kwargs: &'a Bound<'py, PyDict>,
}

/// Calls the handler with the framework's keyword arguments.
pub(crate) fn call<'py>(
    handler: &Bound<'py, PyRunHandler>,
    kwargs: Option<&Bound<'py, PyDict>>,
) -> PyResult<()> {
    sleep_if_ended(|| {
        let py = handler.py();
        let this = handler.get();
        // In the child of a fork the run belongs to the parent.
        let Some(run) = this.run.get() else {
            COUNTERS.count_no_callback();
            return Ok(());
        };
        raise_if_cancelled(py, run)?;
        raise_if_checker_says_so(py, run)?;
        let Some(kwargs) = kwargs else { return Ok(()) };
        let call = Call {
            base: handler.as_super(),
            handler: this,
            run,
            kwargs,
        };
        let delta = kwargs.get_item(names(py).delta.bind(py))?;
        match delta.as_ref().map(|delta| delta.cast_exact::<PyDict>()) {
            Some(Ok(delta)) if call.delta(delta)? => Ok(()),
            _ if call.carries_state()? => Ok(()),
            _ => call.given(),
        }
    })
}

impl<'py> Call<'_, 'py> {
    fn py(&self) -> Python<'py> {
        self.base.py()
    }

    /// A keyword argument; None if it is missing or false.
    fn argument(&self, name: &Py<PyString>) -> PyResult<Option<Bound<'py, PyAny>>> {
        truthy(self.kwargs.get_item(name.bind(self.py()))?)
    }

    /// Whether strands has merged its caller's `invocation_state` into the arguments. That may have any keys, and
    /// replaces arguments of the same names.
    fn carries_state(&self) -> PyResult<bool> {
        let has = |name: &Py<PyString>| self.kwargs.contains(name.bind(self.py()));
        Ok(has(&names(self.py()).event_loop_cycle_id)? || has(&names(self.py()).init_event_loop)?)
    }

    /// Reports a piece of the model's output, as strands sends it. Returns whether `delta` is such a piece.
    ///
    /// The keys of `delta` tell its kind: the other arguments may be the caller's, see `carries_state`.
    fn delta(&self, delta: &Bound<'py, PyDict>) -> PyResult<bool> {
        let py = self.py();
        let piece = |name: &Py<PyString>| delta.get_item(name.bind(py));
        if let Some(text) = piece(&names(py).text)? {
            let complete = self.argument(&names(py).complete)?.is_some();
            if complete && !self.carries_state()? {
                self.given()?;
            } else if text.is_truthy()? {
                self.text(&EventKind::LLM_STREAM, &text, "")?;
            }
            return Ok(true);
        }
        if let Some(reasoning) = piece(&names(py).reasoning_content)? {
            let text = match reasoning.cast::<PyDict>() {
                Ok(reasoning) => truthy(reasoning.get_item(names(py).text.bind(py))?)?,
                Err(_) => None,
            };
            if let Some(text) = text {
                self.text(&EventKind::LLM_REASONING, &text, "")?;
            }
            return Ok(true);
        }
        if !delta.contains(names(py).tool_use.bind(py))? {
            return Ok(false);
        }
        match self.argument(&names(py).current_tool_use)? {
            Some(tool) if tool.is_instance_of::<PyDict>() => self.tool(tool)?,
            _ => {}
        }
        Ok(true)
    }

    /// Reports the arguments that the original handler knows, and strands' whole messages.
    fn given(&self) -> PyResult<()> {
        let py = self.py();
        if let Some(reasoning) = self.argument(&names(py).reasoning_text)? {
            self.text(&EventKind::LLM_REASONING, &reasoning, "")?;
        }
        let complete = self.argument(&names(py).complete)?.is_some();
        let data = self.argument(&names(py).data)?;
        if let Some(text) = &data {
            self.text(
                &EventKind::LLM_STREAM,
                text,
                if complete { "\n" } else { "" },
            )?;
        }
        if let Some(tool) = self.argument(&names(py).current_tool_use)? {
            self.tool(tool)?;
        }
        if complete {
            if data.is_some() && self.is_verbose()? {
                print(names(py).newline.bind(py).as_any(), None)?;
            }
            self.completed()?;
        }
        match self.argument(&names(py).message)? {
            Some(message) => self.message(&message),
            None => Ok(()),
        }
    }

    /// Reports text. A verbose handler prints it, with `end` after it.
    fn text(&self, kind: &EventKind, text: &Bound<'py, PyAny>, end: &str) -> PyResult<()> {
        if self.is_verbose()? {
            print(text, Some(end))?;
        }
        let write = |out: &mut Vec<u8>| {
            out.extend_from_slice(br#"{"content":"#);
            match text.cast_exact::<PyString>() {
                Ok(text) => encode::string(out, text.as_borrowed())?,
                Err(_) => encode::encode(out, text)?,
            }
            out.push(b'}');
            Ok(())
        };
        self.say(kind, write, || Ok(content(text.clone())?.into_any()))
    }

    fn tool(&self, tool: Bound<'py, PyAny>) -> PyResult<()> {
        let Some(ToolCall { name, count }) = new_tool_call(self.base, tool)? else {
            return Ok(());
        };
        let data = tool_call(name, count)?.into_any();
        self.say(
            &EventKind::LLM_TOOL_CALL,
            |out| encode::encode(out, &data),
            || Ok(data.clone()),
        )
    }

    fn completed(&self) -> PyResult<()> {
        let data = round_completed(self.py())?.into_any();
        self.say(
            &EventKind::LLM_COMPLETED,
            |out| encode::encode(out, &data),
            || Ok(data.clone()),
        )
    }

    /// Reports a whole message: of the model, or with the results of tools.
    fn message(&self, message: &Bound<'py, PyAny>) -> PyResult<()> {
        let py = self.py();
        let Ok(message) = message.cast::<PyDict>() else {
            return Ok(());
        };
        let Some(role) = message.get_item(names(py).role.bind(py))? else {
            return Ok(());
        };
        if role.eq(names(py).assistant.bind(py))? {
            return self.completed();
        }
        let Some(content) = message.get_item(names(py).content.bind(py))? else {
            return Ok(());
        };
        let Ok(blocks) = content.cast::<PyList>() else {
            return Ok(());
        };
        for block in blocks {
            let result = match block.cast::<PyDict>() {
                Ok(block) => block.get_item(names(py).tool_result.bind(py))?,
                Err(_) => None,
            };
            if let Some(Ok(result)) = result.as_ref().map(|result| result.cast::<PyDict>()) {
                self.tool_result(result)?;
            }
        }
        Ok(())
    }

    fn tool_result(&self, result: &Bound<'py, PyDict>) -> PyResult<()> {
        let py = self.py();
        let data = PyDict::new(py);
        for (ours, theirs) in [
            (&names(py).tool_use_id, &names(py).tool_use_id_of_strands),
            (&names(py).status, &names(py).status),
            (&names(py).content, &names(py).content),
        ] {
            let value = result.get_item(theirs.bind(py))?;
            data.set_item(
                ours.bind(py),
                value.unwrap_or_else(|| py.None().into_bound(py)),
            )?;
        }
        // A tool may return anything. A result that cannot become JSON must not break the framework's loop.
        let mut json = Vec::with_capacity(256);
        if encode::encode(&mut json, &data).is_err() {
            data.set_item(names(py).content.bind(py), "<not representable as JSON>")?;
            json.clear();
            encode::encode(&mut json, &data)?;
        }
        let write = |out: &mut Vec<u8>| {
            out.extend_from_slice(&json);
            Ok(())
        };
        self.say(&EventKind::LLM_TOOL_RESULT, write, || Ok(data.into_any()))
    }

    /// Appends an event to the log, then hands it to the callback that is registered for the run. After the run's end
    /// the event is dropped, and the log counts it.
    fn say(
        &self,
        kind: &EventKind,
        write: impl FnOnce(&mut Vec<u8>) -> PyResult<()>,
        data: impl FnOnce() -> PyResult<Bound<'py, PyAny>>,
    ) -> PyResult<()> {
        let py = self.py();
        let other;
        let template = if *kind == EventKind::LLM_STREAM {
            &self.handler.stream
        } else {
            other = BodyTemplate::new(kind.clone(), &self.handler.source);
            &other
        };
        let body = template.fill(BUFFER.take(), write)?;
        let appended = append(py, self.run, &body)?;
        let buffer = body.into_buffer();
        if buffer.capacity() <= LARGEST_BUFFER {
            BUFFER.set(buffer);
        }
        if appended.is_none() {
            return Ok(());
        }
        tell_registered(py, self.run.id(), || {
            let source = self.handler.source_dict.bind(py).cast::<PyDict>()?.copy()?;
            event::of_words(source.as_any(), kind.category(), kind.action(), &data()?)
        })
    }

    fn is_verbose(&self) -> PyResult<bool> {
        PyHandler::own_of_plain(self.base, Attribute::Verbose)?.is_truthy()
    }
}

#[pymethods]
impl PyRunHandler {
    #[pyo3(signature = (**kwargs))]
    pub(crate) fn __call__(
        slf: &Bound<'_, Self>,
        kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<()> {
        call(slf, kwargs)
    }

    fn __setattr__(
        slf: &Bound<'_, Self>,
        name: &Bound<'_, PyString>,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        refuse_what_is_bound(name)?;
        PyHandler::__setattr__(slf.as_super(), name, value)
    }

    fn __delattr__(slf: &Bound<'_, Self>, name: &Bound<'_, PyString>) -> PyResult<()> {
        refuse_what_is_bound(name)?;
        PyHandler::__delattr__(slf.as_super(), name)
    }

    fn __copy__<'py>(slf: &Bound<'py, Self>) -> Bound<'py, Self> {
        slf.clone()
    }

    fn __deepcopy__<'py>(slf: &Bound<'py, Self>, _memo: &Bound<'py, PyAny>) -> Bound<'py, Self> {
        slf.clone()
    }

    #[expect(clippy::unused_self, reason = "a method of Python's protocol")]
    fn __reduce_ex__(&self, _protocol: i32) -> PyResult<()> {
        Err(PyTypeError::new_err(
            "the handler of a run cannot be pickled: its run is of this process",
        ))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.source_dict)
    }
}

fn refuse_what_is_bound(name: &Bound<'_, PyString>) -> PyResult<()> {
    let name = name.to_string_lossy();
    let bound = ["caller_context", "event_callback", "run_id", "_emit_event"];
    if bound.contains(&&*name) {
        return Err(PyAttributeError::new_err(format!(
            "{name} of a run's handler cannot be changed: make another handler, with run.handler(caller_context)"
        )));
    }
    Ok(())
}
