//! A reader of one run's events, as Python holds it.

use crate::python::cpython::attached::AttachedMutex;
use crate::python::cpython::errors::reader_busy;
use crate::python::cpython::exit::{raise_interrupt, sleep_if_ended, wake_from_any_thread};
use crate::python::cpython::process::Owned;
use crate::python::cpython::wait::{number, seconds, wait};
use crate::{Closer, Frame, Lagged, Limits, Read, Subscription, TryReadError, WouldBlock};
use pyo3::exceptions::PyStopAsyncIteration;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyString, PyType};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// The most that one read takes from the log: a client that does not read holds no more.
pub(crate) const BATCH: Limits = Limits {
    events: 256,
    bytes: 64 << 10,
};

/// Looks up the Python objects that this file needs. To be called at import.
pub(crate) fn prepare(py: Python<'_>) -> PyResult<()> {
    lagged_class(py)?;
    decode(py)?;
    waiting(py, "next_event").map(drop)
}

fn lagged_class(py: Python<'_>) -> PyResult<&Bound<'_, PyType>> {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    CLASS.import(py, "llm_callback.exceptions", "SubscriberLagged")
}

fn lagged(py: Python<'_>, lagged: Lagged) -> PyErr {
    lagged_class(py)
        .and_then(|class| class.call1((lagged.next, lagged.oldest)))
        .map_or_else(|error| error, PyErr::from_value)
}

/// The `decode` of a `json.JSONDecoder`.
fn decode(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static DECODE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    Ok(DECODE
        .get_or_try_init(py, || {
            let decoder = py.import("json")?.getattr("JSONDecoder")?.call0()?;
            decoder.getattr("decode").map(Bound::unbind)
        })?
        .bind(py))
}

/// A coroutine function of `llm_callback._waiting`.
pub(crate) fn waiting<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    MODULE
        .get_or_try_init(py, || py.import("llm_callback._waiting").map(Bound::unbind))?
        .bind(py)
        .getattr(name)
}

/// An event as a dict.
pub(crate) fn event<'py>(py: Python<'py>, frame: &Frame) -> PyResult<Bound<'py, PyAny>> {
    let text = PyString::from_bytes(py, frame.json())?;
    decode(py)?.call1((text,))
}

/// A subscription, and the events that were read from it and not returned yet.
struct Place {
    /// None while a thread reads.
    subscription: Option<Subscription>,
    ready: VecDeque<Arc<Frame>>,
    /// Whether a coroutine waits.
    awaited: bool,
    /// How many events the reader was told to have lost, as of the end of the latest read.
    lost: u64,
}

/// A reader of one run's events. Made by :meth:`Run.subscribe`.
///
/// Iterating it, with `for` or `async for`, gives the events as dicts, in order, up to the terminal event: `{"id",
/// "run_id", "timestamp", "sequence", "source", "event", "data"}`. Each event is read once: :meth:`read` and
/// :meth:`sse` go on where the iteration stopped.
///
/// One thread or coroutine reads at a time; a second one gets :class:`ReaderBusy`. Any thread may call :meth:`close` at
/// any time. A subscription that is dropped, closed or cancelled leaves nothing behind. Threads wait without the GIL,
/// and Ctrl-C works; for a coroutine no thread waits. Reading raises :class:`SubscriberLagged` if the reader was too
/// slow and its `overflow` is `"disconnect"`.
#[pyclass(name = "Subscription", module = "llm_callback", frozen, weakref)]
pub(crate) struct PySubscription {
    /// The lock protects the place. Under it events are moved; nothing is read, waited for or dropped.
    place: Owned<AttachedMutex<Place>>,
    pub(crate) closer: Owned<Closer>,
}

/// A read that is in progress. When it ends, in whatever way, the subscription is put back.
struct Reading<'a, 'py> {
    py: Python<'py>,
    place: &'a AttachedMutex<Place>,
    subscription: Option<Subscription>,
}

impl Drop for Reading<'_, '_> {
    fn drop(&mut self) {
        let mut place = self.place.lock(self.py);
        place.lost = self.subscription.as_ref().map_or(0, Subscription::lost);
        place.subscription = self.subscription.take();
    }
}

impl PySubscription {
    pub(crate) fn new(subscription: Subscription) -> Self {
        let closer = subscription.closer();
        Self {
            place: Owned::new(AttachedMutex::new(Place {
                subscription: Some(subscription),
                ready: VecDeque::new(),
                awaited: false,
                lost: 0,
            })),
            closer: Owned::new(closer),
        }
    }

    fn place(&self) -> PyResult<&AttachedMutex<Place>> {
        self.place.get_or_raise("subscription")
    }

    /// Takes the subscription out of its place, to read. Raises `ReaderBusy` if another thread reads.
    fn reading<'a, 'py>(&'a self, py: Python<'py>) -> PyResult<Reading<'a, 'py>> {
        let place = self.place()?;
        let subscription = place.lock(py).subscription.take();
        if subscription.is_none() {
            return Err(is_being_read(py));
        }
        Ok(Reading {
            py,
            place,
            subscription,
        })
    }

