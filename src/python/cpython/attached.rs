//! A mutex for data that only attached threads touch: on a build with a GIL, the GIL is the lock.
//!
//! A handler takes four of these locks for one piece of text. As real locks they took an eighth of the time of a piece
//! that is dropped.

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

    // SAFETY: both cells are touched only with a `Python` token, which means with the GIL. One thread has the GIL at a
    // time, and its hand-over orders the accesses. `locked` prevents a second guard, even if the thread that holds the
    // first guard has detached meanwhile.
    unsafe impl<T: Send> Sync for AttachedMutex<T> {}

    impl<T> AttachedMutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self {
                value: UnsafeCell::new(value),
                locked: Cell::new(false),
            }
        }

        /// Locks the mutex. Panics if it is locked already: a thread that holds the guard must not run Python code or
        /// detach.
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
        /// Makes the guard `!Send`.
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
