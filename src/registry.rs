//! The table from run id to what the host registered for it: one callback and one cancellation checker.

use crate::run_id::RunId;
use crate::sync::{AtomicU64, Ordering, RwLock};
use crossbeam_utils::CachePadded;
use rustc_hash::{FxBuildHasher, FxHashMap};
use std::fmt;
use std::hash::BuildHasher;
use std::ops::Deref;

/// The number of shards, a power of two. Threads of different runs rarely meet at one lock.
const SHARDS: usize = if cfg!(loom) { 1 } else { 16 };

/// The event, given back: no callback is registered for its run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Unregistered<E>(pub E);

impl<E> fmt::Debug for Unregistered<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Unregistered(..)")
    }
}

impl<E> fmt::Display for Unregistered<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no callback is registered for this run: the event was not delivered")
    }
}

impl<E> std::error::Error for Unregistered<E> {}

/// How much is registered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegistrySize {
    /// Callbacks.
    pub callbacks: usize,
    /// Cancellation checkers.
    pub checkers: usize,
}

/// What was registered for one run.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Registered<C, K> {
    /// The run's id.
    pub id: RunId,
    /// Its callback.
    pub callback: Option<C>,
    /// Its cancellation checker.
    pub checker: Option<K>,
}

impl<C, K> fmt::Debug for Registered<C, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registered")
            .field("id", &self.id)
            .field("has_callback", &self.callback.is_some())
            .field("has_checker", &self.checker.is_some())
            .finish_non_exhaustive()
    }
}

/// What one run has registered. A slot without content does not stay in the table.
struct Slot<C, K> {
    callback: Option<C>,
    checker: Option<K>,
}

impl<C, K> Slot<C, K> {
    const EMPTY: Self = Self {
        callback: None,
        checker: None,
    };

    fn is_empty(&self) -> bool {
        self.callback.is_none() && self.checker.is_none()
    }
}

type Shard<C, K> = RwLock<FxHashMap<RunId, Slot<C, K>>>;

/// Callbacks of type `C` and cancellation checkers of type `K`, by run id. Shared by reference among threads.
///
/// No method runs user code while a lock is held. A value that a method removes or replaces is returned to the caller,
/// so that it is dropped outside the lock too: its destructor may use the registry.
///
/// # Locks
///
/// Each shard's lock protects that shard's map, for the length of one map operation. A thread holds one at a time.
/// Under it references are copied, by `C::clone` or by the closure of [`with_callback`](Self::with_callback), which
/// must neither block nor use the registry: they are meant to copy an `Arc`.
pub struct Registry<C, K = C> {
    shards: [CachePadded<Shard<C, K>>; SHARDS],
    /// The number of slots. Changed under the lock of the slot's shard. Relaxed, no partner: it publishes nothing, and
    /// a thread that has heard of a registration, in whichever way, also sees this number.
    slots: CachePadded<AtomicU64>,
}

impl<C, K> Default for Registry<C, K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<C, K> fmt::Debug for Registry<C, K> {
    /// Does not block.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("runs", &self.slots.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}

impl<C, K> Registry<C, K> {
    /// An empty table.
    pub fn new() -> Self {
        Self {
            shards: std::array::from_fn(|_| CachePadded::new(RwLock::new(FxHashMap::default()))),
            slots: CachePadded::new(AtomicU64::new(0)),
        }
    }

    /// Registers the run's callback. Returns the callback that it replaces.
    pub fn set_callback(&self, id: RunId, callback: C) -> Option<C> {
        self.with_slot(id, |slot| slot.callback.replace(callback))
    }

    /// Registers the run's cancellation checker. Returns the checker that it replaces.
    pub fn set_checker(&self, id: RunId, checker: K) -> Option<K> {
        self.with_slot(id, |slot| slot.checker.replace(checker))
    }

    /// Takes the run's callback out of the table.
    pub fn remove_callback(&self, id: &RunId) -> Option<C> {
        self.take(id, |slot| slot.callback.take())
    }

    /// Takes the run's cancellation checker out of the table.
    pub fn remove_checker(&self, id: &RunId) -> Option<K> {
        self.take(id, |slot| slot.checker.take())
    }

    /// Copies a reference to the run's callback, in whichever way `copy` copies one.
    ///
    /// For callbacks that cannot be `Clone`. `copy` runs under the shard's lock: see [Locks](#locks).
    pub fn with_callback<R>(&self, id: &RunId, copy: impl FnOnce(&C) -> R) -> Option<R> {
        self.shard(id).read().get(id)?.callback.as_ref().map(copy)
    }

    /// Copies a reference to the run's checker, in whichever way `copy` copies one.
    ///
    /// For checkers that cannot be `Clone`. `copy` runs under the shard's lock: see [Locks](#locks).
    pub fn with_checker<R>(&self, id: &RunId, copy: impl FnOnce(&K) -> R) -> Option<R> {
        self.shard(id).read().get(id)?.checker.as_ref().map(copy)
    }

