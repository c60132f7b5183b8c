//! Loom's models of the cancellation tree.

use llm_callback::{CancelKind, CancelToken};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

/// Cancels on a thread of its own.
fn cancelling(token: &CancelToken, reason: &'static str) -> thread::JoinHandle<bool> {
    let token = token.clone();
    thread::spawn(move || token.cancel(CancelKind::User, reason))
}

/// Who waits wakes, whichever comes first; what the canceller did before is seen.
#[test]
fn cancel_against_wait() {
    loom::model(|| {
        let top = CancelToken::new();
        let (token, done) = (top.child(), Arc::new(AtomicUsize::new(0)));
        let cancelling = {
            let done = Arc::clone(&done);
            thread::spawn(move || {
                done.store(1, Ordering::Relaxed);
                assert!(top.cancel(CancelKind::User, ""));
            })
        };
        if token.is_cancelled() {
            assert_eq!(done.load(Ordering::Relaxed), 1);
        }
        assert!(token.wait(None));
        assert!(token.is_cancelled());
        assert_eq!(done.load(Ordering::Relaxed), 1);
        cancelling.join().unwrap();
    });
}

/// A callback that is registered while two cancel is called exactly once, when all three are done.
#[test]
fn cancel_against_on_cancel() {
    loom::model(|| {
        let (token, calls) = (CancelToken::new(), Arc::new(AtomicUsize::new(0)));
        let (first, second) = (cancelling(&token, "1"), cancelling(&token, "2"));
        let counted = Arc::clone(&calls);
        token.on_cancel(move |why| {
            assert!(["1", "2"].contains(&&*why.reason));
            counted.fetch_add(1, Ordering::Relaxed);
        });
        assert!(first.join().unwrap() ^ second.join().unwrap());
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    });
}

/// A callback is either stopped or called, never both, never neither.
#[test]
fn cancel_against_stop() {
    loom::model(|| {
        let (token, calls) = (CancelToken::new(), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&calls);
        let registration = token.on_cancel(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let cancelling = cancelling(&token, "");
        let stopped = registration.stop();
        cancelling.join().unwrap();
        assert_eq!(calls.load(Ordering::Relaxed), usize::from(!stopped));
    });
}

/// A child that is made while its parent is cancelled is not left behind, nor its own child.
#[test]
fn child_against_cancel() {
    loom::model(|| {
        let top = CancelToken::new();
        let cancelling = cancelling(&top, "");
        let child = top.child();
        let grandchild = child.child();
        assert!(cancelling.join().unwrap());
        assert!(child.is_cancelled() && grandchild.is_cancelled());
    });
}

/// Of two cancels that meet in one subtree neither returns before all below is cancelled, and what the lower one
/// was first to reach keeps its words all the way down.
#[test]
fn cancel_against_cancel_below() {
    loom::model(|| {
        let top = CancelToken::new();
        let middle = top.child();
        let bottom = middle.child();
        let upper = {
            let (top, bottom) = (top.clone(), bottom.clone());
            thread::spawn(move || {
                assert!(top.cancel(CancelKind::User, "top"));
                assert!(bottom.is_cancelled());
            })
        };
        middle.cancel(CancelKind::User, "middle");
        assert!(bottom.is_cancelled());
        upper.join().unwrap();
        let (middle, bottom) = (middle.cancelled().unwrap(), bottom.cancelled().unwrap());
        assert_eq!(middle.reason, bottom.reason);
    });
}

/// A child that is dropped while its parent is cancelled harms neither.
#[test]
fn drop_against_cancel() {
    loom::model(|| {
        let top = CancelToken::new();
        let child = top.child();
        let cancelling = cancelling(&top, "");
        drop(child);
        assert!(cancelling.join().unwrap());
    });
}
