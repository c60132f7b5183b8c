//! The table of this process's runs.

use super::attached::AttachedMutex;
use super::run_id::id_of_key;
use super::run_key::RunKey;
use crate::sync::LazyLock;
use crate::{Run, Runs};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::sync::Arc;

/// The lock protects which table is the process's. Under it the table's reference is copied or put in place.
static RUNS: LazyLock<AttachedMutex<Runs>> = LazyLock::new(|| AttachedMutex::new(Runs::default()));

pub(super) fn runs(py: Python<'_>) -> Runs {
    RUNS.lock(py).clone()
}

/// Makes what is otherwise made at first use.
pub(super) fn prepare() {
    LazyLock::force(&RUNS);
}

/// In the child of a fork: a table of its own. The parent's stays as it is, for its locks may be held for ever.
pub(super) fn forget(py: Python<'_>) {
    let parents = std::mem::take(&mut *RUNS.lock(py));
    std::mem::forget(parents);
}

/// The live run of `key`, if there is one. Hardly a cost where no run is open.
#[inline]
pub(super) fn live(py: Python<'_>, key: &RunKey<'_>) -> PyResult<Option<Arc<Run>>> {
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
        Some(found) => found,
        None => py.detach(|| table.live(&id)),
    })
}

/// Adds what the table counts to the dict of `stats()`.
pub(super) fn add_stats(py: Python<'_>, stats: &Bound<'_, PyDict>) -> PyResult<()> {
    let table = runs(py);
    let counted = py.detach(|| table.stats());
    let runs = PyDict::new(py);
    runs.set_item("live", counted.live)?;
    runs.set_item("finished", counted.finished)?;
    runs.set_item("opened", counted.opened)?;
    runs.set_item("late", counted.late)?;
    stats.set_item("runs", runs)
}
