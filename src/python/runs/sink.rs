//! Sinks of this process: a Python function that gets every run's events, and the handle of any sink.

use super::subscription::event;
use crate::python::cpython::arguments::{Arg, shown};
use crate::python::cpython::errors::thread_refused;
use crate::python::cpython::exit::{raise_interrupt, sleep_if_ended};
use crate::python::cpython::process::Owned;
use crate::python::cpython::wait::{number, seconds, wait};
use crate::python::shared::table::runs;
use crate::sink::Flushing;
use crate::threads::allow_signals;
use crate::{Batch, Hold, Refused, Sink, SinkHandle};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use std::io;
use std::time::{Duration, Instant};

/// How long a call waits for a sink, if `timeout` is not given.
const PATIENCE: Duration = Duration::from_secs(5);

/// The handle of a sink. Made by :func:`add_sink` and :func:`log_to_file`.
///
/// Dropping the handle leaves the sink as it is; used in `with`, leaving the block closes the sink. Thread-safe. In the
/// child of a fork its methods raise :class:`ForeignProcess`: the sink is the parent's.
#[pyclass(name = "SinkHandle", module = "llm_callback", frozen, weakref)]
pub(crate) struct PySinkHandle(Owned<SinkHandle>);

impl PySinkHandle {
    fn handle(&self) -> PyResult<&SinkHandle> {
        self.0.get_or_raise("sink")
    }
}

#[pymethods]
impl PySinkHandle {
    /// The sink's name, under which `stats()["sinks"]` has its counters.
    #[getter]
    fn name(&self) -> &str {
        self.0.anyway().name()
    }

    /// Return the sink's counters, as `stats()["sinks"]` has them; also after it was closed. Does not wait for the
    /// sink.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        sleep_if_ended(|| stats_of(py, self.handle()?))
    }

    /// Wait until the sink has taken every event that was emitted before this call, at most `timeout` seconds; None is
    /// no limit. Returns True once it has; False on timeout, if the sink is closed, and if the sink itself calls this.
    ///
    /// Blocks without the GIL; Ctrl-C works.
    #[pyo3(signature = (timeout=Arg::Missing), text_signature = "($self, timeout=5.0)")]
    fn flush(&self, py: Python<'_>, timeout: Arg<'_, '_>) -> PyResult<bool> {
        sleep_if_ended(|| {
            let handle = self.handle()?;
            let timeout = patience(timeout)?;
            let runs = runs(py);
            wait_for(py, timeout, |end| {
                runs.settle(end);
                vec![handle.flushing(end)]
            })
        })
    }

    /// Stop the sink once it has taken every event that was emitted before this call, at most after `timeout` seconds.
    /// Events that it has not taken by then count as dropped. Returns True if it has taken everything. The other sinks
    /// go on.
    ///
    /// Blocks without the GIL. Ctrl-C ends the waiting, and the sink goes on closing. Closing again waits again, and
    /// returns the same. If the sink itself calls this, it does not wait, and returns False.
    #[pyo3(signature = (timeout=Arg::Missing), text_signature = "($self, timeout=5.0)")]
    fn close(&self, py: Python<'_>, timeout: Arg<'_, '_>) -> PyResult<bool> {
        sleep_if_ended(|| {
            let handle = self.handle()?;
            let timeout = patience(timeout)?;
            let runs = runs(py);
            let stopping = py.detach(|| {
                let end = timeout.and_then(end_of);
                runs.remove_sink(handle);
                runs.settle(end);
                handle.stop(end)
            });
            let done = wait(py, timeout, |slice| {
                stopping.wait_until(slice.and_then(end_of))
            })?;
            Ok(done.unwrap_or_else(|| py.detach(|| stopping.give_up())))
        })
    }

    fn __enter__<'py>(slf: &Bound<'py, Self>) -> Bound<'py, Self> {
        slf.clone()
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, py: Python<'_>, _error: &Bound<'_, PyAny>) -> PyResult<()> {
        self.close(py, Arg::Missing).map(drop)
    }

    fn __repr__(&self) -> String {
        format!("<llm_callback.SinkHandle {}>", self.0.anyway().name())
    }
}

/// A time to wait. None, and a time beyond the clock's range, is no limit.
fn patience(timeout: Arg<'_, '_>) -> PyResult<Option<Duration>> {
    match timeout {
        Arg::Missing => Ok(Some(PATIENCE)),
        Arg::Given(timeout) => seconds("timeout", Some(&timeout)),
    }
}

