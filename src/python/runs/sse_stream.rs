//! A reader of one run's events, as the bytes that SSE sends.

use super::subscription::{BATCH, PySubscription, no_more, waiting};
use crate::python::cpython::attached::AttachedMutex;
use crate::python::cpython::exit::sleep_if_ended;
use crate::python::cpython::wait::number;
use crate::{Frame, Read, sse};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::sync::Arc;
use std::time::Duration;

#[pymethods]
impl PySubscription {
    /// Return an iterator, for `for` and `async for`, over the bytes that SSE sends. Each item has as many whole frames
    /// as are there, up to about 64 KiB; a larger frame is sent whole.
    ///
    /// If no event comes for `heartbeat` seconds, the item is a comment, which keeps the connection open and reveals
    /// clients that are gone; with None there are no comments. If `retry` is given, the first line tells the client
    /// after how many milliseconds to connect again. The iteration ends after the run's last event. The iterator's
    /// `close` closes the subscription. The format is that of the WHATWG's HTML standard, section 9.2. Raises TypeError
    /// or ValueError for invalid arguments.
    #[pyo3(
        signature = (heartbeat=Some(15.0), *, retry=None),
        text_signature = "($self, heartbeat=15.0, *, retry=None)"
    )]
    fn sse<'py>(
        slf: &Bound<'py, Self>,
        heartbeat: Option<f64>,
        retry: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PySse>> {
        let retry = retry.map(|retry| number("retry", retry, 0)).transpose()?;
        if let Some(seconds) = heartbeat.filter(|seconds| seconds.is_nan() || *seconds <= 0.0) {
            return Err(PyValueError::new_err(format!(
                "heartbeat must be a number of seconds above 0, or None, not {seconds}"
            )));
        }
        let heartbeat = heartbeat.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let sse = PySse {
            subscription: slf.clone().unbind(),
            heartbeat,
            first: AttachedMutex::new(retry.map(sse::retry)),
        };
        Bound::new(slf.py(), sse)
    }
}

/// The bytes that SSE sends. Made by :meth:`Subscription.sse`.
#[pyclass(name = "SseStream", module = "llm_callback", frozen, weakref)]
pub(crate) struct PySse {
    subscription: Py<PySubscription>,
    heartbeat: Option<Duration>,
    /// The bytes to send before all others. The lock protects them while they are taken.
    first: AttachedMutex<Option<Vec<u8>>>,
}

impl PySse {
    /// Reads what to send next. Waits for it, at most `timeout`; None is no limit.
    fn chunk<'py>(&self, py: Python<'py>, timeout: Option<Duration>) -> PyResult<Chunk<'py>> {
        let first = self.first.lock(py).take();
        let closer = self
            .subscription
            .get()
            .closer
            .get_or_raise("subscription")?;
        if let Some(first) = first.filter(|_| !closer.is_closed()) {
            return Ok(Chunk::Bytes(PyBytes::new(py, &first)));
        }
        Ok(match self.subscription.get().frames(py, BATCH, timeout)? {
            Read::Events(frames) => Chunk::Bytes(join(py, &frames)?),
            Read::TimedOut => Chunk::TimedOut,
            Read::Ended => Chunk::Ended,
        })
    }
}

enum Chunk<'py> {
    Bytes(Bound<'py, PyBytes>),
    TimedOut,
    Ended,
}

/// The bytes of all frames, joined.
fn join<'py>(py: Python<'py>, frames: &[Arc<Frame>]) -> PyResult<Bound<'py, PyBytes>> {
    let len = frames.iter().map(|frame| frame.sse().len()).sum();
    PyBytes::new_with(py, len, |mut rest| {
        for frame in frames {
            let (place, after) = rest.split_at_mut(frame.sse().len());
            place.copy_from_slice(frame.sse());
            rest = after;
        }
        Ok(())
    })
}

fn heartbeat(py: Python<'_>) -> Bound<'_, PyBytes> {
    PyBytes::new(py, sse::HEARTBEAT)
}

#[pymethods]
impl PySse {
    fn __iter__<'py>(slf: &Bound<'py, Self>) -> Bound<'py, Self> {
        slf.clone()
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        sleep_if_ended(|| {
            Ok(match self.chunk(py, self.heartbeat)? {
                Chunk::Bytes(bytes) => Some(bytes),
                Chunk::TimedOut => Some(heartbeat(py)),
                Chunk::Ended => None,
            })
        })
    }

    fn __aiter__<'py>(slf: &Bound<'py, Self>) -> Bound<'py, Self> {
        slf.clone()
    }

    fn __anext__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let this = slf.get();
        let seconds = this.heartbeat.map(|after| after.as_secs_f64());
        waiting(py, "next_chunk")?.call1((slf, &this.subscription, seconds, heartbeat(py)))
    }

    /// Close the subscription. Thread-safe; closing again does nothing.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.subscription.get().close(py)
    }

    /// As :meth:`close`, for `contextlib.aclosing`.
    fn aclose<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        waiting(slf.py(), "close")?.call1((slf,))
    }

    /// Return the bytes to send next, None if there are none yet. Raises StopAsyncIteration at the end.
    fn _next_now<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        sleep_if_ended(|| match self.chunk(py, Some(Duration::ZERO))? {
            Chunk::Bytes(bytes) => Ok(Some(bytes)),
            Chunk::TimedOut => Ok(None),
            Chunk::Ended => Err(no_more()),
        })
    }
}
