//! Values that belong to the process that made them. After a fork the child has copies, which must not be touched.
//!
//! The locks of a copy may be held by threads that the child does not have, and its readers and files are the parent's.

use super::errors::foreign_process;
use crate::sync::{AtomicU64, Ordering};
use pyo3::PyErr;
use pyo3::Python;
use std::mem::ManuallyDrop;

/// How many forks lie between this process and the one that imported this module. Relaxed: it changes in a fork's child
/// while that has one thread.
static FORKS: AtomicU64 = AtomicU64::new(0);

/// To be called in the child of a fork: all values made before belong to the parent.
pub(crate) fn has_forked() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// A value that the child of a fork neither uses nor drops.
pub(crate) struct Owned<T> {
    value: ManuallyDrop<T>,
    forks: u64,
}

impl<T> Owned<T> {
    pub(crate) fn new(value: T) -> Self {
        Self {
            value: ManuallyDrop::new(value),
            forks: FORKS.load(Ordering::Relaxed),
        }
    }

    /// The value, or None if it belongs to another process.
    #[inline]
    pub(crate) fn get(&self) -> Option<&T> {
        (self.forks == FORKS.load(Ordering::Relaxed)).then_some(&*self.value)
    }

    /// The value, or `ForeignProcess` if it belongs to another process. `what` names the value in the message.
    pub(crate) fn get_or_raise(&self, what: &str) -> Result<&T, PyErr> {
        self.get().ok_or_else(|| {
            let message = format!(
                "this {what} belongs to the process that this one was forked from: make one here"
            );
            Python::attach(|py| foreign_process(py, message))
        })
    }

    /// The value, even if it belongs to another process: only for operations that take no lock.
    #[inline]
    pub(crate) fn anyway(&self) -> &T {
        &self.value
    }
}

impl<T> Drop for Owned<T> {
    #[expect(unsafe_code, reason = "leaked where it is another process's")]
    fn drop(&mut self) {
        if self.get().is_some() {
            // SAFETY: the value is dropped here only, and nothing uses it afterwards.
            unsafe { ManuallyDrop::drop(&mut self.value) }
        }
    }
}
