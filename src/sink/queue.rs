//! A queue that many threads push to and one thread takes from: crossbeam's channel, and in loom's models a mutex with a
//! condition.

use std::time::Instant;

/// What the taking thread got.
pub(super) enum Taken<T> {
    /// The oldest item.
    Item(T),
    /// Nothing came in time.
    TimedOut,
    /// Nothing will come: every [`Pusher`] is gone.
    Closed,
}

#[cfg(not(loom))]
pub(super) use real::{Pusher, Taker, queue};

#[cfg(loom)]
pub(super) use modelled::{Pusher, Taker, queue};

#[cfg(not(loom))]
mod real {
    use super::{Instant, Taken};
    use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

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
    }

    impl<T> Taker<T> {
        /// Takes the oldest item; waits for one until `end`, without an end for ever.
        pub(in crate::sink) fn take_until(&self, end: Option<Instant>) -> Taken<T> {
            let taken = match end {
                Some(end) => self.0.recv_deadline(end),
                None => self.0.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match taken {
                Ok(item) => Taken::Item(item),
                Err(RecvTimeoutError::Timeout) => Taken::TimedOut,
                Err(RecvTimeoutError::Disconnected) => Taken::Closed,
            }
        }

        pub(in crate::sink) fn is_empty(&self) -> bool {
            self.0.is_empty()
        }
    }
}

/// Loom has no clock: a wait ends when an item comes or the last pusher goes.
#[cfg(loom)]
mod modelled {
    use super::{Instant, Taken};
    use crate::sync::{Condvar, Mutex};
    use std::collections::VecDeque;
    use std::sync::Arc;

    struct Shared<T> {
        /// Protects the items, and whether somebody may still push. Under it: operations on these.
        state: Mutex<(VecDeque<T>, bool)>,
        changed: Condvar,
    }

    pub(in crate::sink) struct Pusher<T>(Arc<Shared<T>>);

    pub(in crate::sink) struct Taker<T>(Arc<Shared<T>>);

    pub(in crate::sink) fn queue<T>() -> (Pusher<T>, Taker<T>) {
        let shared = Arc::new(Shared {
            state: Mutex::new((VecDeque::new(), true)),
            changed: Condvar::new(),
        });
        (Pusher(Arc::clone(&shared)), Taker(shared))
    }

    impl<T> Pusher<T> {
        pub(in crate::sink) fn push(&self, item: T) -> bool {
            self.0.state.lock().0.push_back(item);
            self.0.changed.notify_all();
            true
        }
    }

    impl<T> Drop for Pusher<T> {
        fn drop(&mut self) {
            self.0.state.lock().1 = false;
            self.0.changed.notify_all();
        }
    }

    impl<T> Taker<T> {
        pub(in crate::sink) fn take_until(&self, end: Option<Instant>) -> Taken<T> {
            let mut state = self.0.state.lock();
            loop {
                if let Some(item) = state.0.pop_front() {
                    return Taken::Item(item);
                }
                if !state.1 {
                    return Taken::Closed;
                }
                if end.is_some_and(|end| end <= Instant::now()) {
                    return Taken::TimedOut;
                }
                self.0.changed.wait(&mut state);
            }
        }

        pub(in crate::sink) fn is_empty(&self) -> bool {
            self.0.state.lock().0.is_empty()
        }
    }
}
