//! Tests of tokens on few threads.

use super::*;
use crate::sync::Mutex;
use std::sync::mpsc;

const SCALE: usize = if cfg!(miri) { 1_000 } else { 1 };
const SOON: Duration = Duration::from_millis(20);
const LONG: Duration = Duration::from_secs(60);

fn children(token: &CancelToken) -> usize {
    token.0.state.lock().children.len()
}

fn cancel_unless_retired(token: &CancelToken, message: &str) -> bool {
    let (is_first, deferred) = token.cancel_unless_retired(CancelKind::User, message.into());
    deferred.run();
    is_first
}

fn kind(token: &CancelToken) -> Option<CancelKind> {
    token.reason().map(|why| why.kind)
}

/// A cancel goes down, never up or aside, and past no shield; below it is of kind `Parent`, in the same words.
#[test]
fn cancel_goes_down() {
    let top = CancelToken::new();
    let (middle, aside) = (top.child(), top.child());
    let (below, shield) = (middle.child(), middle.shield());
    let behind = shield.child();
    assert!(middle.cancel(CancelKind::Disconnect, "gone"));
    assert_eq!(
        [&top, &aside, &shield, &behind].map(CancelToken::is_cancelled),
        [false; 4]
    );
    let (why, why_below) = (middle.reason().unwrap(), below.reason().unwrap());
    assert_eq!(why.to_string(), "cancelled (disconnect): gone");
    assert_eq!(why_below, why.for_below());
    assert_eq!(kind(&middle.child()), Some(CancelKind::Parent));
    assert!(!middle.shield().is_cancelled());
}

/// The first reason stays, on every token that it reached.
#[test]
fn first_reason_wins() {
    let top = CancelToken::new();
    let below = top.child();
    assert!(below.cancel(CancelKind::User, ""));
    assert!(top.cancel(CancelKind::Shutdown, "bye"));
    assert!(!below.cancel(CancelKind::Deadline, "late"));
    assert_eq!(below.reason().unwrap().to_string(), "cancelled (user)");
    assert_eq!(kind(&top), Some(CancelKind::Shutdown));
}

/// A cancel reaches a grandchild though nobody holds the child any more.
#[test]
fn dropped_tokens_pass_it_on() {
    let top = CancelToken::new();
    let below = top.child().child().child();
    top.cancel(CancelKind::User, "");
    assert_eq!(kind(&below), Some(CancelKind::Parent));
}

/// Children that were made and dropped leave nothing in the list of the parent.
#[test]
fn dropped_children_leave() {
    let top = CancelToken::new();
    let kept = top.child();
    for _ in 0..1_000_000 / SCALE {
        drop(top.child());
        assert_eq!(children(&top), 1);
    }
    drop(kept.child().child());
    assert_eq!(children(&kept), 0);
    let clone = kept.clone();
    drop(kept);
    assert_eq!(children(&top), 1);
    drop(clone);
    assert_eq!(children(&top), 0);
}

/// A cancelled token keeps no list of children and no callbacks.
#[test]
fn cancelled_tokens_keep_nothing() {
    let top = CancelToken::new();
    let below: Vec<_> = (0..10).map(|_| top.child()).collect();
    let held = Arc::new(());
    for token in &below {
        let held = Arc::clone(&held);
        token.on_cancel(move |_| drop(held));
    }
    top.cancel(CancelKind::User, "");
    for token in &below {
        let held = Arc::clone(&held);
        token.on_cancel(move |_| drop(held));
    }
    assert_eq!(children(&top), 0);
    assert_eq!(Arc::strong_count(&held), 1);
}

/// A chain far deeper than the stack is cancelled and dropped, from either end.
#[test]
fn deep_chains() {
    let depth = 100_000 / SCALE;
    let chain = || {
        let mut tokens = vec![CancelToken::new()];
        for above in 0..depth {
            tokens.push(tokens[above].child());
        }
        tokens
    };
    let tokens = chain();
    tokens[0].cancel(CancelKind::User, "");
    assert!(tokens.iter().all(CancelToken::is_cancelled));
    drop(tokens);
    let only_the_last = chain().pop().unwrap();
    drop(only_the_last);
    let mut tokens = chain();
    let (top, last) = (tokens.swap_remove(0), tokens.swap_remove(depth - 1));
    drop(tokens);
    top.cancel(CancelKind::User, "");
    assert!(last.is_cancelled());
    drop(top);
    drop(last);
    // From the bottom up no walk goes over what is cancelled already.
    let tokens = chain();
    for token in tokens.iter().rev() {
        assert!(token.cancel(CancelKind::User, ""));
    }
}

