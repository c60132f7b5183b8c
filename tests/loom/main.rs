//! Loom's models of the registry: every interleaving of a few operations, not a sample of them.
//!
//! Run with `make loom`; empty without `--cfg loom`.

#![cfg(loom)]

mod cancel;
mod event_log;
mod runs;
mod sinks;

use llm_callback::{Registry, RunId};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

const RUN: RunId = RunId::Int(1);
const OTHER: RunId = RunId::Int(2);

/// A lookup that races a registration and a removal sees the callback or nothing, and the table ends empty.
#[test]
fn register_look_up_remove() {
    loom::model(|| {
        let registry: Arc<Registry<u8, u8>> = Arc::default();
        let registering = {
            let registry = Arc::clone(&registry);
            thread::spawn(move || {
                registry.set_callback(RUN, 10);
                registry.set_checker(RUN, 20);
                assert_eq!(registry.remove_callback(&RUN), Some(10));
                assert_eq!(registry.remove_checker(&RUN), Some(20));
            })
        };
        let looking = {
            let registry = Arc::clone(&registry);
            thread::spawn(move || {
                assert!(matches!(registry.callback(&RUN), None | Some(10)));
                assert!(matches!(registry.checker(&RUN), None | Some(20)));
            })
        };
        registering.join().unwrap();
        looking.join().unwrap();
        assert!(registry.is_empty());
    });
}

/// Of two threads that remove the same callback exactly one gets it.
#[test]
fn one_remover_wins() {
    loom::model(|| {
        let registry: Arc<Registry<u8, u8>> = Arc::default();
        registry.set_callback(RUN, 10);
        let removing = {
            let registry = Arc::clone(&registry);
            thread::spawn(move || registry.remove_callback(&RUN))
        };
        let here = registry.remove_callback(&RUN);
        let there = removing.join().unwrap();
        assert!(here.is_some() ^ there.is_some());
    });
}

/// A callback that was removed is not called any more, unless it was looked up before.
#[test]
fn remove_against_emit() {
    type Callback = std::sync::Arc<dyn Fn(bool) + Send + Sync>;
    loom::model(|| {
        let registry: Arc<Registry<Callback, u8>> = Arc::default();
        let removed = Arc::new(AtomicBool::new(false));
        let callback = |was_removed: bool| assert!(!was_removed);
        registry.set_callback(RUN, std::sync::Arc::new(callback));
        let emitting = {
            let (registry, removed) = (Arc::clone(&registry), Arc::clone(&removed));
            thread::spawn(move || {
                let was_removed = removed.load(Ordering::Acquire);
                registry.emit(&RUN, was_removed).is_ok()
            })
        };
        assert!(registry.remove_callback(&RUN).is_some());
        removed.store(true, Ordering::Release);
        assert!(registry.emit(&RUN, true).is_err());
        emitting.join().unwrap();
    });
}

/// Two runs that come and go at once never see each other's callback, though they share a lock.
#[test]
fn runs_are_apart() {
    loom::model(|| {
        let registry: Arc<Registry<u8, u8>> = Arc::default();
        let other = {
            let registry = Arc::clone(&registry);
            thread::spawn(move || {
                registry.set_callback(OTHER, 2);
                assert_eq!(registry.callback(&OTHER), Some(2));
                registry.remove_callback(&OTHER);
            })
        };
        registry.set_callback(RUN, 1);
        assert_eq!(registry.callback(&RUN), Some(1));
        registry.remove_callback(&RUN);
        other.join().unwrap();
        assert!(registry.is_empty());
    });
}
