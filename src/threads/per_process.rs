//! A static value that each process has for itself: the child of a fork gets a new one.

use crate::sync::OnceLock;

/// The child of a fork has a copy of the parent's value, whose locks may be held by threads that the child does not
/// have. So [`replace`](Self::replace) puts a new value in the place of the copy, which is neither used nor dropped any
/// more.
pub(crate) struct PerProcess<T: 'static> {
    value: T,
    /// The value of the child, if this value belongs to a process that the current process was forked from.
    next: OnceLock<Box<Self>>,
}

impl<T> PerProcess<T> {
    pub(crate) const fn new(value: T) -> Self {
        let next = OnceLock::new();
        Self { value, next }
    }

    /// This process's value.
    pub(crate) fn get(&'static self) -> &'static T {
        &self.last().value
    }

    /// Gives this process, the child of a fork, a value of its own. To be called while the child has one thread.
    pub(crate) fn replace(&'static self, value: T) {
        self.last().next.get_or_init(|| Box::new(Self::new(value)));
    }

    fn last(&'static self) -> &'static Self {
        let mut last = self;
        while let Some(next) = last.next.get() {
            last = next;
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::Mutex;

    /// A replaced value is not touched, though its lock is held for ever; the next one can be replaced too.
    #[test]
    fn values_are_replaced() {
        static VALUE: PerProcess<Mutex<u8>> = PerProcess::new(Mutex::new(0));
        let first = VALUE.get().lock();
        VALUE.replace(Mutex::new(1));
        let second = VALUE.get().lock();
        VALUE.replace(Mutex::new(2));
        let third = VALUE.get().lock();
        assert_eq!((*first, *second, *third), (0, 1, 2));
    }
}
