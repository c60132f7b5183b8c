//! The handle of a token: it tells work to stop.

use super::node::{Deferred, IfRetired, Node, call};
use super::reason::{CancelKind, CancelReason};
use crate::sync::Ordering;
use crate::threads::timer;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Tells work to stop. Tokens form a tree: a cancel reaches a token and all tokens below it, never those above.
///
/// A clone is the same token. Any thread may use a token at any time, also from inside the token's own callbacks. A
/// cancel cannot be undone. A token keeps the tokens above it in memory, not those below.
///
/// ```
/// use llm_callback::{CancelKind, CancelToken};
///
/// let run = CancelToken::new();
/// let worker = run.child();
/// assert!(run.cancel(CancelKind::User, "enough"));
/// assert!(worker.is_cancelled());
/// assert_eq!(worker.reason().unwrap().kind, CancelKind::Parent);
/// assert!(!run.cancel(CancelKind::Shutdown, "too late: the first reason stays"));
/// ```
#[derive(Clone)]
pub struct CancelToken(Arc<Node>);

impl CancelToken {
    /// A token with nothing above it.
    pub fn new() -> Self {
        Self(Arc::new(Node::new(None, None)))
    }

    /// A token with nothing above it that is cancelled, as [`CancelKind::Deadline`], at the time `at`: now, if `at` has
    /// passed.
    ///
    /// One thread in the process watches all deadlines. The thread runs only while there is something to wait for. The
    /// child of a fork needs [`after_fork_in_child`](crate::after_fork_in_child).
    ///
    /// # Panics
    ///
    /// If the system refuses that thread.
    pub fn with_deadline(at: Instant) -> Self {
        Self::try_with_deadline(at).expect(REFUSED)
    }

    /// As [`with_deadline`](Self::with_deadline), without the panic.
    pub(crate) fn try_with_deadline(at: Instant) -> Result<Self, NoTimer> {
        Self::armed(Arc::new(Node::new(Some(at), Some(at))))
    }

    /// As [`with_deadline`](Self::with_deadline), this long from now. A time beyond the clock's range is no deadline.
    ///
    /// # Panics
    ///
    /// As [`with_deadline`](Self::with_deadline).
    pub fn with_timeout(timeout: Duration) -> Self {
        Instant::now()
            .checked_add(timeout)
            .map_or_else(Self::new, Self::with_deadline)
    }

    /// A token below this one: it is cancelled when this token is, and from the beginning if this token is cancelled
    /// now.
    ///
    /// Does not block. A child that is dropped, with all tokens below it, leaves nothing behind in this token.
    #[must_use]
    pub fn child(&self) -> Self {
        Self(self.0.child(None))
    }

    /// A child with a deadline of its own. The earlier of the two deadlines, its own and this token's, holds.
    ///
    /// # Panics
    ///
    /// As [`with_deadline`](Self::with_deadline).
    #[must_use]
    pub fn child_with_deadline(&self, at: Instant) -> Self {
        self.try_child_with_deadline(at).expect(REFUSED)
    }

    /// As [`child_with_deadline`](Self::child_with_deadline), without the panic.
    pub(crate) fn try_child_with_deadline(&self, at: Instant) -> Result<Self, NoTimer> {
        Self::armed(self.0.child(Some(at)))
    }

    /// A child with a deadline this long from now. A time beyond the clock's range is no deadline.
    ///
    /// # Panics
    ///
    /// As [`with_deadline`](Self::with_deadline).
    #[must_use]
    pub fn child_with_timeout(&self, timeout: Duration) -> Self {
        match Instant::now().checked_add(timeout) {
            Some(at) => self.child_with_deadline(at),
            None => self.child(),
        }
    }

    /// A token that no cancel and no deadline from above reaches: for work that must still be done after a cancel, such
    /// as storing the result.
    ///
    /// The new token is the top of a tree of its own. It is not cancelled, even if this token is.
    #[must_use]
    pub fn shield(&self) -> Self {
        Self::new()
    }

    /// Whether the token is cancelled. One atomic load; once true, always true.
    ///
    /// A thread that gets true also sees everything that the cancelling thread did before the cancel.
    #[inline]
    pub fn is_cancelled(&self) -> bool {
        // Acquire: the partner is the Release store in `Node::cancel`.
        self.0.cancelled.load(Ordering::Acquire)
    }

    /// Why the token is cancelled; None if it is not. Does not block.
    pub fn reason(&self) -> Option<CancelReason> {
        self.0.state.lock().reason.clone()
    }

    /// The time at which this token is cancelled by itself: the earliest of its own deadline and those of the tokens
    /// above it, up to a shield.
    pub fn deadline(&self) -> Option<Instant> {
        self.0.deadline
    }

    /// Cancels this token and all tokens below it. Returns true if this call was the first to reach this token.
    ///
    /// First the whole subtree is cancelled, and the threads that wait for one of its tokens are woken. Then the
    /// callbacks run: on this thread, with no lock held, each token's in the order of registration, and a token's
    /// before those of the tokens below. A callback that panics does not keep the others from running; the panic ends
    /// here.
    ///
    /// When this returns, this token and all tokens below it are cancelled, whichever thread was first, and the
    /// callbacks of the tokens that this call was the first to reach have run. Another thread's cancel may still run
    /// the callbacks of the tokens that it was the first to reach: this call does not wait for them.
    pub fn cancel(&self, kind: CancelKind, message: impl Into<Arc<str>>) -> bool {
        let reason = CancelReason::now(kind, message.into());
        let (is_first, deferred) = self.0.cancel(reason, IfRetired::Cancel);
        deferred.run();
        is_first
    }

