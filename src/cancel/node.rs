//! The tree of tokens: a cancel reaches a node and all nodes below it, never those above.
//!
//! # Locks
//!
//! Each node's lock protects its reason, its list of children and its callbacks, for the length of one operation on
//! them. A thread holds one node's lock at a time: a walk down the tree copies the references to the children under one
//! lock before it takes the next. Under a lock no callback is called or dropped, and no reference to a node is dropped,
//! since the last reference takes that node's callbacks with it.

use super::reason::CancelReason;
use crate::sync::{AtomicBool, Condvar, Mutex, Ordering};
use crate::threads::background;
use crate::threads::timer::{self, Alarm, Due};
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::Instant;

/// What a cancel does to a retired node, if that is the node that it begins with. A retired node further down passes
/// every cancel on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IfRetired {
    /// The node is cancelled like any other. A user's own [`CancelToken::cancel`](super::CancelToken::cancel) does this.
    Cancel,
    /// Nothing, neither to the node nor below it. A cancel of its run does this.
    Nothing,
    /// The node is not cancelled; the nodes below it are. A deadline does this.
    PassOn,
}

/// What must wait until no lock is held: a token's callbacks are a user's code, and so are their destructors.
#[must_use]
#[derive(Default)]
pub(crate) struct Deferred {
    /// Nodes that are cancelled, and whose callbacks have still to run.
    called: Vec<(Arc<Node>, CancelReason)>,
    /// The callbacks of a node that was retired.
    _dropped: BTreeMap<u64, Callback>,
}

impl Deferred {
    /// Runs the callbacks of cancelled tokens on this thread, and drops those of retired tokens.
    ///
    /// Each callback is taken out of its token's lock alone, so that it can be stopped until the moment it is called.
    pub(crate) fn run(self) {
        for (node, reason) in &self.called {
            while let Some(callback) = node.next_callback() {
                call(callback, reason);
            }
        }
    }
}

/// What [`CancelToken::on_cancel`](super::CancelToken::on_cancel) registers.
pub(super) type Callback = Box<dyn FnOnce(&CancelReason) + Send>;

/// Calls a callback; a panic in it ends here.
pub(super) fn call(callback: impl FnOnce(&CancelReason), reason: &CancelReason) {
    // The panic hook has reported the panic.
    let _ = catch_unwind(AssertUnwindSafe(|| callback(reason)));
}

/// What the clones of one token share.
pub(super) struct Node {
    /// Whether the node is cancelled, to be read without the lock. Stored under the lock of `state`, which then has the
    /// reason.
    pub(super) cancelled: AtomicBool,
    pub(super) state: Mutex<State>,
    /// For the threads that wait for `cancelled`.
    pub(super) changed: Condvar,
    pub(super) deadline: Option<Instant>,
    /// Where the timer keeps this node, if its deadline is its own.
    pub(super) alarm: Option<Alarm>,
    /// The node above, and this node's place in its list. Strong: a cancel must reach a grandchild, even if no one
    /// holds the child.
    parent: Option<(Arc<Self>, u64)>,
}

#[derive(Default)]
pub(super) struct State {
    /// Why this node is cancelled.
    pub(super) reason: Option<CancelReason>,
    /// Why the nodes below are cancelled, if this retired node only passed that cancel on: the first such reason.
    passed_on: Option<CancelReason>,
    retired: bool,
    /// The node is neither in its parent's list nor with the timer any more.
    apart: bool,
    /// The nodes directly below, as far as a cancel may still have to reach them: empty once all below are cancelled.
    pub(super) children: BTreeMap<u64, Weak<Node>>,
    /// Callbacks that were not called, in the order of registration. None is added after a cancel.
    pub(super) callbacks: BTreeMap<u64, Callback>,
    tickets: u64,
}

impl State {
    /// The next key of either list.
    pub(super) fn ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }

    /// Why the nodes below are cancelled, as this node has it. The reason that was passed on comes first: a node that
    /// is cancelled passes none on.
    fn why_below(&self) -> Option<&CancelReason> {
        self.passed_on.as_ref().or(self.reason.as_ref())
    }
}

impl Node {
    pub(super) fn new(deadline: Option<Instant>, own: Option<Instant>) -> Self {
        Self {
            cancelled: AtomicBool::new(false),
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
            deadline,
            alarm: own.map(Alarm::new),
            parent: None,
        }
    }

