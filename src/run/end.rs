//! How a run ends: once, by whichever thread comes first, with the runs that are part of it.

use super::annotations::Annotations;
use super::run::Run;
use crate::cancel::{CancelKind, CancelReason};
use crate::log::{Ended, Entry, Wait};
use crate::run_id::RunId;
use crate::sync::Ordering;
use crate::wire::{EncodedBody, EventId, EventKind, Object};
use serde::Serialize;
use serde_json::json;
use std::sync::Arc;

impl Run {
    /// Ends the run well, with its result. Returns whether this was its end. A value that is no object becomes
    /// `{"result": …}`.
    ///
    /// A run that was asked to stop ends as cancelled, with the fields of the result beside `kind` and `reason`, which
    /// are those of the cancellation. Cancels the runs that are part of this one, and calls the callbacks of their
    /// tokens on this thread; otherwise it does not block.
    ///
    /// # Errors
    ///
    /// The error of `result`'s serialisation; the run goes on.
    pub fn complete(&self, result: &(impl Serialize + ?Sized)) -> serde_json::Result<bool> {
        let data = Object::encode(result, "result")?;
        Ok(self.conclude(EventKind::COMPLETED, data))
    }

    /// Ends the run with an error. Returns whether this was its end. If the run was asked to stop it ends as cancelled,
    /// and the error is taken for a consequence. Blocks only as [`complete`](Self::complete) does.
    pub fn fail(&self, error: &str, details: &str) -> bool {
        let fields = [("error", text(error)), ("details", text(details))];
        let fields: &[_] = if self.token.is_cancelled() {
            &[]
        } else {
            &fields
        };
        self.conclude(EventKind::FAILED, Object::empty().with(fields))
    }

    /// Ends the run with an error that has fields of its own. Returns whether this was its end. A value that is no
    /// object becomes `{"error": …}`. A run that was asked to stop ends as [`complete`](Self::complete) says.
    ///
    /// # Errors
    ///
    /// The error of `error`'s serialisation; the run goes on.
    pub fn fail_with(&self, error: &(impl Serialize + ?Sized)) -> serde_json::Result<bool> {
        let data = Object::encode(error, "error")?;
        Ok(self.conclude(EventKind::FAILED, data))
    }

    /// Ends the run as cancelled, for the reason that its token has. Returns whether this was its end.
    ///
    /// A run that nobody asked to stop is cancelled by it: the callbacks of its token run after the end.
    pub fn finish_cancelled(&self) -> bool {
        if self.has_ended() {
            return false;
        }
        let message = "the run gave up".into();
        let (_, deferred) = self.token.cancel_unless_retired(CancelKind::User, message);
        let is_end = self.conclude(EventKind::CANCELLED, Object::empty());
        deferred.run();
        is_end
    }

    /// Ends the run when the scope is left: as failed in a panic, as cancelled if it was asked to stop, else well.
    ///
    /// A run that ended before stays as it ended.
    pub fn scope(self: &Arc<Self>) -> Scope {
        Scope(Arc::clone(self))
    }

    /// Has a run that has not started end as soon as it is cancelled, also by its parent or its deadline.
    pub(super) fn end_unstarted_on_cancel(self: &Arc<Self>) {
        let run = Arc::downgrade(self);
        self.token.on_cancel(move |reason| {
            if let Some(run) = run.upgrade() {
                run.end_unstarted(reason);
            }
        });
    }

    /// Drops a run that nobody has seen: it has no terminal event.
    pub(super) fn discard(&self) {
        self.asked.get_or_init(|| None);
    }

    /// Ends the run as its only event, if it has not started.
    pub(super) fn end_unstarted(&self, reason: &CancelReason) {
        let Some(entry) = self.log.enter_unopened() else {
            return;
        };
        // Made only where it is the end: to make it closes the annotations.
        let body = self.cancelled(reason, Object::empty());
        self.end_in(entry, &body, Some(reason));
    }

