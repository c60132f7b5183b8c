//! The registered callbacks and checkers, by run id. Any hashable object can be an id.

use super::cancelled;
use super::counters::COUNTERS;
use super::run_id::id_to_python;
use super::run_key::RunKey;
use super::truth::truthy;
use crate::python::cpython::exit::sleep_if_ended;
use crate::python::cpython::loaded::loaded;
use crate::sync::LazyLock;
use crate::{Registry, Run, RunId};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;

/// The entries of ids that are an int or a str, or equal to one.
static REGISTRY: LazyLock<Registry<Py<PyAny>>> = LazyLock::new(Registry::new);

/// Which of a run's two entries is meant.
#[derive(Clone, Copy)]
pub(crate) enum Entry {
    Callback,
    Checker,
}

impl Entry {
    /// The entries of all other ids, which the core has no type for.
    fn others(self, py: Python<'_>) -> &Bound<'_, PyDict> {
        static CALLBACKS: PyOnceLock<Py<PyDict>> = PyOnceLock::new();
        static CHECKERS: PyOnceLock<Py<PyDict>> = PyOnceLock::new();
        let dict = match self {
            Self::Callback => &CALLBACKS,
            Self::Checker => &CHECKERS,
        };
        dict.get_or_init(py, || PyDict::new(py).unbind()).bind(py)
    }

    /// The entry of the run `id`: registered under this id, or under the UUID whose text it is.
    #[inline]
    pub(crate) fn of<'py>(self, py: Python<'py>, id: &RunId) -> PyResult<Found<'py>> {
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
            // Another spelling of the UUID is the id of another run.
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
    pub(crate) fn get<'py>(
        self,
        py: Python<'py>,
        key: &RunKey<'py>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        match key {
            RunKey::Core(id) => Ok(self.in_core(py, id)),
            RunKey::Other(object) => self.others(py).get_item(object),
        }
    }

    /// Registers `value` under `key`; None removes the entry.
    pub(crate) fn set(
        self,
        py: Python<'_>,
        key: RunKey<'_>,
        value: Borrowed<'_, '_, PyAny>,
    ) -> PyResult<()> {
        match key {
            RunKey::Core(id) => {
                // The old entry is dropped after the lock is released: its destructor may use the registry.
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
    pub(crate) fn snapshot(self, py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
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

pub(crate) type Found<'py> = Option<Bound<'py, PyAny>>;

/// The callback and the checker registered under `key`; for an int or a str, as of one moment.
pub(crate) fn both<'py>(py: Python<'py>, key: &RunKey<'py>) -> PyResult<(Found<'py>, Found<'py>)> {
    let copy = |object: &Py<PyAny>| object.bind(py).clone();
    match key {
        RunKey::Core(id) => Ok(REGISTRY.with_both(id, |callback, checker| {
            (callback.map(copy), checker.map(copy))
        })),
        RunKey::Other(_) => Ok((Entry::Callback.get(py, key)?, Entry::Checker.get(py, key)?)),
    }
}

/// Makes the statics, which would otherwise be made at first use. To be called at import.
pub(crate) fn prepare(py: Python<'_>) {
    LazyLock::force(&REGISTRY);
    Entry::Callback.others(py);
    Entry::Checker.others(py);
}

/// How many callbacks and checkers are registered.
pub(crate) fn len(py: Python<'_>) -> (usize, usize) {
    let size = REGISTRY.size();
    (
        size.callbacks + Entry::Callback.others(py).len(),
        size.checkers + Entry::Checker.others(py).len(),
    )
}

/// Empties the registry: for the child of a fork, since the entries belong to its parent's runs.
///
/// The entries are leaked, not dropped: a destructor might close the parent's connections, or remove the parent's
/// files.
pub(crate) fn forget(py: Python<'_>) -> PyResult<()> {
    std::mem::forget(REGISTRY.take_all());
    for entry in [Entry::Callback, Entry::Checker] {
        std::mem::forget(entry.others(py).copy()?);
        entry.others(py).clear();
    }
    Ok(())
}

/// Asks the checker that is registered for a run, if there is one. Raises `RunCancelled` if it says that the run is
/// cancelled, unless the run has ended.
pub(crate) fn raise_if_checker_says_so(py: Python<'_>, run: &Run) -> PyResult<()> {
    if says_so(Entry::Checker.of(py, run.id())?)? && py.detach(|| run.times().finished.is_none()) {
        return Err(cancelled::by_checker(&id_to_python(py, run.id())?));
    }
    Ok(())
}

/// Hands an event to the callback that is registered for its run, if there is one. The run's log has the event already.
#[inline]
pub(crate) fn tell_registered<'py>(
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
pub(crate) fn says_so(checker: Option<Bound<'_, PyAny>>) -> PyResult<bool> {
    match truthy(checker)? {
        Some(checker) => checker.call0()?.is_truthy(),
        None => Ok(false),
    }
}

/// Hands the event to the callback, on this thread and with no lock held.
pub(crate) fn deliver<'py>(
    callback: &Bound<'py, PyAny>,
    event: &Bound<'py, PyDict>,
) -> PyResult<()> {
    COUNTERS.count_emitted();
    callback.call1((event,)).map(drop)
}
