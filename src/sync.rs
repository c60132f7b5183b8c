//! The only file that names locks and atomics, so that loom can put its own in their place.

#[cfg(not(loom))]
pub(crate) use parking_lot::{Mutex, MutexGuard, RwLock};
#[cfg(not(loom))]
pub(crate) use real::Condvar;
// Not modelled: what is kept in one is made once and depends on nothing else.
pub(crate) use std::sync::OnceLock;
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
#[cfg(feature = "python")]
pub(crate) use std::sync::{LazyLock, atomic::AtomicU8};

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
#[cfg(loom)]
pub(crate) use modelled::{Condvar, Mutex, MutexGuard, RwLock};

#[cfg(not(loom))]
mod real {
    use parking_lot::{Condvar as Inner, MutexGuard};
    use std::time::Instant;

    /// `parking_lot`'s condition variable; the waits may end for no reason, so ask again in a loop.
    #[derive(Debug, Default)]
    pub(crate) struct Condvar(Inner);

    impl Condvar {
        pub(crate) const fn new() -> Self {
            Self(Inner::new())
        }

        pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            self.0.wait(guard);
        }

        /// Whether the time is over.
        pub(crate) fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, end: Instant) -> bool {
            self.0.wait_until(guard, end).timed_out()
        }

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
    use loom::sync::{
        Condvar as InnerCondvar, Mutex as InnerMutex, MutexGuard as InnerGuard, RwLock as Inner,
        RwLockReadGuard, RwLockWriteGuard,
    };
    use std::ops::{Deref, DerefMut};
    use std::time::Instant;

    /// Why no lock is ever found poisoned.
    const NOT_POISONED: &str = "a model that panics has already failed";

    /// Loom's lock with `parking_lot`'s face: no poisoning, since a model that panics has already failed.
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

    /// Loom's mutex with `parking_lot`'s face.
    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(InnerMutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(InnerMutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard(Some(self.0.lock().expect(NOT_POISONED)))
        }

        pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock().ok().map(|guard| MutexGuard(Some(guard)))
        }
    }

    /// Empty only inside a wait, which takes loom's guard by value and gives it back.
    #[derive(Debug)]
    pub(crate) struct MutexGuard<'a, T>(Option<InnerGuard<'a, T>>);

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.0.as_ref().expect("held outside a wait")
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.0.as_mut().expect("held outside a wait")
        }
    }

    /// Loom's condition variable with `parking_lot`'s face. Loom has no clock: no wait times out.
    #[derive(Debug)]
    pub(crate) struct Condvar(InnerCondvar);

    impl Condvar {
        pub(crate) fn new() -> Self {
            Self(InnerCondvar::new())
        }

        pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            let held = guard.0.take().expect("held outside a wait");
            guard.0 = Some(self.0.wait(held).expect(NOT_POISONED));
        }

        pub(crate) fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, _end: Instant) -> bool {
            self.wait(guard);
            false
        }

        #[expect(
            dead_code,
            reason = "no model has a timer; what comes next may need it"
        )]
        pub(crate) fn notify_one(&self) {
            self.0.notify_one();
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }
    }
}