    pub(super) fn child(self: &Arc<Self>, at: Option<Instant>) -> Arc<Self> {
        let mut state = self.state.lock();
        let above = self.deadline.filter(|_| !state.apart);
        let own = at.filter(|&at| above.is_none_or(|above| at < above));
        let mut child = Self::new(own.or(above), own);
        // Under the lock of the list: a cancel either came before, and is seen here, or comes later, and finds the
        // child.
        if let Some(why) = state.why_below() {
            child.state = Mutex::new(State {
                reason: Some(why.for_below()),
                ..State::default()
            });
            child.cancelled = AtomicBool::new(true);
            child.alarm = None;
            return Arc::new(child);
        }
        let ticket = state.ticket();
        child.parent = Some((Arc::clone(self), ticket));
        let child = Arc::new(child);
        state.children.insert(ticket, Arc::downgrade(&child));
        child
    }

    pub(super) fn retire(&self) -> Deferred {
        let mut state = self.state.lock();
        state.retired = true;
        let callbacks = match state.reason {
            // The thread that cancelled the node calls them.
            Some(_) => BTreeMap::new(),
            None => std::mem::take(&mut state.callbacks),
        };
        // A node with others below it stays in the tree, for their sake.
        state.apart = state.children.is_empty();
        let apart = state.apart;
        drop(state);
        if apart {
            self.disarm();
            if let Some((parent, ticket)) = &self.parent {
                parent.state.lock().children.remove(ticket);
            }
        }
        Deferred {
            _dropped: callbacks,
            ..Deferred::default()
        }
    }

    /// Cancels this node and all nodes below it, and wakes the threads that wait for one of them. Returns whether this
    /// call was the first to reach this node, and the callbacks of the nodes that it was the first to reach, the upper
    /// ones first. `if_retired` is about this node; a retired node below it passes the cancel on.
    ///
    /// A list of children is emptied only once all nodes below are cancelled. So if two walks meet, each walk does what
    /// the other has still to do, and neither returns before the whole subtree is cancelled.
    pub(super) fn cancel(
        self: &Arc<Self>,
        why: CancelReason,
        mut if_retired: IfRetired,
    ) -> (bool, Deferred) {
        let (mut first, mut deferred, mut passed) = (false, Deferred::default(), Vec::new());
        let mut ahead = VecDeque::from([(Arc::clone(self), why)]);
        while let Some((node, why)) = ahead.pop_front() {
            let mut state = node.state.lock();
            // This node is the first of the walk.
            let here = std::mem::replace(&mut if_retired, IfRetired::PassOn);
            if state.retired && here == IfRetired::Nothing {
                return (false, deferred);
            }
            let is_passed_on = state.retired && here == IfRetired::PassOn;
            let reached = !is_passed_on && state.reason.is_none();
            if reached {
                state.reason = Some(why.clone());
                // Release: the partner is the Acquire load in `CancelToken::is_cancelled`.
                node.cancelled.store(true, Ordering::Release);
            } else if state.why_below().is_none() {
                state.passed_on = Some(why.clone());
            }
            let below = state.why_below().unwrap_or(&why).for_below();
            let children = state.children.values().filter_map(Weak::upgrade);
            ahead.extend(children.map(|child| (child, below.clone())));
            let has_children = !state.children.is_empty();
            let has_callbacks = !state.callbacks.is_empty();
            drop(state);
            if reached {
                first |= Arc::ptr_eq(&node, self);
                node.changed.notify_all();
                node.disarm();
                if has_callbacks {
                    deferred.called.push((Arc::clone(&node), why));
                }
            }
            if has_children {
                passed.push(node);
            }
        }
        for node in passed {
            let children = std::mem::take(&mut node.state.lock().children);
            drop(children);
        }
        (first, deferred)
    }

    fn next_callback(&self) -> Option<Callback> {
        let (_, callback) = self.state.lock().callbacks.pop_first()?;
        Some(callback)
    }

    fn disarm(&self) {
        if let Some(alarm) = self.alarm {
            timer::disarm(alarm);
        }
    }

    /// Takes a node that has no reference left out of its parent's list and the timer. Returns the parent.
    fn leave(&mut self) -> Option<Arc<Self>> {
        self.disarm();
        let (parent, ticket) = self.parent.take()?;
        parent.state.lock().children.remove(&ticket);
        Some(parent)
    }
}

impl Due for Node {
    /// Cancels on the timer's thread. The callbacks are called, and dropped, in the background: a callback that blocks
    /// must not delay other deadlines.
    fn due(self: Arc<Self>) {
        let (_, deferred) = self.cancel(CancelReason::deadline(), IfRetired::PassOn);
        if !deferred.called.is_empty() {
            background::run(Box::new(|| deferred.run()));
        }
    }
}

impl Drop for Node {
    /// Drops also the nodes above that only this node kept. In a loop, since a tree may be deeper than the stack.
    fn drop(&mut self) {
        let mut above = self.leave();
        while let Some(node) = above {
            above = Arc::into_inner(node).and_then(|mut node| node.leave());
        }
    }
}