fn end_of(timeout: Duration) -> Option<Instant> {
    Instant::now().checked_add(timeout)
}

/// Waits, in slices, until all sinks that `ask` asks have flushed. Returns false on timeout, and if a sink cannot
/// flush.
fn wait_for(
    py: Python<'_>,
    timeout: Option<Duration>,
    ask: impl FnOnce(Option<Instant>) -> Vec<Flushing> + Send,
) -> PyResult<bool> {
    let mut flushing = py.detach(|| ask(timeout.and_then(end_of)));
    let flushed = wait(py, timeout, |slice| {
        let end = slice.and_then(end_of);
        while let Some(sink) = flushing.last() {
            match sink.wait_until(end) {
                Some(true) => drop(flushing.pop()),
                settled => return settled,
            }
        }
        Some(true)
    });
    Ok(flushed?.unwrap_or(false))
}

/// Wait until every sink has taken every event that was emitted before this call, at most `timeout` seconds. Returns
/// True once all have; False on timeout, and if a sink calls this.
///
/// For a lifespan handler, or before a snapshot: runs go on meanwhile. Without sinks it returns True at once.
/// Thread-safe. Blocks without the GIL; Ctrl-C works.
#[pyfunction]
#[pyo3(signature = (timeout=Arg::Missing), text_signature = "(timeout=5.0)")]
pub(crate) fn flush(py: Python<'_>, timeout: Arg<'_, '_>) -> PyResult<bool> {
    sleep_if_ended(|| {
        let timeout = patience(timeout)?;
        let runs = runs(py);
        wait_for(py, timeout, |end| runs.flushing(end))
    })
}

/// Call `function` with the events of all runs that are opened from now on: lists of dicts, each list of one run.
///
/// A thread of the sink calls the function, one list after the other, at most 256 events at a time. Each run's events
/// come in order. Events that runs emit meanwhile wait in the runs' logs, so that a slow function delays nobody. If the
/// function raises, the same events come again, after a pause that grows up to two seconds; the exception is counted,
/// and logged once by the logger `llm_callback`. If a run's log evicts events before the function has taken them (see
/// :func:`configure`), a `stream.gap` event says so. The logs of ended runs are held for the function, at most
/// `hold_bytes` of events and for `hold_seconds` (None: for any time). Beyond that only their lifecycle events are
/// held, in 16 MiB more, and the others count as dropped.
///
/// `name` is the sink's key in `stats()["sinks"]`, which no other sink may have; if it is left out, the function's
/// qualified name. `function` must not be a coroutine function, and must not wait for :func:`flush`. At the
/// interpreter's exit it is called with the events that are left, for five seconds at most. Thread-safe; does not
/// block. Raises TypeError for an object that cannot be called, ValueError if there is a sink of that name, and
/// :class:`ThreadRefused` if the system refuses the sink's thread.
#[pyfunction]
#[pyo3(
    signature = (function, /, *, name=None, hold_bytes=Arg::Missing, hold_seconds=Arg::Missing),
    text_signature = "(function, /, *, name=None, hold_bytes=67108864, hold_seconds=300.0)"
)]
pub(crate) fn add_sink<'py>(
    py: Python<'py>,
    function: &Bound<'py, PyAny>,
    name: Option<String>,
    hold_bytes: Arg<'_, 'py>,
    hold_seconds: Arg<'_, 'py>,
) -> PyResult<Bound<'py, PySinkHandle>> {
    sleep_if_ended(|| {
        py.import("llm_callback._callables")?
            .getattr("check_callable")?
            .call1(("function", function))?;
        let name = match name {
            Some(name) => name,
            None => match function.getattr_opt("__qualname__")? {
                Some(name) => name.str()?.to_string_lossy().into_owned(),
                None => shown(function),
            },
        };
        let hold = hold(hold_bytes, hold_seconds)?;
        let sink = Function {
            name: name.clone(),
            callable: Some(function.clone().unbind()),
            is_reported: false,
        };
        let handle = start(py, &name, sink, hold)?;
        added(py, handle, || {
            format!("a sink named {name:?} is there already")
        })
    })
}

/// How long, and in how many bytes, the logs of ended runs are held. None is no limit of the time.
pub(crate) fn hold(bytes: Arg<'_, '_>, time: Arg<'_, '_>) -> PyResult<Hold> {
    let mut hold = Hold::default();
    if let Arg::Given(bytes) = bytes {
        hold.bytes = number("hold_bytes", &bytes, 0)?;
    }
    if let Arg::Given(time) = time {
        hold.time = seconds("hold_seconds", Some(&time))?.unwrap_or(Duration::MAX);
    }
    Ok(hold)
}

