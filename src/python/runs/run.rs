//! One run, as Python holds it.

use super::emit::emit;
use super::ending::{cancellation, describe, details, ending};
use super::kind::{dotted_kind, kind};
use super::read_options;
use super::run_handler::PyRunHandler;
use super::subscription::PySubscription;
use super::token::{PyToken, kind_and_reason};
use crate::python::cpython::arguments::{Arg, shown};
use crate::python::cpython::encode;
use crate::python::cpython::errors::run_ended;
use crate::python::cpython::exit::{raise_interrupt, sleep_if_ended};
use crate::python::cpython::process::Owned;
use crate::python::cpython::wait::{seconds, unix_time, wait};
use crate::python::shared::cancelled::raise_if_cancelled;
use crate::python::shared::event;
use crate::python::shared::run_id::id_to_python;
use crate::sync::OnceLock;
use crate::{Run, RunState};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use pyo3::{PyTraverseError, PyVisit};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// One run: its events, its readers, its token and its end. Made by :func:`open_run`; found by :func:`get_run`.
///
/// Leaving a `with` block normally completes the run. An exception fails it, a cancellation cancels it, and both are
/// re-raised. A run that has ended stays as it ended, and can still be read.
///
/// Thread-safe, re-entrant: all methods may be called from any thread, at any time, also after the end. Two objects
/// of one run are equal. In the child of a fork the methods raise :class:`ForeignProcess`.
#[pyclass(name = "Run", module = "llm_callback", frozen, weakref)]
pub(crate) struct PyRun {
    run: Owned<Arc<Run>>,
    /// Made at first use. Not a `PyOnceLock`: the garbage collector must read it, and has no `Python` token.
    token: OnceLock<Py<PyToken>>,
}

impl PyRun {
    pub(crate) fn new(run: Arc<Run>) -> Self {
        Self {
            run: Owned::new(run),
            token: OnceLock::new(),
        }
    }

    pub(crate) fn run(&self) -> PyResult<&Arc<Run>> {
        self.run.get_or_raise("run")
    }
}

