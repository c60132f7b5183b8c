//! Tokens in random trees against a plain model, and under many threads.

use crate::options;
use llm_callback::{CancelKind, CancelReason, CancelToken, Runs};
use proptest::prelude::*;
use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(60);

/// Runs `body` on a thread of its own and fails if it takes longer than a minute: a deadlock is a failure.
fn with_deadline(body: impl FnOnce() + Send + 'static) {
    let (done, ended) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        body();
        done.send(()).expect("the test waits for this");
    });
    match ended.recv_timeout(LONG) {
        Err(RecvTimeoutError::Timeout) => panic!("still running after 60 s: deadlock"),
        // A dropped sender means that the body panicked: join() tells how.
        Ok(()) | Err(RecvTimeoutError::Disconnected) => thread.join().expect("the body panicked"),
    }
}

#[derive(Clone, Debug)]
enum Operation {
    Child(usize),
    Shield(usize),
    OnCancel(usize),
    Drop(usize),
    Cancel(usize),
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        8 => any::<usize>().prop_map(Operation::Child),
        1 => any::<usize>().prop_map(Operation::Shield),
        3 => any::<usize>().prop_map(Operation::OnCancel),
        2 => any::<usize>().prop_map(Operation::Drop),
        2 => any::<usize>().prop_map(Operation::Cancel),
    ]
}

/// One token as the model has it: a shield has no parent.
struct Modelled {
    token: Option<CancelToken>,
    parent: Option<usize>,
    why: Option<(CancelKind, String)>,
    registered: usize,
    called: Arc<AtomicUsize>,
}

impl Modelled {
    fn new(token: CancelToken, parent: Option<usize>, why: Option<(CancelKind, String)>) -> Self {
        Self {
            token: Some(token),
            parent,
            why,
            registered: 0,
            called: Arc::default(),
        }
    }
}

fn below(why: Option<&(CancelKind, String)>) -> Option<(CancelKind, String)> {
    why.map(|(_, reason)| (CancelKind::Parent, reason.clone()))
}

fn why(token: &CancelToken) -> Option<(CancelKind, String)> {
    let CancelReason { kind, message, .. } = token.reason()?;
    Some((kind, message.to_string()))
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 2 } else { 256 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// In any tree a cancel of any token reaches exactly that one and what is below it, shields apart; the first
    /// reason stays; every callback of who is cancelled, and of nobody else, has run once.
    #[test]
    fn cancel_reaches_exactly_the_subtree(
        operations in prop::collection::vec(operation(), 0..if cfg!(miri) { 20 } else { 80 }),
    ) {
        let mut tree = vec![Modelled::new(CancelToken::new(), None, None)];
        for (step, operation) in operations.into_iter().enumerate() {
            let (Operation::Child(index) | Operation::Shield(index) | Operation::OnCancel(index)
                | Operation::Drop(index) | Operation::Cancel(index)) = operation;
            let index = index % tree.len();
            let Some(token) = tree[index].token.clone() else { continue };
            match operation {
                Operation::Child(_) => {
                    let inherited = below(tree[index].why.as_ref());
                    tree.push(Modelled::new(token.child(), Some(index), inherited));
                }
                Operation::Shield(_) => tree.push(Modelled::new(token.shield(), None, None)),
                Operation::OnCancel(_) => {
                    tree[index].registered += 1;
                    let called = Arc::clone(&tree[index].called);
                    token.on_cancel(move |_| { called.fetch_add(1, Ordering::Relaxed); });
                }
                Operation::Drop(_) => tree[index].token = None,
                Operation::Cancel(_) => {
                    let reason = step.to_string();
                    prop_assert_eq!(
                        token.cancel(CancelKind::User, reason.as_str()),
                        tree[index].why.is_none()
                    );
                    if tree[index].why.is_none() {
                        tree[index].why = Some((CancelKind::User, reason));
                    }
                    // Parents come before their children in the list.
                    for child in 0..tree.len() {
                        if let (None, Some(parent)) = (&tree[child].why, tree[child].parent) {
                            tree[child].why = below(tree[parent].why.as_ref());
                        }
                    }
                }
            }
            drop(token);
            for node in &tree {
                let Some(token) = &node.token else { continue };
                prop_assert_eq!(token.is_cancelled(), node.why.is_some());
                prop_assert_eq!(why(token), node.why.clone());
                let expected = if node.why.is_some() { node.registered } else { 0 };
                prop_assert_eq!(node.called.load(Ordering::Relaxed), expected);
            }
        }
    }
}

