//! Many std threads at one registry: no event astray, nothing left behind.

use llm_callback::{Registry, RunId};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Barrier};
use std::time::Duration;

type Callback = Arc<dyn Fn((usize, usize)) + Send + Sync>;
type Checker = Arc<dyn Fn() -> bool + Send + Sync>;

/// Runs `body` on a thread of its own and fails if it takes longer than a minute: a deadlock is a failure.
pub(crate) fn with_deadline(body: impl FnOnce() + Send + 'static) {
    let (done, ended) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        body();
        done.send(()).expect("the test waits for this");
    });
    match ended.recv_timeout(Duration::from_secs(60)) {
        Err(RecvTimeoutError::Timeout) => panic!("still running after 60 s: deadlock"),
        // A dropped sender means that the body panicked: join() tells how.
        Ok(()) | Err(RecvTimeoutError::Disconnected) => thread.join().expect("the body panicked"),
    }
}

/// Every event of every run reaches that run's callback, in its thread's order, while 16 threads register, emit
/// and remove at once; then the table is empty.
#[test]
fn no_event_astray() {
    const THREADS: usize = if cfg!(miri) { 4 } else { 16 };
    let (runs, events) = if cfg!(miri) { (8, 2) } else { (1_000, 50) };
    with_deadline(move || {
        let registry: Registry<Callback, Checker> = Registry::new();
        let start = Barrier::new(THREADS);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (registry, start) = (&registry, &start);
                scope.spawn(move || {
                    start.wait();
                    for run in (thread..runs).step_by(THREADS) {
                        let id = RunId::from(i64::try_from(run).unwrap());
                        let (sender, received) = mpsc::channel();
                        registry.set_callback(
                            id.clone(),
                            Arc::new(move |event| sender.send(event).unwrap()),
                        );
                        registry.set_checker(id.clone(), Arc::new(|| false));
                        for event in 0..events {
                            assert!(!registry.is_cancelled(&id));
                            registry.emit(&id, (run, event)).unwrap();
                        }
                        registry.remove_callback(&id);
                        registry.remove_checker(&id);
                        assert!(registry.emit(&id, (run, events)).is_err());
                        let expected: Vec<_> = (0..events).map(|event| (run, event)).collect();
                        assert_eq!(received.iter().collect::<Vec<_>>(), expected);
                    }
                });
            }
        });
        assert!(registry.is_empty());
    });
}

/// A callback that blocks for ever holds up its own thread and none of seven others.
#[test]
fn a_blocked_callback_blocks_nobody_else() {
    with_deadline(|| {
        let registry: Registry<Callback, Checker> = Registry::new();
        let (entered, has_entered) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let (entered, released) = (
            std::sync::Mutex::new(entered),
            std::sync::Mutex::new(released),
        );
        registry.set_callback(
            0.into(),
            Arc::new(move |_| {
                entered.lock().unwrap().send(()).unwrap();
                let _ = released.lock().unwrap().recv();
            }),
        );
        std::thread::scope(|scope| {
            let registry = &registry;
            scope.spawn(move || registry.emit(&0.into(), (0, 0)).unwrap());
            has_entered.recv().unwrap();
            let others: Vec<_> = (1..8_usize)
                .map(|run| {
                    scope.spawn(move || {
                        let id = RunId::from(i64::try_from(run).unwrap());
                        registry.set_callback(id.clone(), Arc::new(|_| ()));
                        registry.emit(&id, (run, 0)).unwrap();
                        // The blocked run's own slot can be changed too.
                        registry.set_checker(0.into(), Arc::new(|| false));
                        registry.remove_callback(&id);
                    })
                })
                .collect();
            for other in others {
                other.join().unwrap();
            }
            drop(release);
        });
    });
}

/// Cancelling one run leaves the others' checkers as they were.
#[test]
fn a_cancel_reaches_one_run() {
    let registry: Registry<Callback, Checker> = Registry::new();
    let flags: Vec<_> = (0..10).map(|_| Arc::new(AtomicBool::new(false))).collect();
    for (run, flag) in (0..).zip(&flags) {
        let flag = Arc::clone(flag);
        registry.set_checker(
            RunId::Int(run),
            Arc::new(move || flag.load(Ordering::Acquire)),
        );
    }
    flags[3].store(true, Ordering::Release);
    let cancelled: Vec<_> = (0..10)
        .filter(|&run| registry.is_cancelled(&RunId::Int(run)))
        .collect();
    assert_eq!(cancelled, [3]);
}
