//! A value that is set once, and that threads wait for.

use crate::sync::{Condvar, Mutex};
use std::time::Instant;

/// Waits until somebody sets the value, at most until `end`.
pub(super) fn wait_until_set(
    value: &Mutex<Option<bool>>,
    is_set: &Condvar,
    end: Option<Instant>,
) -> Option<bool> {
    let mut value = value.lock();
    while value.is_none() {
        match end {
            None => is_set.wait(&mut value),
            Some(end) if end <= Instant::now() => break,
            Some(end) => drop(is_set.wait_until(&mut value, end)),
        }
    }
    *value
}