/// A callback may ask, cancel its own token, those above and below, wait, register, and panic: nothing hangs, and
/// the others are still called.
#[test]
fn callbacks_may_do_anything() {
    with_deadline(|| {
        let top = CancelToken::new();
        let middle = top.child();
        let below = middle.child();
        let (sender, calls) = mpsc::channel();
        let tell = |name: &'static str| {
            let sender = sender.clone();
            move |_: &CancelReason| sender.send(name).unwrap()
        };
        top.on_cancel(tell("top"));
        middle.on_cancel(|_| panic!("on purpose"));
        let (tokens, inside) = ([top.clone(), middle.clone(), below.clone()], tell("inside"));
        middle.on_cancel(move |why| {
            assert_eq!(&*why.message, "first");
            let [top, middle, below] = &tokens;
            assert!(middle.is_cancelled() && below.is_cancelled() && !top.is_cancelled());
            assert!(middle.wait(None));
            assert!(!middle.cancel(CancelKind::User, "again"));
            assert!(!below.cancel(CancelKind::User, "again"));
            assert!(top.cancel(CancelKind::User, "up"));
            assert!(middle.child().is_cancelled());
            let asked = middle.clone();
            middle.on_cancel(move |why| {
                assert_eq!(asked.reason().as_ref(), Some(why));
                assert!(!asked.on_cancel(inside).stop());
            });
            middle.on_cancel(|_| panic!("on purpose"));
        });
        middle.on_cancel(tell("last"));
        below.on_cancel(tell("below"));
        assert!(middle.cancel(CancelKind::User, "first"));
        assert_eq!(&*middle.reason().unwrap().message, "first");
        assert_eq!(&*below.reason().unwrap().message, "first");
        let calls: Vec<_> = calls.try_iter().collect();
        assert_eq!(calls, ["top", "inside", "last", "below"]);
    });
}

/// What a callback holds may come back in when it is dropped: uncalled with its token, or stopped.
#[test]
fn destructors_may_come_back_in() {
    struct OnDrop(CancelToken);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            self.0.on_cancel(|_| ());
            drop(self.0.child());
            self.0.cancel(CancelKind::User, "dropped");
        }
    }
    with_deadline(|| {
        let top = CancelToken::new();
        let held = OnDrop(top.clone());
        assert!(top.child().on_cancel(move |_| drop(held)).stop() || top.is_cancelled());
        assert!(top.is_cancelled());

        let top = CancelToken::new();
        let held = OnDrop(top.clone());
        assert!(top.on_cancel(move |_| drop(held)).stop());
        assert!(top.is_cancelled());
    });
}