    /// Ends the run: as cancelled if it was asked to stop, else with `kind`.
    fn conclude(&self, kind: EventKind, data: Object) -> bool {
        let reason = self.token.reason();
        let body = match &reason {
            Some(reason) => self.cancelled(reason, data),
            None => lifecycle(kind, self.parent(), self.annotated(data)),
        };
        self.end(&body, reason.as_ref()).is_ok()
    }

    /// The terminal event of a run that was asked to stop.
    fn cancelled(&self, reason: &CancelReason, data: Object) -> EncodedBody {
        let data = self.annotated(data).with(&[
            ("kind", text(reason.kind.as_str())),
            ("reason", text(&reason.message)),
        ]);
        lifecycle(EventKind::CANCELLED, self.parent(), data)
    }

    /// Fields of the terminal event, and the annotations before them.
    fn annotated(&self, data: Object) -> Object {
        let annotations = self.annotations.lock().close();
        match annotations {
            Some(annotations) => annotations.and(&data),
            None => data,
        }
    }

    /// Ends the run with this terminal event.
    pub(super) fn end(
        &self,
        body: &EncodedBody,
        reason: Option<&CancelReason>,
    ) -> Result<EventId, Ended> {
        // A terminal event waits for nothing but the lock.
        let entry = self.log.enter(body, Wait::Patiently).map_err(|_| Ended)?;
        Ok(self.end_in(entry, body, reason))
    }

    /// Ends the run, with the log's lock in `entry`. The order of the steps is the promise: a thread that sees the end,
    /// in whichever way, finds the run live no more, and can open another of its id.
    fn end_in(
        &self,
        entry: Entry<'_>,
        body: &EncodedBody,
        reason: Option<&CancelReason>,
    ) -> EventId {
        self.asked
            .get_or_init(|| reason.map(|reason| reason.requested_at));
        let owner = self.owner.upgrade();
        let children = owner.as_ref().and_then(|owner| owner.leave(self));
        // After the table knows: what is opened below a live run hangs below its token.
        let deferred = self.token.retire();
        // The lock is released here, and the sinks are told.
        let appended = entry.append(body);
        self.is_unstarted.store(false, Ordering::Release);
        *self.annotations.lock() = Annotations::GONE;
        let forgotten = match (&children, &owner) {
            (Some(_), Some(owner)) => owner.settle(self),
            _ => Vec::new(),
        };
        let id = appended.wake();
        for child in children.iter().flatten() {
            let message = format!("the parent run {} has ended", self.id());
            child.cancel(CancelKind::Parent, &message);
        }
        if let Some(owner) = owner {
            owner.ended(self);
        }
        // Last, and with no lock held: destructors may do anything.
        drop((deferred, forgotten, children));
        id
    }
}

impl Drop for Run {
    /// A run whose last handle is gone has failed: its readers wait for its end.
    fn drop(&mut self) {
        // Without a look into the log: its lock may be held for ever in the child of a fork.
        if self.asked.get().is_none() {
            self.fail(
                "abandoned",
                "the last handle of the run was dropped before its end",
            );
        }
    }
}

/// The body of a lifecycle event. In a run that is part of another, the data name that one.
pub(super) fn lifecycle(kind: EventKind, parent: Option<&RunId>, data: Object) -> EncodedBody {
    let data = match parent {
        Some(parent) => data.with(&[("parent_run_id", json!(parent).to_string())]),
        None => data,
    };
    EncodedBody::from_json(kind, b"null", data.as_bytes())
}

/// A text as JSON.
fn text(text: &str) -> String {
    json!(text).to_string()
}

/// Holds a run open. See [`Run::scope`].
#[derive(Debug)]
pub struct Scope(Arc<Run>);

impl std::ops::Deref for Scope {
    type Target = Arc<Run>;

    fn deref(&self) -> &Arc<Run> {
        &self.0
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail("panic", "the run's thread panicked");
        } else {
            self.0.conclude(EventKind::COMPLETED, Object::empty());
        }
    }
}
