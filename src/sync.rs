//! The only file that names locks and atomics, so that loom can put its own in their place.

#[cfg(not(loom))]
pub(crate) use parking_lot::RwLock;
#[cfg(Py_GIL_DISABLED)]
pub(crate) use parking_lot::{Mutex, MutexGuard};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
#[cfg(feature = "python")]
pub(crate) use std::sync::{LazyLock, atomic::AtomicU8};

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(loom)]
pub(crate) use modelled::RwLock;

#[cfg(loom)]
mod modelled {
    use loom::sync::{RwLock as Inner, RwLockReadGuard, RwLockWriteGuard};

    /// Loom's lock with `parking_lot`'s face: no poisoning, since a model that panics has already failed.
    #[derive(Debug, Default)]
    pub(crate) struct RwLock<T>(Inner<T>);

    impl<T> RwLock<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(Inner::new(value))
        }

        pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0
                .read()
                .expect("a model that panics has already failed")
        }

        pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0
                .write()
                .expect("a model that panics has already failed")
        }
    }
}