/// While threads grow a tree, shed parts of it and register, others cancel: once a cancel has returned nothing below
/// is uncancelled, every callback has run once, and each of the two tokens had one first canceller.
#[test]
fn threads_at_one_tree() {
    const THREADS: usize = if cfg!(miri) { 2 } else { 8 };
    const CHAIN: usize = 20;
    let rounds = if cfg!(miri) { 2 } else { 200 };
    with_deadline(move || {
        for _ in 0..rounds {
            let top = CancelToken::new();
            let middle = top.child();
            let (start, won) = (Barrier::new(2 * THREADS), AtomicUsize::new(0));
            let (registered, called) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
            std::thread::scope(|scope| {
                let (top, middle, start, won) = (&top, &middle, &start, &won);
                let (registered, called) = (&registered, &called);
                for thread in 0..THREADS {
                    scope.spawn(move || {
                        start.wait();
                        let mut chain = vec![middle.child()];
                        loop {
                            let above = &chain[chain.len() - 1];
                            let was_cancelled = above.is_cancelled();
                            drop(above.child().child());
                            let child = above.child();
                            assert!(child.is_cancelled() || !was_cancelled);
                            if was_cancelled {
                                break;
                            }
                            registered.fetch_add(1, Ordering::Relaxed);
                            let counted = Arc::clone(called);
                            let registration = child.on_cancel(move |_| {
                                counted.fetch_add(1, Ordering::Relaxed);
                            });
                            if chain.len() < CHAIN {
                                chain.push(child);
                            } else if registration.stop() {
                                // A token that is dropped takes its callbacks with it, uncalled.
                                registered.fetch_sub(1, Ordering::Relaxed);
                            }
                        }
                    });
                    scope.spawn(move || {
                        start.wait();
                        let token = if thread % 2 == 0 { top } else { middle };
                        let below = middle.child().child();
                        let first = token.cancel(CancelKind::User, thread.to_string());
                        assert!(below.is_cancelled(), "cancel returned before it was done");
                        won.fetch_add(usize::from(first), Ordering::Relaxed);
                    });
                }
            });
            assert!(matches!(won.into_inner(), 1 | 2));
            let (registered, called) = (registered.into_inner(), called.load(Ordering::Relaxed));
            assert_eq!(called, registered);
        }
    });
}

/// A deadline and a cancel race: one of them is the reason, for the token and, in kind `Parent`, for the child.
#[test]
fn deadline_against_cancel() {
    with_deadline(|| {
        for round in 0..if cfg!(miri) { 2 } else { 200 } {
            let about = Instant::now() + Duration::from_micros(450 + round % 7 * 100);
            let end = about + Duration::from_micros(50);
            let token = CancelToken::with_deadline(end);
            let child = token.child();
            let (sender, calls) = mpsc::channel();
            token.on_cancel(move |why| sender.send(why.clone()).unwrap());
            std::thread::scope(|scope| {
                let (waiting, cancelling) = (&token, &token);
                scope.spawn(|| assert!(waiting.wait(None)));
                let first = scope.spawn(move || {
                    cancelling.wait_until(about);
                    cancelling.cancel(CancelKind::User, "")
                });
                let kind = if first.join().unwrap() {
                    CancelKind::User
                } else {
                    CancelKind::Deadline
                };
                assert_eq!(token.reason().unwrap().kind, kind);
            });
            assert!(child.is_cancelled());
            assert_eq!(
                child.reason().unwrap().requested_at,
                token.reason().unwrap().requested_at
            );
            assert_eq!(calls.recv_timeout(LONG).unwrap(), token.reason().unwrap());
            assert!(calls.recv().is_err(), "called once");
        }
    });
}

/// A callback that blocks after its deadline holds up no other deadline.
#[test]
fn a_blocked_callback_delays_no_deadline() {
    with_deadline(|| {
        let (release, released) = mpsc::channel::<()>();
        let (entered, has_entered) = mpsc::channel();
        let released = Mutex::new(released);
        // On a thread of its own: where the deadline has passed before `on_cancel`, that is who calls back.
        let registering = std::thread::spawn(move || {
            let blocked =
                CancelToken::with_timeout(Duration::from_millis(if cfg!(miri) { 500 } else { 50 }));
            blocked.on_cancel(move |_| {
                entered.send(()).unwrap();
                let _ = released.lock().unwrap().recv();
            });
            blocked
        });
        has_entered.recv_timeout(LONG).unwrap();
        let other = CancelToken::with_timeout(Duration::from_millis(5));
        assert!(other.wait(Some(LONG)));
        drop(release);
        registering.join().unwrap();
    });
}

