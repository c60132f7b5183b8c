//! The life of one run: it is opened, emits, may be cancelled, and has one end.

use crate::cancel::{CancelKind, CancelToken, Cancelled};
use crate::event::{Action, EventId, Payload, Source, Word};
use crate::event_log::{Ended, EventLog};
use crate::frame::Body;
use crate::run_id::RunId;
use crate::subscription::{Overflow, Start, Subscription};
use crate::sync::OnceLock;
use serde::Serialize;
use serde_json::Value;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where a run is in its life. What it ended as is what its terminal event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RunState {
    /// It has no terminal event yet; it may have been asked to stop.
    Running,
    /// Its last event is `lifecycle.completed`.
    Completed,
    /// Its last event is `lifecycle.failed`.
    Failed,
    /// Its last event is `lifecycle.cancelled`.
    Cancelled,
}

impl RunState {
    /// The state as people and events spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// When a run's cancellation was asked for, when the run took note, and when the run ended. All three are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// Somebody, or a deadline, asked it to stop.
    pub requested: Option<SystemTime>,
    /// Its code was told so.
    pub acknowledged: Option<SystemTime>,
    /// Its terminal event was appended.
    pub finished: Option<SystemTime>,
}

/// One run: its log, its token, its end. Shared as `Arc<Run>`; all methods may be called from any thread.
///
/// Whoever holds it speaks for this run and no other, also after another run of the same id was opened: the
/// events of an older generation are refused, since its log has ended.
pub struct Run {
    id: RunId,
    generation: u64,
    parent: Option<RunId>,
    token: CancelToken,
    log: Arc<EventLog>,
    acknowledged: OnceLock<SystemTime>,
    /// Called once, after the end, with no lock held.
    on_end: Box<dyn Fn(&Self) + Send + Sync>,
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run")
            .field("id", &self.id)
            .field("generation", &self.generation)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

impl Run {
    pub(crate) fn new(
        id: RunId,
        generation: u64,
        parent: Option<RunId>,
        token: CancelToken,
        log: Arc<EventLog>,
        on_end: Box<dyn Fn(&Self) + Send + Sync>,
    ) -> Self {
        Self {
            id,
            generation,
            parent,
            token,
            log,
            acknowledged: OnceLock::new(),
            on_end,
        }
    }

    /// The run's name.
    pub fn id(&self) -> &RunId {
        &self.id
    }

    /// How many runs of this name came before it, as far as the table remembers, plus one.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The run that it is a part of.
    pub fn parent(&self) -> Option<&RunId> {
        self.parent.as_ref()
    }

    /// The token that is cancelled when the run is to stop: hand out children of it.
    pub fn token(&self) -> &CancelToken {
        &self.token
    }

    /// The run's events.
    pub fn log(&self) -> &Arc<EventLog> {
        &self.log
    }

    /// Where the run is in its life.
    pub fn state(&self) -> RunState {
        match self.log.terminal().map(|frame| frame.word().action) {
            Some(Action::Completed) => RunState::Completed,
            Some(Action::Cancelled) => RunState::Cancelled,
            Some(_) => RunState::Failed,
            None => RunState::Running,
        }
    }

    /// When it was asked to stop, took note, and ended.
    pub fn times(&self) -> Times {
        Times {
            requested: self
                .token
                .cancelled()
                .map(|cancelled| cancelled.requested_at),
            acknowledged: self.acknowledged.get().copied(),
            finished: self
                .log
                .terminal()
                .map(|frame| UNIX_EPOCH + Duration::from_millis(frame.id().ms)),
        }
    }

    /// Says something in the run's name; a terminal event ends the run. See [`EventLog::append`] for when it blocks.
    ///
    /// # Errors
    ///
    /// [`Ended`], if the run has ended: the event is not kept.
    pub fn emit(&self, body: &Body) -> Result<EventId, Ended> {
        if body.word().is_terminal() {
            self.end(body)
        } else {
            self.log.append(body)
        }
    }

    /// Follows the run's events.
    pub fn subscribe(&self, start: &Start, overflow: Overflow) -> Subscription {
        self.log.subscribe(start, overflow)
    }