    /// The state of the subscription. Does not disturb a thread that reads.
    fn state(&self, py: Python<'_>) -> PyResult<State> {
        if self.closer.get_or_raise("subscription")?.is_closed() {
            return Ok(State::Ended);
        }
        loop {
            {
                let place = self.place()?.lock(py);
                let ended = match &place.subscription {
                    None => return Ok(State::BeingRead),
                    Some(_) if !place.ready.is_empty() => return Ok(State::Open),
                    Some(subscription) => subscription.try_is_ended(),
                };
                match ended {
                    Ok(true) => return Ok(State::Ended),
                    Ok(false) => return Ok(State::Open),
                    Err(WouldBlock) => {}
                }
            }
            // The thread that has the log's lock holds it for one operation.
            py.detach(std::thread::yield_now);
        }
    }

    /// Calls `question` with the subscription, detached. Returns None if a thread reads at this moment.
    fn ask<R: Send>(
        &self,
        py: Python<'_>,
        question: impl FnOnce(&Subscription) -> R + Send,
    ) -> Option<R> {
        let reading = self.reading(py).ok()?;
        let subscription = reading.subscription.as_ref()?;
        Some(py.detach(|| question(subscription)))
    }

    /// Reads the events that are there. Waits for the first one, at most `timeout`.
    pub(crate) fn frames(
        &self,
        py: Python<'_>,
        most: Limits,
        timeout: Option<Duration>,
    ) -> PyResult<Read> {
        let max = most.events;
        let ready: Vec<_> = {
            let mut place = self.place()?.lock(py);
            let mut bytes = 0;
            let fits = |frame: &&Arc<Frame>| {
                bytes += frame.len();
                bytes <= most.bytes
            };
            let number = place.ready.iter().take(max).take_while(fits).count();
            let number = number.max(1).min(place.ready.len());
            place.ready.drain(..number).collect()
        };
        if !ready.is_empty() {
            return Ok(Read::Events(ready));
        }
        let mut reading = self.reading(py)?;
        let subscription = reading.subscription.as_mut().expect("taken above");
        // Events that are there are taken without giving up the GIL: an emitting thread might keep it for milliseconds.
        let read = match subscription.try_read(most) {
            Ok(Read::TimedOut) | Err(TryReadError::WouldBlock) => {
                wait(py, timeout, |slice| match subscription.read(most, slice) {
                    Ok(Read::TimedOut) => None,
                    read => Some(read),
                })
            }
            Ok(read) => Ok(Some(Ok(read))),
            Err(TryReadError::Lagged(lagged)) => Ok(Some(Err(lagged))),
        };
        drop(reading);
        match read?.unwrap_or(Ok(Read::TimedOut)) {
            // The run's first event and a gap may come on top of the number that was asked for.
            Ok(Read::Events(mut frames)) if frames.len() > max => {
                let rest = frames.split_off(max);
                self.keep(py, rest)?;
                Ok(Read::Events(frames))
            }
            read => read.map_err(|error| lagged(py, error)),
        }
    }

    /// Keeps events that were read and are not returned yet. If the subscription was closed meanwhile, drops them.
    fn keep(&self, py: Python<'_>, frames: Vec<Arc<Frame>>) -> PyResult<()> {
        let closer = self.closer.get_or_raise("subscription")?;
        let mut place = self.place()?.lock(py);
        // Asked under the lock: `close` first closes the subscription, and then takes the lock to clear the place.
        let dropped = if closer.is_closed() {
            frames
        } else {
            for frame in frames.into_iter().rev() {
                place.ready.push_front(frame);
            }
            Vec::new()
        };
        drop(place);
        drop(dropped);
        Ok(())
    }

    /// The next event. Waits for it, at most `timeout`.
    fn one(&self, py: Python<'_>, timeout: Option<Duration>) -> PyResult<One> {
        let next = self.place()?.lock(py).ready.pop_front();
        if let Some(frame) = next {
            return Ok(One::Event(frame));
        }
        Ok(match self.frames(py, BATCH, timeout)? {
            Read::Events(frames) => {
                let mut frames = frames.into_iter();
                let first = frames.next().expect("at least one");
                self.keep(py, frames.collect())?;
                One::Event(first)
            }
            Read::TimedOut => One::TimedOut,
            Read::Ended => One::Ended,
        })
    }
}

#[derive(PartialEq)]
enum State {
    Open,
    BeingRead,
    Ended,
}

fn is_being_read(py: Python<'_>) -> PyErr {
    let message = "another thread is reading this subscription: give each reader one of its own";
    reader_busy(py, message)
}

enum One {
    Event(Arc<Frame>),
    TimedOut,
    Ended,
}

pub(crate) fn no_more() -> PyErr {
    PyStopAsyncIteration::new_err(())
}

