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
mod tests;
