//! Who waits for a log's next event: threads, and asynchronous readers by their wakes.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// What an asynchronous reader leaves to be woken by: called once, on the thread that appends, with no lock held.
pub type Wake = Box<dyn FnOnce() + Send>;

/// The waiters of one log. Guarded by the log's lock.
#[derive(Default)]
pub(super) struct Waiters {
    /// How many threads wait on the log's condition.
    pub(super) threads: usize,
    /// By the subscription that left each.
    wakes: Vec<(u64, Wake)>,
}

/// The waiters that an event wakes, taken out of the log.
pub(super) struct Woken {
    pub(super) has_threads: bool,
    wakes: Vec<(u64, Wake)>,
}

impl Waiters {
    /// Keeps the wake of a subscription. Returns the one that it replaces, for the caller to drop with no lock held.
    pub(super) fn leave(&mut self, subscription: u64, wake: Wake) -> Option<Wake> {
        let replaced = self.remove(subscription);
        self.wakes.push((subscription, wake));
        replaced
    }

    /// Takes out the wake of a subscription.
    pub(super) fn remove(&mut self, subscription: u64) -> Option<Wake> {
        let mut wakes = self.wakes.iter();
        let place = wakes.position(|(id, _)| *id == subscription)?;
        Some(self.wakes.swap_remove(place).1)
    }

    /// Takes out all waiters. A thread that waits stays counted until it has come back.
    pub(super) fn take(&mut self) -> Woken {
        Woken {
            has_threads: self.threads > 0,
            wakes: std::mem::take(&mut self.wakes),
        }
    }

    /// Whether any asynchronous reader waits.
    #[cfg(all(test, not(loom)))]
    pub(super) fn has_wakes(&self) -> bool {
        !self.wakes.is_empty()
    }
}

impl Woken {
    /// Calls the wakes, with no lock held.
    pub(super) fn call(self) {
        for (_, wake) in self.wakes {
            call(wake);
        }
    }
}

/// Calls a wake. The panic hook has reported a wake that panics; the others are called all the same.
pub(super) fn call(wake: Wake) {
    let _ = catch_unwind(AssertUnwindSafe(wake));
}