    /// As [`cancel`](Self::cancel), but does nothing to a token that is retired, nor to the tokens below it, and
    /// returns false. This token's lock decides which comes first, the cancel or the retirement. The caller runs the
    /// callbacks.
    pub(crate) fn cancel_unless_retired(
        &self,
        kind: CancelKind,
        message: Arc<str>,
    ) -> (bool, Deferred) {
        let reason = CancelReason::now(kind, message);
        self.0.cancel(reason, IfRetired::Nothing)
    }

    /// Retires the token, since its work is done. From now on no deadline and no cancel from above reaches the token.
    /// Its callbacks are taken out, for the caller to drop. A token that is cancelled keeps its callbacks: the thread
    /// that cancelled it calls them.
    ///
    /// The tokens below go on. Those that exist now are still reached by a cancel from above and by this token's
    /// deadline. Tokens that are made below it later are reached by its own [`cancel`](Self::cancel) only.
    pub(crate) fn retire(&self) -> Deferred {
        self.0.retire()
    }

    /// Calls `callback` once, when this token is cancelled; now, on this thread, if the token is cancelled already.
    ///
    /// The callback runs on the thread that cancels. After a deadline it runs on a thread that calls the callbacks of
    /// all deadlines, one after another; if one takes longer than a second, another thread calls those of the other
    /// deadlines. The callback is called with no lock held and may do anything: ask, cancel or wait for any token,
    /// register more callbacks, stop itself or others, block (the callbacks after it wait), panic (the panic is
    /// caught).
    ///
    /// The token keeps the callback, and all that the callback holds, until the callback is called or stopped, or the
    /// token is dropped with all tokens below it. A callback that holds its own token, and is neither called nor
    /// stopped, is never freed.
    pub fn on_cancel(&self, callback: impl FnOnce(&CancelReason) + Send + 'static) -> Registration {
        let mut state = self.0.state.lock();
        let Some(reason) = state.reason.clone() else {
            let ticket = state.ticket();
            state.callbacks.insert(ticket, Box::new(callback));
            return Registration {
                node: Arc::downgrade(&self.0),
                ticket,
            };
        };
        drop(state);
        call(callback, &reason);
        Registration {
            node: Weak::new(),
            ticket: 0,
        }
    }

    /// Blocks this thread until the token is cancelled, at most for `timeout`, if there is one. Returns whether the
    /// token is cancelled.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        self.wait_for(timeout.and_then(|timeout| Instant::now().checked_add(timeout)))
    }

    /// Blocks this thread until the token is cancelled, at most until `end`. Returns whether the token is cancelled.
    pub fn wait_until(&self, end: Instant) -> bool {
        self.wait_for(Some(end))
    }

    fn wait_for(&self, end: Option<Instant>) -> bool {
        let node = &*self.0;
        let mut state = node.state.lock();
        while !self.is_cancelled() {
            match end {
                None => node.changed.wait(&mut state),
                Some(end) if node.changed.wait_until(&mut state, end) => break,
                Some(_) => {}
            }
        }
        self.is_cancelled()
    }

    /// Starts the clock of a node's own deadline, if it has one.
    fn armed(node: Arc<Node>) -> Result<Self, NoTimer> {
        if let Some(alarm) = node.alarm {
            if alarm.at() <= Instant::now() {
                let (_, deferred) = node.cancel(CancelReason::deadline(), IfRetired::PassOn);
                // A token that is just made has no callbacks.
                drop(deferred);
            } else {
                let due = Arc::downgrade(&node);
                if !timer::arm(alarm, due) {
                    return Err(NoTimer);
                }
            }
        }
        Ok(Self(node))
    }
}

const REFUSED: &str = "the system refuses the thread that watches deadlines";

/// The system refuses the thread that a deadline needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoTimer;

/// A token is equal to its clones only.
impl PartialEq for CancelToken {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for CancelToken {}

impl Hash for CancelToken {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

impl Default for CancelToken {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for CancelToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelToken")
            .field("cancelled", &self.is_cancelled())
            .field("deadline", &self.deadline())
            .finish_non_exhaustive()
    }
}

/// A callback that [`on_cancel`](CancelToken::on_cancel) registered. Dropping the registration does not stop the
/// callback.
#[derive(Debug)]
pub struct Registration {
    /// Weak, so that a kept registration does not keep the token and its callbacks.
    node: Weak<Node>,
    ticket: u64,
}

impl Registration {
    /// Drops the callback, which then is never called, and returns true. Returns false if the callback was called, is
    /// being called, or went with its token.
    ///
    /// Does not block: it does not wait for a call that has begun.
    pub fn stop(self) -> bool {
        let Some(node) = self.node.upgrade() else {
            return false;
        };
        let callback = node.state.lock().callbacks.remove(&self.ticket);
        callback.is_some()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
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
}
