//! The life of one run: it is opened, starts, emits, and may be cancelled. How it ends is in `end.rs`.

use super::annotations::Annotations;
use super::log_view::LogView;
use super::state::{RunState, Times};
use crate::cancel::{CancelKind, CancelToken};
use crate::log::{Ended, EventLog, Overflow, Stage, Start, Subscription, TryAppendError, Wait};
use crate::run_id::RunId;
use crate::sync::{AtomicBool, Mutex, OnceLock, Ordering};
use crate::wire::{EncodedBody, EventId, EventKind, Object};
use serde::Serialize;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The table that a run is in.
pub(super) trait Owner: Send + Sync {
    /// The run ends: from now on it is not live. Called under its log's lock. Returns the live runs that are part of
    /// it, and end with it; None if the run is not live here.
    fn leave(&self, run: &Run) -> Option<Vec<Arc<Run>>>;

    /// The run has its terminal event, and the sinks know of it. Called after [`leave`](Self::leave), with no lock
    /// held. Returns the finished runs that are forgotten by now, for the caller to drop.
    fn settle(&self, run: &Run) -> Vec<Arc<Run>>;

    /// The end of the run is over: its readers are woken. Called with no lock held.
    fn ended(&self, run: &Run);

    /// An event or an annotation was refused, since the run had ended. Called with no lock held.
    fn was_late(&self, run: &Run);
}

/// The live run that another run is a part of.
#[derive(Clone, Debug)]
pub(super) struct Parent {
    pub(super) id: RunId,
    pub(super) number: u64,
    /// Whether the other run goes on after this one's end.
    pub(super) is_detached: bool,
}

/// Which run it is, of all that its table has opened.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) id: RunId,
    pub(super) generation: u64,
    /// Greater than that of every run that was opened before it in the same table.
    pub(super) number: u64,
    pub(super) parent: Option<Parent>,
}

/// One run: its log, its token, its end. Shared as `Arc<Run>`; all methods may be called from any thread.
///
/// A handle speaks for this run and no other, also after another run of the same id was opened: the events of an older
/// generation are refused, since its log has ended.
///
/// A run that was asked to stop ends as `lifecycle.cancelled`, whichever of [`complete`](Self::complete),
/// [`fail`](Self::fail), [`fail_with`](Self::fail_with), [`scope`](Self::scope) and
/// [`finish_cancelled`](Self::finish_cancelled) ends it. A cancel that arrives while the run ends may come too late:
/// then the run ends as it would have without the cancel.
pub struct Run {
    pub(super) identity: Identity,
    opened_at: SystemTime,
    pub(super) token: CancelToken,
    pub(super) log: Arc<EventLog>,
    /// False once the log has its first event: the same as the log knows under its lock. Stored with Release, loaded
    /// with Acquire: a thread that sees false finds the first event in the log.
    pub(super) is_unstarted: AtomicBool,
    acknowledged: OnceLock<SystemTime>,
    /// Protects the annotations. Under it they are copied, or others added, which is work on text; no other lock is
    /// taken.
    pub(super) annotations: Mutex<Annotations>,
    /// When the run had been asked to stop, as its end found it. Empty until then.
    pub(super) asked: OnceLock<Option<SystemTime>>,
    /// Set once a cancel of the run makes emitting threads wait for its readers no more.
    is_hurried_by_cancel: OnceLock<()>,
    pub(super) owner: Weak<dyn Owner>,
}

impl fmt::Debug for Run {
    /// Does not block.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run")
            .field("id", self.id())
            .field("generation", &self.generation())
            .field("has_ended", &self.asked.get().is_some())
            .finish_non_exhaustive()
    }
}

impl Run {
    /// A run that has not started; its log waits for its first event.
    pub(super) fn new(
        identity: Identity,
        token: CancelToken,
        log: Arc<EventLog>,
        owner: Weak<dyn Owner>,
    ) -> Arc<Self> {
        Arc::new(Self {
            identity,
            opened_at: SystemTime::now(),
            token,
            log,
            is_unstarted: AtomicBool::new(true),
            acknowledged: OnceLock::new(),
            annotations: Mutex::default(),
            asked: OnceLock::new(),
            is_hurried_by_cancel: OnceLock::new(),
            owner,
        })
    }