#[pymethods]
impl PySubscription {
    fn __iter__<'py>(slf: &Bound<'py, Self>) -> Bound<'py, Self> {
        slf.clone()
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        sleep_if_ended(|| match self.one(py, None)? {
            One::Event(frame) => event(py, &frame).map(Some),
            One::TimedOut | One::Ended => Ok(None),
        })
    }

    fn __aiter__<'py>(slf: &Bound<'py, Self>) -> Bound<'py, Self> {
        slf.clone()
    }

    fn __anext__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        waiting(slf.py(), "next_event")?.call1((slf,))
    }

    /// Return the next events, at most `max`, as a list of dicts. If there is none, wait for one, `timeout` seconds at
    /// most; without a timeout, until there is an event or the end.
    ///
    /// The list is empty on timeout and after the end: see :attr:`ended`.
    #[pyo3(signature = (max=None, timeout=None), text_signature = "($self, max=1000, timeout=None)")]
    fn read<'py>(
        &self,
        py: Python<'py>,
        max: Option<&Bound<'py, PyAny>>,
        timeout: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Vec<Bound<'py, PyAny>>> {
        sleep_if_ended(|| {
            let max = max.map_or(Ok(1000), |max| number("max", max, 1))?;
            let timeout = seconds("timeout", timeout)?;
            match self.frames(py, Limits::from(max), timeout)? {
                Read::Events(frames) => frames.iter().map(|frame| event(py, frame)).collect(),
                Read::TimedOut | Read::Ended => Ok(Vec::new()),
            }
        })
    }

    /// As :meth:`read`, for coroutines: no thread waits. Cancelling the coroutine loses no event.
    #[pyo3(signature = (max=None, timeout=None), text_signature = "($self, max=1000, timeout=None)")]
    fn aread<'py>(
        slf: &Bound<'py, Self>,
        max: Option<&Bound<'py, PyAny>>,
        timeout: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let max = max.map_or(Ok(1000), |max| number::<usize>("max", max, 1))?;
        let timeout = seconds("timeout", timeout)?.map(|timeout| timeout.as_secs_f64());
        waiting(slf.py(), "read")?.call1((slf, max, timeout))
    }

    /// Whether no more events will come: the terminal event was read, or the subscription is closed.
    #[getter]
    fn ended(&self, py: Python<'_>) -> PyResult<bool> {
        sleep_if_ended(|| Ok(self.state(py)? == State::Ended))
    }

    /// How many events this reader was told to have missed, by `stream.gap` events.
    #[getter]
    fn lost(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.place()?.lock(py).lost)
    }

    /// Stop reading. A read that waits ends, also in another thread or coroutine, and emitting threads no longer wait
    /// for this reader.
    ///
    /// Thread-safe; closing again does nothing. Events that were read from the log and not returned yet are dropped.
    pub(crate) fn close(&self, py: Python<'_>) -> PyResult<()> {
        sleep_if_ended(|| {
            let closer = self.closer.get_or_raise("subscription")?;
            py.detach(|| closer.close());
            let ready = std::mem::take(&mut self.place()?.lock(py).ready);
            drop(ready);
            raise_interrupt()
        })
    }

    fn __enter__<'py>(slf: &Bound<'py, Self>) -> Bound<'py, Self> {
        slf.clone()
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, py: Python<'_>, _error: &Bound<'_, PyAny>) -> PyResult<()> {
        self.close(py)
    }

    /// Whether the next event was read from the log already.
    #[getter]
    fn _has_ready(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(!self.place()?.lock(py).ready.is_empty())
    }

    /// The next event, None if there is none yet. Raises StopAsyncIteration at the end.
    fn _next_now<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        sleep_if_ended(|| match self.one(py, Some(Duration::ZERO))? {
            One::Event(frame) => event(py, &frame).map(Some),
            One::TimedOut => Ok(None),
            One::Ended => Err(no_more()),
        })
    }

    /// Calls `wake`, from any thread, when there is something to read. Returns False, and does not call it, if there is
    /// something now.
    fn _wake_when_readable(&self, py: Python<'_>, wake: Py<PyAny>) -> PyResult<bool> {
        sleep_if_ended(|| {
            let place = self.place()?;
            let is_awaited = {
                let mut place = place.lock(py);
                if !place.awaited && !place.ready.is_empty() {
                    return Ok(false);
                }
                std::mem::replace(&mut place.awaited, true)
            };
            if is_awaited {
                return Err(reader_busy(
                    py,
                    "another coroutine is reading this subscription: give each reader one of its own",
                ));
            }
            let wake = Box::new(move || wake_from_any_thread(wake));
            let waits = self.ask(py, |subscription| subscription.wake_when_readable(wake));
            if waits != Some(true) {
                place.lock(py).awaited = false;
            }
            waits.ok_or_else(|| is_being_read(py))
        })
    }

    /// Drops the wake that `_wake_when_readable` has stored.
    fn _forget_wake(&self, py: Python<'_>) -> PyResult<()> {
        sleep_if_ended(|| {
            let place = self.place()?;
            place.lock(py).awaited = false;
            // If a thread has begun to read meanwhile, the wake is left as it is: that read makes it needless.
            self.ask(py, Subscription::forget_wake);
            Ok(())
        })
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let state = match sleep_if_ended(|| self.state(py)) {
            Err(_) => "of another process",
            Ok(State::BeingRead) => "being read",
            Ok(State::Ended) => "ended",
            Ok(State::Open) => "open",
        };
        format!("<llm_callback.Subscription {state}>")
    }
}
