//! The only file that names locks and atomics, so that loom can put its own in their place.
//!
//! The mutexes and conditions are the standard library's. `parking_lot` keeps its waiters in one table for the whole
//! process: a fork while another thread is in that table leaves the child with an entry that is locked for ever. Its
//! read-write lock guards the registry, where lookups only read. The Python binding enters the registry with the GIL
//! held, if there is a GIL: then no thread waits for that lock.

pub(crate) use mutex::{Condvar, Mutex, MutexGuard};
#[cfg(not(loom))]
pub(crate) use parking_lot::RwLock;
// Not modelled: its value is made once and depends on nothing else.
pub(crate) use std::sync::OnceLock;
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
#[cfg(feature = "python")]
pub(crate) use std::sync::{LazyLock, atomic::AtomicU8};
#[cfg(not(loom))]
pub(crate) use std::thread::yield_now;

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
#[cfg(loom)]
pub(crate) use loom::thread::yield_now;
#[cfg(loom)]
pub(crate) use modelled::RwLock;

/// The standard library's mutex and condition, or loom's, with the interface of `parking_lot`. No lock is ever
/// poisoned: if something may panic under one of our locks, the protected value is whole at that moment.
mod mutex {
    #[cfg(loom)]
    use loom::sync as inner;
    use std::ops::{Deref, DerefMut};
    #[cfg(not(loom))]
    use std::sync as inner;
    use std::sync::{PoisonError, TryLockError};
    use std::time::Instant;

    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(inner::Mutex<T>);

    impl<T> Mutex<T> {
        #[cfg(not(loom))]
        pub(crate) const fn new(value: T) -> Self {
            Self(inner::Mutex::new(value))
        }

        #[cfg(loom)]
        pub(crate) fn new(value: T) -> Self {
            Self(inner::Mutex::new(value))
        }

        #[inline]
        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard(Some(self.0.lock().unwrap_or_else(PoisonError::into_inner)))
        }

        #[inline]
        pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            match self.0.try_lock() {
                Ok(guard) => Some(MutexGuard(Some(guard))),
                Err(TryLockError::Poisoned(poisoned)) => {
                    Some(MutexGuard(Some(poisoned.into_inner())))
                }
                Err(TryLockError::WouldBlock) => None,
            }
        }
    }

    #[cfg(Py_GIL_DISABLED)]
    impl<T> Mutex<T> {
        pub(crate) fn get_mut(&mut self) -> &mut T {
            self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
        }
    }

    /// Empty only inside a wait, which takes the guard by value and gives it back.
    #[derive(Debug)]
    pub(crate) struct MutexGuard<'a, T>(Option<inner::MutexGuard<'a, T>>);

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        #[inline]
        fn deref(&self) -> &T {
            self.0.as_ref().expect("held outside a wait")
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        #[inline]
        fn deref_mut(&mut self) -> &mut T {
            self.0.as_mut().expect("held outside a wait")
        }
    }

    /// The waits may end for no reason, so ask again in a loop.
    #[derive(Debug, Default)]
    pub(crate) struct Condvar(inner::Condvar);

    impl Condvar {
        #[cfg(not(loom))]
        pub(crate) const fn new() -> Self {
            Self(inner::Condvar::new())
        }

        #[cfg(loom)]
        pub(crate) fn new() -> Self {
            Self(inner::Condvar::new())
        }

        pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            let held = guard.0.take().expect("held outside a wait");
            let held = self.0.wait(held).unwrap_or_else(PoisonError::into_inner);
            guard.0 = Some(held);
        }

        /// Whether the time is over.
        #[cfg(not(loom))]
        pub(crate) fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, end: Instant) -> bool {
            let left = end.saturating_duration_since(Instant::now());
            let held = guard.0.take().expect("held outside a wait");
            let (held, result) = self
                .0
                .wait_timeout(held, left)
                .unwrap_or_else(PoisonError::into_inner);
            guard.0 = Some(held);
            result.timed_out()
        }

        /// Loom has no clock: no wait times out.
        #[cfg(loom)]
        pub(crate) fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, _end: Instant) -> bool {
            self.wait(guard);
            false
        }

        #[cfg_attr(loom, expect(dead_code, reason = "no model has a timer"))]
        pub(crate) fn notify_one(&self) {
            self.0.notify_one();
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }
    }
}

#[cfg(loom)]
mod modelled {
    use loom::sync::{RwLock as Inner, RwLockReadGuard, RwLockWriteGuard};

    /// Why the lock is never found poisoned.
    const NOT_POISONED: &str = "a model that panics has already failed";

    /// Loom's lock with `parking_lot`'s face.
    #[derive(Debug, Default)]
    pub(crate) struct RwLock<T>(Inner<T>);

    impl<T> RwLock<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(Inner::new(value))
        }

        pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().expect(NOT_POISONED)
        }

        pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().expect(NOT_POISONED)
        }
    }
}
