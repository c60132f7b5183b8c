//! The table of this process's runs.

use super::run_id::{id_of_key, id_to_python};
use super::run_key::RunKey;
use crate::python::cpython::attached::AttachedMutex;
use crate::python::cpython::wait::unix_time;
use crate::sync::LazyLock;
use crate::{Options, Run, Runs, WouldBlock};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::sync::Arc;

/// The table of this process. The lock protects the reference, which is only copied or replaced under it.
static RUNS: LazyLock<AttachedMutex<Runs>> = LazyLock::new(|| AttachedMutex::new(Runs::default()));

/// The table's options, for the child of a fork, which must not look into its parent's table. The lock protects them
/// while they are copied.
static OPTIONS: LazyLock<AttachedMutex<Options>> =
    LazyLock::new(|| AttachedMutex::new(Options::default()));

pub(crate) fn runs(py: Python<'_>) -> Runs {
    RUNS.lock(py).clone()
}

/// Makes the statics, which would otherwise be made at first use. To be called at import.
pub(crate) fn prepare() {
    LazyLock::force(&RUNS);
    LazyLock::force(&OPTIONS);
}

/// To be called in the child of a fork: gives the child a new table. The parent's table is leaked, because its locks
/// may be held for ever.
pub(crate) fn forget(py: Python<'_>) {
    let own = Runs::new(options(py));
    let parents = std::mem::replace(&mut *RUNS.lock(py), own);
    std::mem::forget(parents);
}

/// How much this process's table keeps.
pub(crate) fn options(py: Python<'_>) -> Options {
    *OPTIONS.lock(py)
}

/// Changes how much this process's table keeps.
pub(crate) fn configure(py: Python<'_>, change: impl Fn(&mut Options) + Send + Sync) {
    change(&mut OPTIONS.lock(py));
    let runs = runs(py);
    py.detach(|| runs.configure(&change));
}

/// The live run of `key`, if there is one. Costs almost nothing while no run is open.
#[inline]
pub(crate) fn live(py: Python<'_>, key: &RunKey<'_>) -> PyResult<Option<Arc<Run>>> {
    let table = {
        let table = RUNS.lock(py);
        if !table.has_live() {
            return Ok(None);
        }
        table.clone()
    };
    let Some(id) = id_of_key(key)? else {
        return Ok(None);
    };
    Ok(match table.try_live(&id) {
        Ok(found) => found,
        Err(WouldBlock) => py.detach(|| table.live(&id)),
    })
}

/// Adds what the table counts to the dict of `stats()`.
pub(crate) fn add_stats(py: Python<'_>, stats: &Bound<'_, PyDict>) -> PyResult<()> {
    let table = runs(py);
    let (counted, reading) = py.detach(|| (table.stats(), table.readers()));
    let runs = PyDict::new(py);
    runs.set_item("live", counted.live)?;
    let oldest = counted.oldest.map(|run| {
        let oldest = PyDict::new(py);
        oldest.set_item("run_id", id_to_python(py, &run.id)?)?;
        oldest.set_item("opened_at", unix_time(Some(run.opened_at)))?;
        PyResult::Ok(oldest)
    });
    runs.set_item("oldest", oldest.transpose()?)?;
    runs.set_item("finished", counted.finished)?;
    runs.set_item("finished_bytes", counted.finished_bytes)?;
    runs.set_item("opened", counted.opened)?;
    runs.set_item("late", counted.late)?;
    stats.set_item("runs", runs)?;
    let readers = PyDict::new(py);
    readers.set_item("open", reading.open)?;
    readers.set_item("lag", reading.lag)?;
    stats.set_item("readers", readers)
}