/// Callbacks run once, the upper tokens' first and each token's in order; what was stopped does not run.
#[test]
fn callbacks_run_in_order() {
    let (sender, calls) = mpsc::channel();
    let note = |name: &'static str| {
        let sender = sender.clone();
        move |why: &CancelReason| sender.send((name, why.kind)).unwrap()
    };
    let top = CancelToken::new();
    let below = top.child();
    drop(below.on_cancel(note("below")));
    drop(top.on_cancel(note("first")));
    let stopped = top.on_cancel(note("stopped"));
    let called = top.on_cancel(note("second"));
    assert!(stopped.stop());
    top.cancel(CancelKind::User, "");
    top.cancel(CancelKind::User, "");
    assert!(!called.stop());
    assert!(!below.on_cancel(note("at once")).stop());
    let expected = [
        ("first", CancelKind::User),
        ("second", CancelKind::User),
        ("below", CancelKind::Parent),
        ("at once", CancelKind::Parent),
    ];
    assert_eq!(calls.try_iter().collect::<Vec<_>>(), expected);
    let gone = CancelToken::new().on_cancel(note("never"));
    assert!(!gone.stop());
}

/// A callback sees its whole subtree cancelled, and may stop one that comes after it.
#[test]
fn callbacks_come_after_the_marks() {
    let top = CancelToken::new();
    let below = top.child();
    let registration = Arc::new(Mutex::new(None));
    let (seen, stopping) = (below.clone(), Arc::clone(&registration));
    top.on_cancel(move |_| {
        assert!(seen.is_cancelled());
        let later: Registration = stopping.lock().take().unwrap();
        assert!(later.stop());
    });
    let called = Arc::new(());
    let hold = Arc::clone(&called);
    *registration.lock() = Some(below.on_cancel(move |_| std::mem::forget(hold)));
    top.cancel(CancelKind::User, "");
    assert_eq!(Arc::strong_count(&called), 1);
    assert!(registration.lock().is_none());
}

/// A token whose deadline has passed is cancelled from the beginning.
#[test]
fn past_deadlines() {
    let now = Instant::now();
    assert_eq!(
        kind(&CancelToken::with_deadline(now)),
        Some(CancelKind::Deadline)
    );
    let top = CancelToken::new();
    let child = top.child_with_timeout(Duration::ZERO);
    assert_eq!(kind(&child), Some(CancelKind::Deadline));
    assert!(!top.is_cancelled());
}

/// The earlier deadline counts; who has it says whether the kind is `Deadline` or `Parent`.
#[test]
fn earlier_deadline_counts() {
    let (soon, late) = (Instant::now() + SOON, Instant::now() + LONG);
    let top = CancelToken::with_deadline(soon);
    let later = top.child_with_deadline(late);
    assert_eq!((top.deadline(), later.deadline()), (Some(soon), Some(soon)));
    assert_eq!(top.child().deadline(), Some(soon));
    assert_eq!(top.shield().deadline(), None);
    assert!(top.wait(Some(LONG)) && later.wait(Some(LONG)));
    assert!(Instant::now() >= soon);
    assert_eq!(kind(&top), Some(CancelKind::Deadline));
    assert_eq!(kind(&later), Some(CancelKind::Parent));

    let top = CancelToken::with_deadline(late);
    let sooner = top.child_with_timeout(SOON);
    assert!(sooner.wait(None));
    assert_eq!(kind(&sooner), Some(CancelKind::Deadline));
    assert_eq!(kind(&top), None);
}

/// Times that no clock holds are no times.
#[test]
fn endless_timeouts() {
    let token = CancelToken::with_timeout(Duration::MAX);
    assert_eq!(token.deadline(), None);
    assert_eq!(token.child_with_timeout(Duration::MAX).deadline(), None);
    assert!(!token.wait(Some(Duration::ZERO)));
    assert!(!token.wait_until(Instant::now()));
    token.cancel(CancelKind::User, "");
    assert!(token.wait(Some(Duration::MAX)));
}