#[pymethods]
impl PyRun {
    /// The run's id: an int or a str.
    #[getter]
    fn run_id<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        id_to_python(py, self.run.anyway().id())
    }

    /// The id of the run that this run is a part of, or None.
    #[getter]
    fn parent_run_id<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let parent = self.run.anyway().parent();
        parent.map(|id| id_to_python(py, id)).transpose()
    }

    /// 1 for the first run of this id, 2 for the next one, and so on, as far as earlier runs are remembered.
    #[getter]
    fn generation(&self) -> u64 {
        self.run.anyway().generation()
    }

    /// `pending`, `running`, `completed`, `failed` or `cancelled`. The last three are as in the terminal event.
    #[getter]
    fn state(&self, py: Python<'_>) -> PyResult<&'static str> {
        sleep_if_ended(|| {
            let run = self.run()?;
            Ok(py.detach(|| run.state()).as_str())
        })
    }

    /// The run's :class:`CancelToken`. Give it, or children of it, to the code that works for the run.
    #[getter]
    fn token(&self, py: Python<'_>) -> PyResult<Py<PyToken>> {
        if let Some(token) = self.token.get() {
            return Ok(token.clone_ref(py));
        }
        let made = sleep_if_ended(|| PyToken::wrap(py, self.run()?.token().clone()))?;
        // If two threads make a token at once, both get the first one.
        Ok(self.token.get_or_init(|| made).clone_ref(py))
    }

    /// The token has a `__dict__`, which may refer to the run. No `__clear__` here: clearing the `__dict__` breaks the
    /// cycle.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(self.token.get())
    }

    /// When the run was asked to stop, in seconds since 1970; None if it was not.
    #[getter]
    fn cancel_requested_at(&self, py: Python<'_>) -> PyResult<Option<f64>> {
        let run = self.run()?;
        Ok(unix_time(py.detach(|| run.times().requested)))
    }

    /// When the run's code was first told to stop, in seconds since 1970; None if it was not.
    #[getter]
    fn cancel_acknowledged_at(&self, py: Python<'_>) -> PyResult<Option<f64>> {
        let run = self.run()?;
        Ok(unix_time(py.detach(|| run.times().acknowledged)))
    }

    /// When the run ended, in seconds since 1970; None until then.
    #[getter]
    fn finished_at(&self, py: Python<'_>) -> PyResult<Option<f64>> {
        let run = self.run()?;
        Ok(unix_time(py.detach(|| run.times().finished)))
    }

    /// The id of the latest event, or None.
    #[getter]
    fn last_event_id(&self, py: Python<'_>) -> PyResult<Option<String>> {
        let run = self.run()?;
        Ok(py.detach(|| run.log().last_id()).map(|id| id.to_string()))
    }

    /// Begin a run that was opened with `pending=True`: its first event is `lifecycle.started`.
    ///
    /// Returns True if the run is running now. Returns False if it has ended, or was asked to stop: then it never
    /// starts.
    fn start(&self, py: Python<'_>) -> PyResult<bool> {
        sleep_if_ended(|| {
            let run = self.run()?;
            let is_running = py.detach(|| run.start());
            raise_interrupt().map(|()| is_running)
        })
    }

    /// Append an event to the run's log. Returns the event's id, or None if the run has ended: then the event is
    /// dropped, and counted.
    ///
    /// `category` and `action` are members of :class:`EventCategory` and :class:`EventAction`, or their values. A kind
    /// of your own is one dotted text in their place, and `data` comes next: `emit("billing.charged", {"cents": 5})`. A
    /// terminal kind, such as `lifecycle.completed`, ends the run as that kind says, whatever the run's token says;
    /// :meth:`complete` and :meth:`fail` look at the token.
    ///
    /// `source` is a :class:`CallerContext` or its dict, None for the run itself. `data` is written as JSON at once; a
    /// value that JSON has no form for becomes `str(value)`. A callback that is registered for the run is called after
    /// the log has the event.
    ///
    /// Blocks, without the GIL, only for a reader with `overflow="block"`. Raises ValueError for an unknown kind, and
    /// for data that contain themselves.
    #[pyo3(
        signature = (category, action=Arg::Missing, data=Arg::Missing, source=Arg::Missing),
        text_signature = "($self, category, action=None, data=None, source=None)"
    )]
    fn emit<'py>(
        &self,
        py: Python<'py>,
        category: &Bound<'py, PyAny>,
        action: Arg<'_, 'py>,
        data: Arg<'_, 'py>,
        source: Arg<'_, 'py>,
    ) -> PyResult<Option<String>> {
        use Arg::{Given, Missing};

        sleep_if_ended(|| {
            let run = self.run()?;
            let (kind, data, source) = match (dotted_kind(category)?, action, data, source) {
                (Some(kind), Missing, data, source) => (kind, data, source),
                (Some(kind), Given(first), _, _) if first.is_instance_of::<PyString>() => {
                    return Err(PyTypeError::new_err(format!(
                        "emit({:?}, …) takes data next, not the text {}: a dotted kind has its action in it",
                        kind.to_string(),
                        shown(&first)
                    )));
                }
                // All are one place earlier than after a category and an action: emit(kind, data, source).
                (Some(kind), data, source, Missing) | (Some(kind), data, Missing, source) => {
                    (kind, data, source)
                }
                (Some(_), Given(_), Given(_), Given(_)) => {
                    return Err(PyTypeError::new_err(
                        "emit() takes a dotted kind, data and a source: nothing beside them",
                    ));
                }
                (None, Given(action), data, source) => (kind(category, &action)?, data, source),
                (None, Missing, _, _) => {
                    return Err(PyTypeError::new_err(
                        "emit() takes a category and an action, or one dotted text: emit(\"billing.charged\", data)",
                    ));
                }
            };
            let source = match source {
                Given(source) if !source.is_none() => event::source_dict(&source)?,
                _ => py.None().into_bound(py),
            };
            match data {
                Given(data) if !data.is_none() => emit(py, run, &kind, &source, &data),
                _ => emit(py, run, &kind, &source, &PyDict::new(py)),
            }
        })
    }

    /// Return an :class:`LLMCallbackHandler` that emits into this run, with `caller_context` as the source.
    ///
    /// The handler copies `caller_context` now; a later change does not show. It keeps no tokens. Besides text,
    /// reasoning and tool calls it reports `llm.completed` for each complete message of the model, and
    /// `llm.tool_result` for each result of a tool. Unlike the original's handler it also reports text that is only
    /// white space, so that the text is whole. Entries of a caller's `invocation_state` make no events, except for
    /// entries named `delta` or `current_tool_use`: these replace strands' arguments of the same names.
    ///
    /// The handler raises :class:`RunCancelled` once the run is cancelled, also after that end, so that the code that
    /// still works for the run stops. After any other end its events are dropped, and counted.
    #[pyo3(signature = (caller_context, *, verbose=false))]
    fn handler<'py>(
        slf: &Bound<'py, Self>,
        caller_context: &Bound<'py, PyAny>,
        verbose: bool,
    ) -> PyResult<Bound<'py, PyRunHandler>> {
        sleep_if_ended(|| PyRunHandler::make(slf.py(), slf.get().run()?, caller_context, verbose))
    }

    /// Return a :class:`Subscription` to the run's events.
    ///
    /// `after` says where it begins: None with the next event, `"start"` with the oldest event that is held, an id
    /// (`"<ms>-<sequence>"`, as in SSE's `Last-Event-ID`) or a sequence number after that event. Held events are
    /// replayed, then the subscription is live: nothing is missed and nothing comes twice. If the log does not hold the
    /// event that comes next, a `stream.gap` event says so, and the oldest held event follows.
    ///
    /// `overflow` says what happens to a slow reader, when the log (10 000 events, 16 MiB) evicts events that it has
    /// not read. `"disconnect"`: reading raises :class:`SubscriberLagged`. `"gap"`: a `stream.gap` event comes, then
    /// the oldest held event. `"coalesce"`: consecutive text of one source that is read at once comes as one event;
    /// then as `"gap"`. `"block"`: the emitting thread waits, `patience` seconds at most; then as `"gap"`.
    #[pyo3(
        signature = (after=None, *, overflow="disconnect", patience=None),
        text_signature = "($self, after=None, *, overflow='disconnect', patience=1.0)"
    )]
    fn subscribe<'py>(
        &self,
        py: Python<'py>,
        after: Option<&Bound<'py, PyAny>>,
        overflow: &str,
        patience: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PySubscription>> {
        sleep_if_ended(|| {
            let run = self.run()?;
            let start = read_options::start(after)?;
            let overflow = read_options::overflow(overflow, patience)?;
            let subscription = py.detach(|| run.subscribe(&start, overflow));
            Bound::new(py, PySubscription::new(subscription))
        })
    }

    /// Ask this run, and all runs below it, to stop. Returns True if this call was the first to ask, and the run has
    /// not ended. See :func:`cancel_run`.
    #[pyo3(signature = (reason=None, *, kind="user"), text_signature = "($self, reason='', *, kind='user')")]
    fn cancel<'py>(
        &self,
        py: Python<'py>,
        reason: Option<&Bound<'py, PyString>>,
        kind: &str,
    ) -> PyResult<bool> {
        sleep_if_ended(|| {
            let run = self.run()?;
            let empty = PyString::new(py, "");
            let (kind, reason) = kind_and_reason(kind, reason.unwrap_or(&empty))?;
            let was_first = py.detach(|| run.cancel(kind, &reason));
            raise_interrupt().map(|()| was_first)
        })
    }

    /// Put the keywords into the data of the run's terminal event, however the run ends.
    ///
    /// For values that are known before the end, such as the tokens used so far. Of two keywords of one name the later
    /// stays; the fields of the end itself, such as `error` or `reason`, stay in any case. A terminal event of
    /// :meth:`emit` gets no annotations. Returns False, and counts the annotation as late, if the run ends or has
    /// ended. That is so in an `on_cancel` callback if the cancel ends a pending run, or comes from a shutdown. All
    /// annotations of a run hold at most 64 KiB of JSON. Thread-safe; does not block. Raises ValueError for data that
    /// contain themselves, or do not fit; then no keyword is added.
    #[pyo3(signature = (**data))]
    fn annotate(&self, py: Python<'_>, data: Option<&Bound<'_, PyDict>>) -> PyResult<bool> {
        sleep_if_ended(|| {
            let run = self.run()?;
            let data = encode::keywords(data)?;
            py.detach(|| run.annotate(&*data))
                .map_err(|error| PyValueError::new_err(error.to_string()))
        })
    }

    /// End the run as completed. The keywords are the data of its terminal event, `lifecycle.completed`. Returns True
    /// if this call ended the run.
    ///
    /// A run that was asked to stop ends as cancelled, with the same data beside the reason.
    #[pyo3(signature = (**data))]
    fn complete(&self, py: Python<'_>, data: Option<&Bound<'_, PyDict>>) -> PyResult<bool> {
        sleep_if_ended(|| {
            let run = self.run()?;
            let data = encode::keywords(data)?;
            ending(py, run, || py.detach(|| run.complete(&*data)))?
                .map_err(|error| PyValueError::new_err(error.to_string()))
        })
    }

    /// End the run with an error. Its terminal event is `lifecycle.failed {error, details}`. Returns True if this call
    /// ended the run.
    ///
    /// `error` is an exception or a text. `details`, if left out, are the exception's class, or empty. A run that was
    /// asked to stop ends as cancelled instead.
    #[pyo3(signature = (error, details=None, **data))]
    fn fail<'py>(
        &self,
        py: Python<'py>,
        error: &Bound<'py, PyAny>,
        details: Option<&Bound<'py, PyAny>>,
        data: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<bool> {
        sleep_if_ended(|| {
            let fields = PyDict::new(py);
            fields.set_item("error", describe(error)?)?;
            match details {
                Some(details) => fields.set_item("details", details)?,
                // The class of a text tells nothing.
                None if error.is_instance_of::<PyString>() => fields.set_item("details", "")?,
                None => fields.set_item("details", error.get_type().name()?)?,
            }
            if let Some(data) = data {
                fields.update(data.as_mapping())?;
            }
            self.fail_with(py, &fields)
        })
    }

    /// Wait for the run's end, at most `timeout` seconds. Returns True once the run has ended, False on timeout.
    ///
    /// Blocks without the GIL; Ctrl-C works.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<bool> {
        sleep_if_ended(|| {
            let run = self.run()?;
            let timeout = seconds("timeout", timeout)?;
            let ended = wait(py, timeout, |slice| run.wait(slice).then_some(()))?;
            Ok(ended.is_some())
        })
    }

    /// Return `function` wrapped so that this run is the current one while it runs. See :func:`bind`.
    fn bind<'py>(
        slf: &Bound<'py, Self>,
        function: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        sleep_if_ended(|| {
            py.import("llm_callback.context")?
                .getattr("_bind_to")?
                .call1((function, slf.get().run_id(py)?, slf))
        })
    }

    fn __enter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, Self>> {
        sleep_if_ended(|| {
            let py = slf.py();
            let run = slf.get().run()?;
            // A Ctrl-C that comes while readers are woken is raised by the first call in the block, or by its end. If
            // it were raised here, nothing would end the run.
            let state = py.detach(|| match run.state() {
                RunState::Pending if run.start() => RunState::Running,
                _ => run.state(),
            });
            match state {
                RunState::Pending | RunState::Running => return Ok(slf.clone()),
                RunState::Cancelled => raise_if_cancelled(py, run)?,
                RunState::Completed | RunState::Failed => {}
            }
            let message = format!("run {} has ended: open another one", run.id());
            Err(run_ended(py, message))
        })
    }

    #[pyo3(signature = (kind, error, traceback, /))]
    fn __exit__<'py>(
        &self,
        py: Python<'py>,
        kind: &Bound<'py, PyAny>,
        error: &Bound<'py, PyAny>,
        traceback: &Bound<'py, PyAny>,
    ) -> PyResult<bool> {
        // `error` has both.
        let _ = (kind, traceback);
        sleep_if_ended(|| {
            // The child of a fork leaves its parent's run as it is.
            let Some(run) = self.run.get() else {
                return Ok(false);
            };
            if error.is_none() {
                let data = encode::keywords(None)?;
                let _ = ending(py, run, || py.detach(|| run.complete(&*data)))?;
            } else if let Some((kind, reason)) = cancellation(run, error) {
                let cancel = || {
                    run.cancel(kind, reason);
                    run.finish_cancelled()
                };
                ending(py, run, || py.detach(cancel))?;
            } else {
                let fields = PyDict::new(py);
                fields.set_item("error", describe(error)?)?;
                fields.set_item("details", details(error)?)?;
                self.fail_with(py, &fields)?;
            }
            Ok(false)
        })
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        let other = other.cast::<Self>();
        other.is_ok_and(|other| Arc::ptr_eq(self.run.anyway(), other.get().run.anyway()))
    }

    fn __hash__(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        Arc::as_ptr(self.run.anyway()).hash(&mut hasher);
        hasher.finish()
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let id = self.run_id(py)?.repr()?;
        let state = match self.run.get() {
            Some(run) => py.detach(|| run.state()).as_str(),
            None => "of another process",
        };
        Ok(format!(
            "<llm_callback.Run {id} generation {} {state}>",
            self.generation()
        ))
    }
}

impl PyRun {
    fn fail_with(&self, py: Python<'_>, fields: &Bound<'_, PyDict>) -> PyResult<bool> {
        let run = self.run()?;
        let data = encode::to_raw(fields)?;
        ending(py, run, || py.detach(|| run.fail_with(&*data)))?
            .map_err(|error| PyValueError::new_err(error.to_string()))
    }
}