    /// The run's id.
    pub fn id(&self) -> &RunId {
        &self.identity.id
    }

    /// The number of runs of this id that came before, as far as the table remembers, plus one.
    pub fn generation(&self) -> u64 {
        self.identity.generation
    }

    /// The id of the run that this run is a part of.
    pub fn parent(&self) -> Option<&RunId> {
        self.identity.parent.as_ref().map(|parent| &parent.id)
    }

    /// The run's place in the order in which the table's runs were opened.
    pub(super) fn number(&self) -> u64 {
        self.identity.number
    }

    /// The number of the live run with whose end this one is cancelled.
    pub(super) fn ends_with(&self) -> Option<u64> {
        let parent = self.identity.parent.as_ref()?;
        (!parent.is_detached).then_some(parent.number)
    }

    /// When the run was opened, by the system's clock.
    pub fn opened_at(&self) -> SystemTime {
        self.opened_at
    }

    /// The token that is cancelled when the run is to stop: give children of it to the run's workers.
    ///
    /// After the end of the run neither its deadline nor a cancel of its parent reaches the token, and its callbacks
    /// are dropped. The tokens below it, and so the [detached](crate::RunBuilder::detached) runs that are part of this
    /// run, are still reached by these. A cancel of the token itself still cancels it.
    pub fn token(&self) -> &CancelToken {
        &self.token
    }