    /// Copies references to both, in whichever way `copy` copies them. One lookup instead of two.
    ///
    /// `copy` runs under the shard's lock: see [Locks](#locks).
    pub fn with_both<R>(&self, id: &RunId, copy: impl FnOnce(Option<&C>, Option<&K>) -> R) -> R {
        match self.shard(id).read().get(id) {
            Some(slot) => copy(slot.callback.as_ref(), slot.checker.as_ref()),
            None => copy(None, None),
        }
    }

    /// The ids that have a callback, in no order.
    pub fn callback_ids(&self) -> Vec<RunId> {
        self.ids(|slot| slot.callback.is_some())
    }

    /// The ids that have a cancellation checker, in no order.
    pub fn checker_ids(&self) -> Vec<RunId> {
        self.ids(|slot| slot.checker.is_some())
    }

    /// How many callbacks and how many checkers are registered.
    pub fn size(&self) -> RegistrySize {
        let mut size = RegistrySize::default();
        for shard in &self.shards {
            for slot in shard.read().values() {
                size.callbacks += usize::from(slot.callback.is_some());
                size.checkers += usize::from(slot.checker.is_some());
            }
        }
        size
    }

    /// Whether nothing is registered. One relaxed atomic load, for hosts that ask at every event.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.slots.load(Ordering::Relaxed) == 0
    }

    /// Takes everything out of the table, in no order.
    pub fn take_all(&self) -> Vec<Registered<C, K>> {
        let slots = self.shards.iter().flat_map(|shard| {
            let mut slots = shard.write();
            self.slots.fetch_sub(slots.len() as u64, Ordering::Relaxed);
            std::mem::take(&mut *slots)
        });
        slots
            .map(|(id, Slot { callback, checker })| Registered {
                id,
                callback,
                checker,
            })
            .collect()
    }

    fn with_slot<T>(&self, id: RunId, change: impl FnOnce(&mut Slot<C, K>) -> T) -> T {
        let mut slots = self.shard(&id).write();
        let before = slots.len();
        let changed = change(slots.entry(id).or_insert(Slot::EMPTY));
        if slots.len() > before {
            self.slots.fetch_add(1, Ordering::Relaxed);
        }
        changed
    }

    fn take<T>(&self, id: &RunId, content: impl FnOnce(&mut Slot<C, K>) -> Option<T>) -> Option<T> {
        let mut slots = self.shard(id).write();
        let slot = slots.get_mut(id)?;
        let taken = content(slot);
        if slot.is_empty() {
            slots.remove(id);
            self.slots.fetch_sub(1, Ordering::Relaxed);
        }
        taken
    }

    fn ids(&self, wanted: impl Fn(&Slot<C, K>) -> bool) -> Vec<RunId> {
        let mut ids = Vec::new();
        for shard in &self.shards {
            let slots = shard.read();
            ids.extend(
                slots
                    .iter()
                    .filter(|(_, slot)| wanted(slot))
                    .map(|(id, _)| id.clone()),
            );
        }
        ids
    }

    fn shard(&self, id: &RunId) -> &Shard<C, K> {
        // The map's own index uses the low bits of the hash and its tags the top seven: take others.
        let hash = FxBuildHasher.hash_one(id);
        let bits = (hash >> 32) as usize;
        &self.shards[bits % SHARDS]
    }
}

impl<C: Clone, K> Registry<C, K> {
    /// The run's callback, to be called outside the lock.
    pub fn callback(&self, id: &RunId) -> Option<C> {
        self.with_callback(id, C::clone)
    }

    /// Calls the run's callback with `event` on this thread, with no lock held.
    ///
    /// The callback may register, remove, emit, block or panic: only the calling thread is concerned.
    ///
    /// # Errors
    ///
    /// [`Unregistered`] with the event, if the run has no callback.
    pub fn emit<E>(&self, id: &RunId, event: E) -> Result<(), Unregistered<E>>
    where
        C: Deref<Target: Fn(E)>,
    {
        match self.callback(id) {
            Some(callback) => {
                callback(event);
                Ok(())
            }
            None => Err(Unregistered(event)),
        }
    }
}

impl<C, K: Clone> Registry<C, K> {
    /// The run's cancellation checker, to be asked outside the lock.
    pub fn checker(&self, id: &RunId) -> Option<K> {
        self.with_checker(id, K::clone)
    }

