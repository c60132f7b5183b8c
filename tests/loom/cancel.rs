//! Loom's models of the cancellation tree.

use llm_callback::{CancelKind, CancelToken, Runs};
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
            assert!(["1", "2"].contains(&&*why.message));
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
        let (middle, bottom) = (middle.reason().unwrap(), bottom.reason().unwrap());
        assert_eq!(middle.message, bottom.message);
    });
}

/// A child that is dropped while its parent is cancelled does not hide the children after it, and its callback is called
/// or dropped.
#[test]
fn drop_against_cancel() {
    loom::model(|| {
        let (held, top) = (std::sync::Arc::new(()), CancelToken::new());
        let (child, after) = (top.child(), top.child());
        let holds = held.clone();
        child.on_cancel(move |_| drop(holds));
        let cancelling = cancelling(&top, "");
        drop(child);
        assert!(cancelling.join().unwrap());
        assert!(after.is_cancelled());
        assert_eq!(std::sync::Arc::strong_count(&held), 1);
    });
}

/// A cancel of a run that races the run's end cancels the tokens below and returns true, or does nothing at all.
#[test]
fn cancel_against_the_end_of_a_run() {
    loom::model(|| {
        let runs = Runs::default();
        let run = runs.open(1).unwrap();
        let below = run.token().child();
        let cancelling = {
            let run = run.clone();
            thread::spawn(move || run.cancel(CancelKind::User, ""))
        };
        assert!(run.complete("done").unwrap());
        let was_first = cancelling.join().unwrap();
        assert_eq!(run.token().is_cancelled(), was_first);
        assert_eq!(below.is_cancelled(), was_first);
    });
}

/// Two threads end a run, one of them by giving it up: the tokens below are cancelled exactly if the run's token is.
#[test]
fn giving_up_against_the_end_of_a_run() {
    loom::model(|| {
        let runs = Runs::default();
        let run = runs.open(1).unwrap();
        let below = run.token().child();
        let giving_up = {
            let run = run.clone();
            thread::spawn(move || run.finish_cancelled())
        };
        let was_end = run.complete("done").unwrap();
        assert!(was_end ^ giving_up.join().unwrap());
        assert_eq!(below.is_cancelled(), run.token().is_cancelled());
    });
}

/// A cancel that passes through a finished run, and one of that run's own token: the token tells the reason of its own,
/// whichever comes first, and the tokens below are cancelled.
#[test]
fn passed_on_cancel_against_direct_cancel() {
    loom::model(|| {
        let (runs, reason) = (Runs::default(), "its own");
        let top = runs.open(1).unwrap();
        let run = runs.builder(2).parent(&top).open().unwrap();
        let below = run.token().child();
        assert!(run.complete("done").unwrap());
        let cancelling = cancelling(run.token(), reason);
        assert!(top.cancel(CancelKind::Shutdown, "from above"));
        assert!(below.is_cancelled());
        assert!(cancelling.join().unwrap());
        let why = run.token().reason().unwrap();
        assert_eq!((why.kind, &*why.message), (CancelKind::User, reason));
        let (below, later) = (below.reason(), run.token().child().reason());
        assert_eq!(below, later);
    });
}
