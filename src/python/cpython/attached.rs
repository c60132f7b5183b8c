//! A mutex for what only attached threads touch: on a build with a GIL, the GIL is the lock.
//!
//! A token takes four of these; as real locks they were an eighth of a dropped one's time (benches/README.md).

pub(crate) use imp::AttachedMutex;

#[cfg(Py_GIL_DISABLED)]
mod imp {
    use crate::sync::{Mutex, MutexGuard};
    use pyo3::prelude::*;

    pub(crate) struct AttachedMutex<T>(Mutex<T>);

    impl<T> AttachedMutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(Mutex::new(value))
        }

        pub(crate) fn lock(&self, _py: Python<'_>) -> MutexGuard<'_, T> {
            self.0.lock()
        }

        pub(crate) fn try_lock(&self, _py: Python<'_>) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock()
        }

        pub(crate) fn get_mut(&mut self) -> &mut T {
            self.0.get_mut()
        }
    }
}

#[cfg(not(Py_GIL_DISABLED))]
#[expect(
    unsafe_code,
    reason = "the compiler does not know what the GIL protects"
)]
mod imp {
    use pyo3::prelude::*;
    use std::cell::{Cell, UnsafeCell};
    use std::marker::PhantomData;
    use std::ops::{Deref, DerefMut};

    pub(crate) struct AttachedMutex<T> {
        value: UnsafeCell<T>,
        locked: Cell<bool>,
    }

    // SAFETY: both cells are touched with a `Python` token only, and of the threads that have one at a time, all but
    // one wait for the GIL; its hand-over orders what they do. `locked` keeps a second guard from being made, also
    // where the holder of the first has detached meanwhile.
    unsafe impl<T: Send> Sync for AttachedMutex<T> {}

    impl<T> AttachedMutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self {
                value: UnsafeCell::new(value),
                locked: Cell::new(false),
            }
        }

        /// Locks. A holder that runs Python code or detaches makes the next one fail: it must do neither.
        #[inline]
        pub(crate) fn lock<'a, 'py: 'a>(&'a self, py: Python<'py>) -> Guard<'a, T> {
            self.try_lock(py)
                .expect("no Python code runs under this lock")
        }

        #[inline]
        pub(crate) fn try_lock<'a, 'py: 'a>(&'a self, _py: Python<'py>) -> Option<Guard<'a, T>> {
            (!self.locked.replace(true)).then_some(Guard {
                mutex: self,
                attached: PhantomData,
            })
        }

        pub(crate) fn get_mut(&mut self) -> &mut T {
            self.value.get_mut()
        }
    }

    pub(crate) struct Guard<'a, T> {
        mutex: &'a AttachedMutex<T>,
        /// Not to be sent to another thread.
        attached: PhantomData<Python<'a>>,
    }

    impl<T> Deref for Guard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            // SAFETY: `locked` was false when this guard was made, so that it is the only one.
            unsafe { &*self.mutex.value.get() }
        }
    }

    impl<T> DerefMut for Guard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            // SAFETY: as in deref().
            unsafe { &mut *self.mutex.value.get() }
        }
    }

    impl<T> Drop for Guard<'_, T> {
        fn drop(&mut self) {
            self.mutex.locked.set(false);
        }
    }
}