/// A retired token is not reached from above or by its deadline, keeps no callbacks and is in no list; what it
/// says of itself still counts.
#[test]
fn retired_tokens_are_left_alone() {
    let top = CancelToken::new();
    let done = top.child_with_timeout(LONG);
    let held = Arc::new(());
    let holds = Arc::clone(&held);
    done.on_cancel(move |_| drop(holds));
    drop(done.retire());
    assert_eq!((children(&top), Arc::strong_count(&held)), (0, 1));
    assert!(!timer::is_armed(done.0.alarm.unwrap()));
    assert_eq!(done.child().deadline(), None);
    top.cancel(CancelKind::User, "");
    assert!(!done.is_cancelled() && done.reason().is_none());
    assert!(!done.wait(Some(Duration::ZERO)));
    assert!(!cancel_unless_retired(&done, "over"));
    let after = done.child();
    assert!(done.cancel(CancelKind::Shutdown, "by hand"));
    assert!(done.is_cancelled() && after.is_cancelled());
}

/// What was below a token when it retired is still reached from above, and by its deadline.
#[test]
fn retired_tokens_pass_it_on() {
    let top = CancelToken::new();
    let done = top.child();
    let below = done.child();
    drop(done.retire());
    let later = done.child();
    top.cancel(CancelKind::User, "");
    assert!(!done.is_cancelled() && below.is_cancelled() && later.is_cancelled());
    assert_eq!(kind(&done.child()), Some(CancelKind::Parent));
    assert_eq!(kind(&done), None);

    let done = CancelToken::with_timeout(SOON);
    let below = done.child();
    drop(done.retire());
    assert!(below.wait(Some(LONG)));
    assert_eq!(
        (kind(&below), kind(&done)),
        (Some(CancelKind::Parent), None)
    );
}

/// A direct cancel of a retired token that has only passed another one on is reported with its own reason; the
/// tokens below keep the reason that was passed on, and children made later get that too.
#[test]
fn retired_tokens_tell_their_own_reason() {
    let top = CancelToken::new();
    let done = top.child();
    let below = done.child();
    drop(done.retire());
    top.cancel(CancelKind::Shutdown, "passed on");
    assert_eq!(done.reason(), None);
    let (sender, calls) = mpsc::channel();
    done.on_cancel(move |why| sender.send(why.clone()).unwrap());
    assert!(done.cancel(CancelKind::User, "its own"));
    let why = done.reason().unwrap();
    assert_eq!((why.kind, &*why.message), (CancelKind::User, "its own"));
    assert_eq!(calls.try_iter().collect::<Vec<_>>(), [why]);
    for below in [below, done.child()] {
        let why = below.reason().unwrap();
        assert_eq!((why.kind, &*why.message), (CancelKind::Parent, "passed on"));
    }
}

/// `cancel_unless_retired` of a retired token does nothing, also below it; a cancel that came before stays.
#[test]
fn retired_tokens_refuse_a_late_cancel() {
    let done = CancelToken::new();
    let below = done.child();
    drop(done.retire());
    assert!(!cancel_unless_retired(&done, ""));
    assert!(!done.is_cancelled() && !below.is_cancelled());
    assert!(!done.child().is_cancelled());

    let done = CancelToken::new();
    assert!(cancel_unless_retired(&done, "in time"));
    drop(done.retire());
    assert_eq!(kind(&done), Some(CancelKind::User));
}

/// A token that is cancelled keeps its callbacks when it retires: whoever cancelled it calls them.
#[test]
fn retiring_takes_no_callback_from_a_cancel() {
    let token = CancelToken::new();
    let (sender, calls) = mpsc::channel();
    token.on_cancel(move |_| sender.send(()).unwrap());
    let (_, deferred) = token.cancel_unless_retired(CancelKind::User, "".into());
    drop(token.retire());
    deferred.run();
    assert_eq!(calls.try_iter().count(), 1);
}

/// A token that is dropped or cancelled before its deadline leaves the timer.
#[test]
fn alarms_leave() {
    let is_set = timer::is_armed;
    let (dropped, cancelled) = (
        CancelToken::with_timeout(LONG),
        CancelToken::with_timeout(LONG),
    );
    let (first, second) = (dropped.0.alarm.unwrap(), cancelled.0.alarm.unwrap());
    assert!(is_set(first) && is_set(second));
    drop(dropped);
    cancelled.cancel(CancelKind::User, "");
    assert!(!is_set(first) && !is_set(second));
}