    /// Asks the run's checker on this thread, with no lock held. A run without a checker is not cancelled.
    pub fn is_cancelled(&self, id: &RunId) -> bool
    where
        K: Deref<Target: Fn() -> bool>,
    {
        self.checker(id).is_some_and(|checker| checker())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;

    type Callback = Arc<dyn Fn(u32) + Send + Sync>;
    type Checker = Arc<dyn Fn() -> bool + Send + Sync>;

    /// A slot leaves the table with the last thing that was in it, in either order.
    #[test]
    fn empty_slots_do_not_stay() {
        let registry: Registry<u8, u8> = Registry::new();
        for callback_first in [true, false] {
            registry.set_callback(1.into(), 10);
            registry.set_checker(1.into(), 20);
            let size = registry.size();
            assert_eq!((size.callbacks, size.checkers), (1, 1));
            if callback_first {
                assert_eq!(registry.remove_callback(&1.into()), Some(10));
                assert_eq!(registry.remove_checker(&1.into()), Some(20));
            } else {
                assert_eq!(registry.remove_checker(&1.into()), Some(20));
                assert_eq!(registry.remove_callback(&1.into()), Some(10));
            }
            assert!(registry.is_empty());
            assert!(registry.shards.iter().all(|shard| shard.read().is_empty()));
        }
    }

    /// Looking up, or removing, what is not there changes nothing.
    #[test]
    fn absent_is_none() {
        let registry: Registry<u8, u8> = Registry::new();
        assert_eq!(registry.callback(&"x".into()), None);
        assert_eq!(registry.remove_callback(&"x".into()), None);
        registry.set_checker("x".into(), 1);
        assert_eq!(registry.remove_callback(&"x".into()), None);
        assert_eq!(registry.checker(&"x".into()), Some(1));
    }

    /// What is replaced comes back to the caller.
    #[test]
    fn replacing_gives_back() {
        let registry: Registry<u8, u8> = Registry::new();
        assert_eq!(registry.set_callback(1.into(), 10), None);
        assert_eq!(registry.set_callback(1.into(), 11), Some(10));
        assert_eq!(registry.set_checker(1.into(), 20), None);
        assert_eq!(registry.set_checker(1.into(), 21), Some(20));
    }

    /// Ids of both kinds are listed, each under what it has registered.
    #[test]
    fn ids_by_content() {
        let registry: Registry<u8, u8> = Registry::new();
        registry.set_callback(1.into(), 1);
        registry.set_checker("one".into(), 1);
        assert_eq!(registry.callback_ids(), [RunId::from(1)]);
        assert_eq!(registry.checker_ids(), [RunId::from("one")]);
        drop(registry.take_all());
        assert!(registry.is_empty());
    }

    /// A callback may replace and remove itself, and emit again, from inside.
    #[test]
    fn callbacks_may_come_back_in() {
        let registry: Arc<Registry<Callback, Checker>> = Arc::default();
        let (inner, (calls, seen)) = (Arc::clone(&registry), std::sync::mpsc::channel());
        registry.set_callback(
            1.into(),
            Arc::new(move |event| {
                calls.send(event).unwrap();
                inner.remove_callback(&1.into());
                assert!(inner.emit(&1.into(), event).is_err());
                inner.set_callback(2.into(), Arc::new(|_| ()));
                inner.emit(&2.into(), event).unwrap();
            }),
        );
        registry.emit(&1.into(), 5).unwrap();
        assert!(registry.emit(&1.into(), 6).is_err());
        assert_eq!(seen.try_iter().collect::<Vec<_>>(), [5]);
    }

    /// A destructor of a replaced or removed callback may come back in.
    #[test]
    fn destructors_may_come_back_in() {
        struct OnDrop(Arc<Registry<Self, u8>>);
        impl Drop for OnDrop {
            fn drop(&mut self) {
                self.0.set_checker(2.into(), 1);
                self.0.remove_checker(&2.into());
            }
        }
        let registry: Arc<Registry<OnDrop, u8>> = Arc::default();
        registry.set_callback(1.into(), OnDrop(Arc::clone(&registry)));
        drop(registry.set_callback(1.into(), OnDrop(Arc::clone(&registry))));
        drop(registry.remove_callback(&1.into()));
        registry.set_callback(3.into(), OnDrop(Arc::clone(&registry)));
        drop(registry.take_all());
        assert!(registry.is_empty());
    }

    /// A checker decides for its own run only.
    #[test]
    fn cancelled_is_per_run() {
        let registry: Registry<Callback, Checker> = Registry::new();
        registry.set_checker(1.into(), Arc::new(|| true));
        registry.set_checker(2.into(), Arc::new(|| false));
        assert!(registry.is_cancelled(&1.into()));
        assert!(!registry.is_cancelled(&2.into()));
        assert!(!registry.is_cancelled(&3.into()));
    }

    /// Ids that differ little are spread over the shards.
    #[test]
    fn shards_are_used() {
        let registry: Registry<u8, u8> = Registry::new();
        for id in 0..if cfg!(miri) { 100 } else { 1000 } {
            registry.set_callback(id.into(), 0);
        }
        let used = registry
            .shards
            .iter()
            .filter(|shard| !shard.read().is_empty())
            .count();
        assert_eq!(used, SHARDS);
    }
}