fn start(py: Python<'_>, name: &str, sink: impl Sink, hold: Hold) -> PyResult<SinkHandle> {
    SinkHandle::start(name, sink, hold).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => PyValueError::new_err(error.to_string()),
        _ => thread_refused(py, format!("the sink's thread cannot be started: {error}")),
    })
}

/// Adds a sink to those of this process. Raises ValueError, with the text of `is_there`, if one has its name already.
pub(crate) fn added(
    py: Python<'_>,
    handle: SinkHandle,
    is_there: impl FnOnce() -> String,
) -> PyResult<Bound<'_, PySinkHandle>> {
    let runs = runs(py);
    py.detach(|| runs.add_sink(handle.clone()).map_err(drop))
        .map_err(|()| PyValueError::new_err(is_there()))?;
    Bound::new(py, PySinkHandle(Owned::new(handle)))
}

/// A Python function as a sink.
struct Function {
    name: String,
    /// None while it is dropped.
    callable: Option<Py<PyAny>>,
    /// Whether an exception was logged since the last call that succeeded.
    is_reported: bool,
}

impl Sink for Function {
    fn run_thread(work: &mut (dyn FnMut() + Send)) {
        // The function may start programs, which would inherit the thread's signal mask.
        allow_signals();
        // One thread state of Python's for the whole thread. A thread state for each call would take a lock of
        // CPython's without the GIL each time, and a fork at that moment would leave the child waiting for that lock.
        let attached = sleep_if_ended(|| Python::try_attach(|py| py.detach(&mut *work)));
        if attached.is_none() {
            work();
        }
    }

    fn write(&mut self, batch: &Batch<'_>) -> Result<(), Refused> {
        let Some(callable) = &self.callable else {
            return Ok(());
        };
        let is_reported = self.is_reported;
        let called = sleep_if_ended(|| {
            Python::try_attach(|py| {
                let call = || {
                    let events = batch.frames().iter().map(|frame| event(py, frame));
                    let events = PyList::new(py, events.collect::<PyResult<Vec<_>>>()?)?;
                    callable.call1(py, (events,)).map(drop)?;
                    raise_interrupt()
                };
                call().map_err(|error| {
                    let told = io::Error::other(error.to_string());
                    if !is_reported && let Err(failed) = report(py, &self.name, &error) {
                        failed.write_unraisable(py, None);
                    }
                    told
                })
            })
        });
        // At the interpreter's exit no function can be called any more.
        let called = called.unwrap_or_else(|| Err(io::Error::other("the interpreter exits")));
        self.is_reported = called.is_err();
        called.map_err(Refused::from)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Logs what a sink's function has raised.
fn report(py: Python<'_>, name: &str, error: &PyErr) -> PyResult<()> {
    py.import("llm_callback._sinks")?
        .getattr("_report")?
        .call1((name, error.value(py)))
        .map(drop)
}

impl Drop for Function {
    fn drop(&mut self) {
        // Dropping the function may run Python code. At the interpreter's exit the function is leaked.
        sleep_if_ended(|| {
            Python::try_attach(|_| drop(self.callable.take()));
        });
        std::mem::forget(self.callable.take());
    }
}

/// Adds the counters of the sinks to the dict of `stats()`.
pub(crate) fn add_stats(py: Python<'_>, stats: &Bound<'_, PyDict>) -> PyResult<()> {
    let runs = runs(py);
    let handles = py.detach(|| runs.sinks());
    let sinks = PyDict::new(py);
    for handle in &handles {
        sinks.set_item(handle.name(), stats_of(py, handle)?)?;
    }
    stats.set_item("sinks", sinks)
}

fn stats_of<'py>(py: Python<'py>, handle: &SinkHandle) -> PyResult<Bound<'py, PyDict>> {
    let (counted, error) = py.detach(|| (handle.stats(), handle.last_error()));
    let sink = PyDict::new(py);
    sink.set_item("written", counted.written)?;
    sink.set_item("dropped", counted.dropped)?;
    sink.set_item("errors", counted.errors)?;
    sink.set_item("last_error", error)?;
    sink.set_item("waiting", counted.waiting)?;
    sink.set_item("waiting_bytes", counted.waiting_bytes)?;
    Ok(sink)
}
