//! A queue that many threads push to and one thread takes from: crossbeam's channel, and in loom's models a mutex with
//! a condition.

use std::time::Instant;

#[cfg(not(loom))]
pub(super) use real::{Pusher, Taker, queue};

#[cfg(loom)]
pub(super) use modelled::{Pusher, Taker, queue};

#[cfg(not(loom))]
mod real {
    use super::Instant;
    use crossbeam_channel::{Receiver, Sender, unbounded};

    pub(in crate::sink) struct Pusher<T>(Sender<T>);

    pub(in crate::sink) struct Taker<T>(Receiver<T>);

    pub(in crate::sink) fn queue<T>() -> (Pusher<T>, Taker<T>) {
        let (pusher, taker) = unbounded();
        (Pusher(pusher), Taker(taker))
    }

    impl<T> Pusher<T> {
        /// Adds an item. Never blocks. Returns false, and drops the item, if the taking thread is gone.
        pub(in crate::sink) fn push(&self, item: T) -> bool {
            self.0.send(item).is_ok()
        }

        pub(in crate::sink) fn len(&self) -> usize {
            self.0.len()
        }
    }

    impl<T> Taker<T> {
        /// Takes the oldest item; waits for one until `end`, without an end for ever. None: nothing came in time.
        pub(in crate::sink) fn take_until(&self, end: Option<Instant>) -> Option<T> {
            match end {
                Some(end) => self.0.recv_deadline(end).ok(),
                None => self.0.recv().ok(),
            }
        }

        pub(in crate::sink) fn is_empty(&self) -> bool {
            self.0.is_empty()
        }
    }
}

/// Loom has no clock: a wait ends when an item comes.
#[cfg(loom)]
mod modelled {
    use super::Instant;
    use crate::sync::{Condvar, Mutex};
    use std::collections::VecDeque;
    use std::sync::Arc;

    struct Shared<T> {
        /// Protects the items. Under it: operations on these.
        items: Mutex<VecDeque<T>>,
        pushed: Condvar,
    }

    pub(in crate::sink) struct Pusher<T>(Arc<Shared<T>>);

    pub(in crate::sink) struct Taker<T>(Arc<Shared<T>>);

    pub(in crate::sink) fn queue<T>() -> (Pusher<T>, Taker<T>) {
        let shared = Arc::new(Shared {
            items: Mutex::new(VecDeque::new()),
            pushed: Condvar::new(),
        });
        (Pusher(Arc::clone(&shared)), Taker(shared))
    }

    impl<T> Pusher<T> {
        pub(in crate::sink) fn push(&self, item: T) -> bool {
            self.0.items.lock().push_back(item);
            self.0.pushed.notify_all();
            true
        }

        pub(in crate::sink) fn len(&self) -> usize {
            self.0.items.lock().len()
        }
    }

    impl<T> Taker<T> {
        pub(in crate::sink) fn take_until(&self, end: Option<Instant>) -> Option<T> {
            let mut items = self.0.items.lock();
            loop {
                if let Some(item) = items.pop_front() {
                    return Some(item);
                }
                if end.is_some_and(|end| end <= Instant::now()) {
                    return None;
                }
                self.0.pushed.wait(&mut items);
            }
        }

        pub(in crate::sink) fn is_empty(&self) -> bool {
            self.0.items.lock().is_empty()
        }
    }
}