/// A callback that blocks for ever after its deadline keeps the callbacks of no other deadline from being called.
#[test]
fn a_blocked_callback_delays_no_callback_for_long() {
    with_deadline(|| {
        let (release, released) = mpsc::channel::<()>();
        let (called, calls) = mpsc::channel();
        let soon = Instant::now() + Duration::from_millis(if cfg!(miri) { 500 } else { 100 });
        // On threads of their own: where the deadline has passed before `on_cancel`, that is who calls back.
        let registering = std::thread::spawn(move || {
            let blocked = CancelToken::with_deadline(soon);
            blocked.on_cancel(move |_| released.recv().unwrap_or_default());
            blocked
        });
        let others = std::thread::spawn(move || {
            let tokens = [(); 3].map(|()| CancelToken::with_deadline(soon));
            for token in &tokens {
                let called = called.clone();
                token.on_cancel(move |_| called.send(()).unwrap());
            }
            assert!(tokens.iter().all(|token| token.wait(Some(LONG))));
        });
        for _ in 0..3 {
            calls.recv_timeout(LONG).unwrap();
        }
        drop(release);
        registering.join().unwrap();
        others.join().unwrap();
    });
}

/// A destructor that blocks, of what a forgotten run held, delays no deadline.
#[test]
fn a_blocked_destructor_delays_no_deadline() {
    struct BlockOnDrop(mpsc::Sender<()>, mpsc::Receiver<()>);
    impl Drop for BlockOnDrop {
        fn drop(&mut self) {
            self.0.send(()).unwrap();
            let _ = self.1.recv();
        }
    }
    with_deadline(|| {
        let options = options(|options| {
            options.grace = Duration::from_millis(200);
        });
        let runs = Runs::new(options);
        let run = runs.open(1).unwrap();
        let (release, released) = mpsc::channel();
        let (dropping, is_dropping) = mpsc::channel();
        let held = BlockOnDrop(dropping, released);
        run.complete("done").unwrap();
        run.token().on_cancel(move |_| drop(held));
        drop(run);
        is_dropping.recv_timeout(LONG).unwrap();
        assert!(CancelToken::with_timeout(Duration::from_millis(5)).wait(Some(LONG / 4)));
        drop(release);
    });
}

/// Many deadlines at one moment, each with a callback: few threads call all of them.
#[test]
fn callbacks_of_many_deadlines_share_threads() {
    with_deadline(|| {
        let number = if cfg!(miri) { 10 } else { 1_000 };
        let (sender, calls) = mpsc::channel();
        let at = Instant::now() + Duration::from_millis(500);
        let tokens: Vec<_> = (0..number)
            .map(|_| {
                let (token, sender) = (CancelToken::with_deadline(at), sender.clone());
                token.on_cancel(move |_| sender.send(std::thread::current().id()).unwrap());
                token
            })
            .collect();
        let threads = tokens.iter().map(|_| calls.recv_timeout(LONG).unwrap());
        let threads: HashSet<_> = threads.collect();
        assert!(threads.len() < 10, "{} threads", threads.len());
    });
}

/// Many deadlines, in no order: each token is cancelled not before its own and, waited for, soon after.
#[test]
fn many_deadlines() {
    with_deadline(|| {
        let start = Instant::now();
        let tokens: Vec<_> = (0..if cfg!(miri) { 5 } else { 500 })
            .map(|index| {
                CancelToken::with_deadline(start + Duration::from_micros(index * 7919 % 50_000))
            })
            .collect();
        for token in &tokens {
            assert!(token.wait(Some(LONG)));
            assert!(Instant::now() >= token.deadline().unwrap());
            assert_eq!(token.reason().unwrap().kind, CancelKind::Deadline);
        }
    });
}

/// Many wait for one cancel, and all wake; with a timeout, those who were not cancelled wake too.
#[test]
fn everybody_wakes() {
    with_deadline(|| {
        let (top, other) = (CancelToken::new(), CancelToken::new());
        std::thread::scope(|scope| {
            for index in 0..if cfg!(miri) { 3 } else { 16 } {
                let (top, other) = (&top, &other);
                scope.spawn(move || {
                    let token = if index % 2 == 0 {
                        top.clone()
                    } else {
                        top.child()
                    };
                    assert!(token.wait(None));
                    assert!(!other.wait(Some(Duration::from_millis(1))));
                });
            }
            std::thread::sleep(Duration::from_millis(5));
            top.cancel(CancelKind::User, "");
        });
    });
}
