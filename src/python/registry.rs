//! The registry's Python face: callbacks and checkers by run id, of any hashable kind.

use super::arguments::{Arg, require};
use super::exit::sleep_if_ended;
use super::loaded::loaded;
use super::route;
use super::run_key::RunKey;
use super::stats::COUNTERS;
use super::{run_callback, table};
use crate::sync::LazyLock;
use crate::{Registry, RunId};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple};

/// Ids that are an int or a str, or equal to one.
static REGISTRY: LazyLock<Registry<Py<PyAny>>> = LazyLock::new(Registry::new);

/// Which of a run's two entries is meant.
#[derive(Clone, Copy)]
pub(super) enum Entry {
    Callback,
    Checker,
}

impl Entry {
    /// The entries of ids that the core has no type for.
    fn others(self, py: Python<'_>) -> &Bound<'_, PyDict> {
        static CALLBACKS: PyOnceLock<Py<PyDict>> = PyOnceLock::new();
        static CHECKERS: PyOnceLock<Py<PyDict>> = PyOnceLock::new();
        let dict = match self {
            Self::Callback => &CALLBACKS,
            Self::Checker => &CHECKERS,
        };
        dict.get_or_init(py, || PyDict::new(py).unbind()).bind(py)
    }

    /// What is registered for the run `id`: under this id, or under the UUID whose text it is.
    #[inline]
    pub(super) fn of<'py>(self, py: Python<'py>, id: &RunId) -> PyResult<Found<'py>> {
        if !REGISTRY.is_empty()
            && let found @ Some(_) = self.in_core(py, id)
        {
            return Ok(found);
        }
        if self.others(py).is_empty() {
            return Ok(None);
        }
        self.under_uuid(py, id)
    }

    #[cold]
    fn under_uuid<'py>(self, py: Python<'py>, id: &RunId) -> PyResult<Found<'py>> {
        let RunId::Str(text) = id else {
            return Ok(None);
        };
        let Some(module) = loaded(py, "uuid")? else {
            return Ok(None);
        };
        match module.getattr("UUID")?.call1((&**text,)) {
            // One that is spelt otherwise is another run.
            Ok(uuid) if uuid.str()? == **text => self.others(py).get_item(uuid),
            _ => Ok(None),
        }
    }

    fn in_core<'py>(self, py: Python<'py>, id: &RunId) -> Found<'py> {
        let copy = |object: &Py<PyAny>| object.bind(py).clone();
        match self {
            Self::Callback => REGISTRY.with_callback(id, copy),
            Self::Checker => REGISTRY.with_checker(id, copy),
        }
    }

    /// What is registered under `key`.
    pub(super) fn get<'py>(
        self,
        py: Python<'py>,
        key: &RunKey<'py>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        match key {
            RunKey::Core(id) => Ok(self.in_core(py, id)),
            RunKey::Other(object) => self.others(py).get_item(object),
        }
    }

    /// What stands for the open run of `key`; where there is none, what is registered.
    pub(super) fn find<'py>(self, py: Python<'py>, key: &RunKey<'py>) -> PyResult<Found<'py>> {
        match table::live(py, key)? {
            Some(open) => run_callback::of(py, self, open).map(Some),
            None => self.get(py, key),
        }
    }

    /// Registers `value` under `key`; None takes away what is there.
    pub(super) fn set(
        self,
        py: Python<'_>,
        key: RunKey<'_>,
        value: Borrowed<'_, '_, PyAny>,
    ) -> PyResult<()> {
        match key {
            RunKey::Core(id) => {
                // The entry that goes is dropped at the end, outside the lock: its destructor may come back in.
                let replaced = match (self, value.is_none()) {
                    (Self::Callback, true) => REGISTRY.remove_callback(&id),
                    (Self::Checker, true) => REGISTRY.remove_checker(&id),
                    (Self::Callback, false) => REGISTRY.set_callback(id, value.to_owned().unbind()),
                    (Self::Checker, false) => REGISTRY.set_checker(id, value.to_owned().unbind()),
                };
                drop(replaced);
                Ok(())
            }
            RunKey::Other(key) if value.is_none() => {
                let others = self.others(py);
                // pop() keeps the entry alive until it is out of the dict.
                others.call_method1("pop", (key, py.None())).map(drop)
            }
            RunKey::Other(key) => self.others(py).set_item(key, value),
        }
    }

    /// A new dict of all entries.
    fn snapshot(self, py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
        sleep_if_ended(|| {
            let snapshot = self.others(py).copy()?;
            let ids = match self {
                Self::Callback => REGISTRY.callback_ids(),
                Self::Checker => REGISTRY.checker_ids(),
            };
            for id in ids {
                let key = match &id {
                    RunId::Int(id) => id.into_pyobject(py)?.into_any(),
                    RunId::Str(id) => id.into_pyobject(py)?.into_any(),
                };
                if let Some(entry) = self.get(py, &RunKey::Core(id))? {
                    snapshot.set_item(key, entry)?;
                }
            }
            Ok(snapshot)
        })
    }
}

type Found<'py> = Option<Bound<'py, PyAny>>;

/// The callback and the checker registered under `key`, of one moment.
pub(super) fn both<'py>(py: Python<'py>, key: &RunKey<'py>) -> PyResult<(Found<'py>, Found<'py>)> {
    let copy = |object: &Py<PyAny>| object.bind(py).clone();
    match key {
        RunKey::Core(id) => Ok(REGISTRY.with_both(id, |callback, checker| {
            (callback.map(copy), checker.map(copy))
        })),
        RunKey::Other(_) => Ok((Entry::Callback.get(py, key)?, Entry::Checker.get(py, key)?)),
    }
}