    /// Asks the run, and all that is below it, to stop; whether this was the first to ask.
    ///
    /// A run that has ended is not asked any more.
    pub fn cancel(&self, kind: CancelKind, reason: &str) -> bool {
        self.state() == RunState::Running && self.token.cancel(kind, reason)
    }

    /// Notes that the run's code was told of its cancellation. Only the first time is kept.
    pub fn acknowledge(&self) {
        self.acknowledged.get_or_init(SystemTime::now);
    }

    /// Ends the run well, with what came out of it; whether this was its end. What is no object becomes
    /// `{"result": …}`. Also a run that was asked to stop may have come to its end.
    ///
    /// # Errors
    ///
    /// What `result` has against being JSON; the run goes on.
    pub fn complete(&self, result: &impl Serialize) -> serde_json::Result<bool> {
        let data = match serde_json::to_value(result)? {
            object @ Value::Object(_) => object,
            result => serde_json::json!({ "result": result }),
        };
        Ok(self.finish(Word::COMPLETED, data))
    }

    /// Ends the run with an error, or, if it was asked to stop, as cancelled: whether this was its end.
    pub fn fail(&self, error: &str, details: &str) -> bool {
        if let Some(cancelled) = self.token.cancelled() {
            return self.end_cancelled(&cancelled);
        }
        let failure = Payload::Failure {
            error: error.to_owned(),
            details: Some(details.to_owned()),
        };
        self.finish(Word::FAILED, to_value(&failure))
    }

    /// Ends the run as cancelled, for the reason that its token has; whether this was its end.
    ///
    /// A run that nobody asked to stop is cancelled first.
    pub fn finish_cancelled(&self) -> bool {
        if self.state() != RunState::Running {
            return false;
        }
        self.token.cancel(CancelKind::User, "the run gave up");
        self.token
            .cancelled()
            .is_some_and(|cancelled| self.end_cancelled(&cancelled))
    }

    /// Waits for the terminal event, at most `timeout`; whether it is there.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        self.log.wait_for_end(timeout)
    }

    /// Ends the run when the scope is left: as failed in a panic, as cancelled if it was asked to stop, else well.
    ///
    /// What ended before stays as it ended.
    pub fn scope(self: &Arc<Self>) -> Scope {
        Scope(Arc::clone(self))
    }

    fn end_cancelled(&self, cancelled: &Cancelled) -> bool {
        let payload = Payload::Cancelled {
            kind: cancelled.kind.as_str().to_owned(),
            reason: cancelled.reason.to_string(),
        };
        self.finish(Word::CANCELLED, to_value(&payload))
    }

    fn finish(&self, word: Word, data: Value) -> bool {
        self.end(&lifecycle(word, self.parent.as_ref(), data))
            .is_ok()
    }

    fn end(&self, body: &Body) -> Result<EventId, Ended> {
        // Before anybody is woken by it: who then opens a run of this id finds it ended.
        self.log.append_then(body, || (self.on_end)(self))
    }
}

impl Drop for Run {
    /// A run that nobody can end any more has failed: its readers wait for a last word.
    fn drop(&mut self) {
        let failure = Payload::Failure {
            error: "abandoned".to_owned(),
            details: Some("the last handle of the run was dropped before its end".to_owned()),
        };
        let body = lifecycle(Word::FAILED, self.parent.as_ref(), to_value(&failure));
        let _ = self.log.append(&body);
    }
}

/// The body of a lifecycle event: in a run that is part of another, the data name that one.
pub(crate) fn lifecycle(word: Word, parent: Option<&RunId>, mut data: Value) -> Body {
    if let (Some(parent), Value::Object(data)) = (parent, &mut data) {
        data.insert("parent_run_id".to_owned(), serde_json::json!(parent));
    }
    Body::new(None::<&Source>, word, &data).expect("a JSON value is JSON")
}

fn to_value(payload: &Payload) -> Value {
    serde_json::to_value(payload).expect("own payloads are JSON")
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
        } else if self.0.token.is_cancelled() {
            self.0.finish_cancelled();
        } else {
            self.0
                .finish(Word::COMPLETED, Value::Object(serde_json::Map::new()));
        }
    }
}