    /// What the run's log has so far.
    pub fn log(&self) -> LogView<'_> {
        LogView(&self.log)
    }

    /// Where the run is in its life.
    pub fn state(&self) -> RunState {
        match self.log.stage() {
            Stage::Unopened => RunState::Pending,
            Stage::Open => RunState::Running,
            Stage::Ended(EventKind::COMPLETED) => RunState::Completed,
            Stage::Ended(EventKind::CANCELLED) => RunState::Cancelled,
            Stage::Ended(_) => RunState::Failed,
        }
    }

    /// Whether the run has its terminal event.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.log.stage(), Stage::Ended(_))
    }

    /// When the run was asked to stop, took note, and ended.
    pub fn times(&self) -> Times {
        let finished = self
            .log
            .terminal()
            .map(|frame| UNIX_EPOCH + Duration::from_millis(frame.id().ms));
        let requested = self.asked.get().copied().unwrap_or_else(|| {
            let reason = self.token.reason();
            reason.map(|reason| reason.requested_at)
        });
        Times {
            // The end is known to the millisecond.
            requested: requested.map(|at| finished.map_or(at, |finished| at.min(finished))),
            acknowledged: self.acknowledged.get().copied(),
            finished,
        }
    }

    /// Starts a run that was opened as pending: appends its `lifecycle.started`. Returns whether the run has started,
    /// now or before, and has not ended.
    ///
    /// A run that was asked to stop before does not start: it ends as cancelled, which is its only event. Does not
    /// block.
    pub fn start(&self) -> bool {
        if self.is_unstarted.load(Ordering::Acquire) {
            match self.token.reason() {
                Some(reason) => self.end_unstarted(&reason),
                None => self.log.open(),
            }
            self.is_unstarted.store(false, Ordering::Release);
        }
        self.state() == RunState::Running
    }

    /// Appends an event to the run's log. A pending run is started by it, if it may still start. A terminal event ends
    /// the run, also one that was asked to stop. See [`EventLog::append`] for when it blocks.
    ///
    /// # Errors
    ///
    /// [`Ended`] if the run has ended: the event is not kept, and counted as [late](crate::RunsStats::late).
    pub fn emit(&self, body: &EncodedBody) -> Result<EventId, Ended> {
        // An emit that waits patiently is refused by nothing else.
        self.emit_within(body, Wait::Patiently).map_err(|_| Ended)
    }

    /// As [`emit`](Self::emit), for a thread that must not wait.
    ///
    /// # Errors
    ///
    /// [`TryAppendError::WouldBlock`], and nothing has happened, if the thread might have to wait, and for a pending
    /// run and a terminal event: call `emit` where waiting is allowed. [`TryAppendError::Ended`] as `emit`.
    pub fn try_emit(&self, body: &EncodedBody) -> Result<EventId, TryAppendError> {
        self.emit_within(body, Wait::Never)
    }

    /// As [`emit`](Self::emit), for a thread that waits as `wait` says.
    ///
    /// # Errors
    ///
    /// [`TryAppendError`]. If it is [`WouldBlock`](TryAppendError::WouldBlock), the event is not in the log; a pending run
    /// has started all the same.
    pub fn emit_within(&self, body: &EncodedBody, wait: Wait) -> Result<EventId, TryAppendError> {
        let is_unstarted = self.is_unstarted.load(Ordering::Acquire);
        let is_terminal = body.kind().is_terminal();
        if matches!(wait, Wait::Never) && (is_unstarted || is_terminal) {
            return Err(TryAppendError::WouldBlock);
        }
        if is_unstarted && *body.kind() != EventKind::CANCELLED {
            self.start();
        }
        let appended = if is_terminal {
            self.end(body, self.token.reason().as_ref())
                .map_err(TryAppendError::from)
        } else {
            self.log.append_within(body, wait)
        };
        if appended == Err(TryAppendError::Ended) {
            self.was_late();
        }
        appended
    }

    /// Opens a subscription to the run's events.
    ///
    /// With [`Overflow::Block`], emitting threads wait for this reader until the run is asked to stop.
    pub fn subscribe(&self, start: &Start, overflow: Overflow) -> Subscription {
        if let Overflow::Block(_) = overflow {
            self.is_hurried_by_cancel.get_or_init(|| {
                let log = Arc::downgrade(&self.log);
                self.token.on_cancel(move |_| {
                    if let Some(log) = log.upgrade() {
                        log.hurry();
                    }
                });
            });
        }
        self.log.subscribe(start, overflow)
    }

    /// Asks the run, and all runs and tokens below it, to stop. Returns whether this was the first to ask.
    ///
    /// A run that has not started ends by it. A run that has ended is not asked any more, and neither is what is below
    /// it.
    pub fn cancel(&self, kind: CancelKind, message: &str) -> bool {
        if self.has_ended() {
            return false;
        }
        let (is_first, deferred) = self.token.cancel_unless_retired(kind, message.into());
        deferred.run();
        is_first
    }

    /// Notes that the run's code was told of its cancellation. Only the first time is kept.
    pub fn acknowledge(&self) {
        self.acknowledged.get_or_init(SystemTime::now);
    }

    /// Puts fields into the run's terminal event, however the run ends: what the run's code knows before the end, such
    /// as the tokens that it has used. A value that is no object becomes `{"annotation": …}`.
    ///
    /// Of two fields of one name the later stays, and a field that comes with the end in any case. An event that is
    /// [emitted](Self::emit) as terminal stays as it is. All annotations of a run together hold at most 64 KiB of JSON.
    /// Returns false, and counts the annotation as [late](crate::RunsStats::late), if the run ends or has ended: so it
    /// is for callbacks of the cancel that ends a pending run, and of a shutdown. Does not block.
    ///
    /// # Errors
    ///
    /// The error of `fields`' serialisation, or that they do not fit: then none of them is added.
    pub fn annotate(&self, fields: &(impl Serialize + ?Sized)) -> serde_json::Result<bool> {
        let fields = Object::encode(fields, "annotation")?;
        let is_added = self.annotations.lock().add(&fields);
        let is_added = is_added.map_err(serde::ser::Error::custom)?;
        if !is_added {
            self.was_late();
        }
        Ok(is_added)
    }

    /// Waits for the terminal event, at most `timeout`. Returns true once the run has ended, false on timeout.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        self.log.wait_for_end(timeout)
    }

    fn was_late(&self) {
        if let Some(owner) = self.owner.upgrade() {
            owner.was_late(self);
        }
    }
}