/// Makes what is otherwise made at first use.
pub(super) fn prepare(py: Python<'_>) {
    LazyLock::force(&REGISTRY);
    Entry::Callback.others(py);
    Entry::Checker.others(py);
}

/// How many callbacks and checkers are registered.
pub(super) fn len(py: Python<'_>) -> (usize, usize) {
    let size = REGISTRY.size();
    (
        size.callbacks + Entry::Callback.others(py).len(),
        size.checkers + Entry::Checker.others(py).len(),
    )
}

/// Forgets everything: for the child of a fork, whose runs are its parent's.
///
/// Nothing is dropped: a destructor would say good-bye to the parent's peers, or remove the parent's files.
pub(super) fn forget(py: Python<'_>) -> PyResult<()> {
    std::mem::forget(REGISTRY.take_all());
    for entry in [Entry::Callback, Entry::Checker] {
        std::mem::forget(entry.others(py).copy()?);
        entry.others(py).clear();
    }
    Ok(())
}

/// Send the events of the run `run_id` to `callback`; None removes the run's callback.
///
/// `run_id` is any hashable, and equal ids are one run, as in a dict. `callback` is called as `callback(event)` on
/// the thread that emits, with no lock held: it may register, remove, emit or block, and what it raises passes
/// through to whoever emits. Anything but None is stored, and fails, if it does, when it is called.
///
/// Thread-safe, re-entrant, does not block. Raises TypeError for an unhashable `run_id`.
#[pyfunction]
#[pyo3(signature = (run_id=Arg::Missing, callback=Arg::Missing, *rest), text_signature = "(run_id, callback)")]
pub(super) fn register_event_callback<'py>(
    py: Python<'py>,
    run_id: Arg<'_, 'py>,
    callback: Arg<'_, 'py>,
    rest: &Bound<'py, PyTuple>,
) -> PyResult<()> {
    let given = [("run_id", run_id), ("callback", callback)];
    let [run_id, callback] = require(py, "register_event_callback", None, given, &[], rest, None)?;
    sleep_if_ended(|| Entry::Callback.set(py, RunKey::new(&run_id)?, callback))
}

/// Return the callback of the run `run_id`, or None.
///
/// With `configure(route="context")` the run of the calling context is preferred, where one is known.
/// Thread-safe, re-entrant, does not block. Raises TypeError for an unhashable `run_id`.
#[pyfunction]
#[pyo3(signature = (run_id=Arg::Missing, *rest), text_signature = "(run_id)")]
pub(super) fn get_event_callback<'py>(
    py: Python<'py>,
    run_id: Arg<'_, 'py>,
    rest: &Bound<'py, PyTuple>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let [run_id] = require(
        py,
        "get_event_callback",
        None,
        [("run_id", run_id)],
        &[],
        rest,
        None,
    )?;
    look_up(&run_id, Entry::Callback)
}

/// Ask `checker` whether the run `run_id` is cancelled; None removes the run's checker.
///
/// `checker` is called without arguments before each event of the run, on the thread that emits, with no lock
/// held. A truthy answer makes the handler raise :class:`RunCancelled`; what it raises itself passes through.
///
/// Thread-safe, re-entrant, does not block. Raises TypeError for an unhashable `run_id`.
#[pyfunction]
#[pyo3(signature = (run_id=Arg::Missing, checker=Arg::Missing, *rest), text_signature = "(run_id, checker)")]
pub(super) fn register_cancellation_checker<'py>(
    py: Python<'py>,
    run_id: Arg<'_, 'py>,
    checker: Arg<'_, 'py>,
    rest: &Bound<'py, PyTuple>,
) -> PyResult<()> {
    let given = [("run_id", run_id), ("checker", checker)];
    let [run_id, checker] = require(
        py,
        "register_cancellation_checker",
        None,
        given,
        &[],
        rest,
        None,
    )?;
    sleep_if_ended(|| Entry::Checker.set(py, RunKey::new(&run_id)?, checker))
}

/// Return the cancellation checker of the run `run_id`, or None.
///
/// With `configure(route="context")` the run of the calling context is preferred, where one is known.
/// Thread-safe, re-entrant, does not block. Raises TypeError for an unhashable `run_id`.
#[pyfunction]
#[pyo3(signature = (run_id=Arg::Missing, *rest), text_signature = "(run_id)")]
pub(super) fn get_cancellation_checker<'py>(
    py: Python<'py>,
    run_id: Arg<'_, 'py>,
    rest: &Bound<'py, PyTuple>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let [run_id] = require(
        py,
        "get_cancellation_checker",
        None,
        [("run_id", run_id)],
        &[],
        rest,
        None,
    )?;
    look_up(&run_id, Entry::Checker)
}

/// Return a new dict of all registered callbacks by run id.
#[pyfunction(name = "_callbacks")]
pub(super) fn callbacks(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    Entry::Callback.snapshot(py)
}

/// Return a new dict of all registered checkers by run id.
#[pyfunction(name = "_checkers")]
pub(super) fn checkers(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    Entry::Checker.snapshot(py)
}

/// What is registered for the run that a caller means by `run_id`.
fn look_up<'py>(run_id: &Bound<'py, PyAny>, entry: Entry) -> PyResult<Option<Bound<'py, PyAny>>> {
    sleep_if_ended(|| {
        let py = run_id.py();
        // The id that was passed must be hashable also where another one is preferred.
        let key = RunKey::new(run_id)?;
        match route::resolve(run_id)? {
            route::Target::Given => entry.find(py, &key),
            route::Target::Context(run_id) => entry.find(py, &RunKey::new(&run_id)?),
            route::Target::Disagreement(_) => {
                // The event that the callback is wanted for will not be emitted.
                if let Entry::Callback = entry {
                    COUNTERS.count_route();
                }
                Ok(None)
            }
        }
    })
}
