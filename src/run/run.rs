//! The life of one run: it is opened, starts, emits, may be cancelled, and has one end.

use super::annotations::Annotations;
use crate::cancel::{CancelKind, Cancelled};
use crate::cancel::{CancelToken, Retired};
use crate::log::{Ended, EventLog};
use crate::log::{Overflow, Start, Subscription};
use crate::run_id::RunId;
use crate::sync::{AtomicBool, Mutex, OnceLock, Ordering};
use crate::wire::Object;
use crate::wire::{Action, EventId, Word};
use crate::wire::{Body, Frame};
use serde::Serialize;
use serde_json::json;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Where a run is in its life. What it ended as is what its terminal event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RunState {
    /// It was opened, and has no event yet.
    Pending,
    /// It has started and has no terminal event yet; it may have been asked to stop.
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
            Self::Pending => "pending",
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
    /// Somebody, or a deadline, asked it to stop, before its end.
    pub requested: Option<SystemTime>,
    /// Its code was told so.
    pub acknowledged: Option<SystemTime>,
    /// Its terminal event was appended.
    pub finished: Option<SystemTime>,
}

/// The table that a run is in, if it is still there.
pub(crate) trait Home: Send + Sync {
    /// The run ends: from now on it is not live. Called under its log's lock. Returns the live runs that are part of it,
    /// and end with it; None if the run is not live here.
    fn leave(&self, run: &Run) -> Option<Vec<Arc<Run>>>;

    /// Called after `leave`, once the terminal event is in the log and the sinks know of it, with no lock held. Returns
    /// the finished runs that are forgotten by now.
    fn settle(&self, run: &Run) -> Vec<Arc<Run>>;

    /// An event was refused, since the run had ended. Called with no lock held.
    fn was_late(&self);
}

/// What a run's log has told: to be read, not to be written.
///
/// To follow the events as they come, see [`Run::subscribe`].
#[derive(Clone, Copy, Debug)]
pub struct LogView<'a>(&'a EventLog);

impl LogView<'_> {
    /// The terminal event, once it is appended.
    pub fn terminal(self) -> Option<Arc<Frame>> {
        self.0.terminal()
    }

    /// The id of the latest event.
    pub fn last_id(self) -> Option<EventId> {
        self.0.last_id()
    }

    /// How many events the log's readers were told to have lost, by gaps. An event that several lost counts for each.
    pub fn lost(self) -> u64 {
        self.0.lost()
    }

    /// How many events were appended, and how many of them are held.
    pub fn len(self) -> (u64, usize) {
        self.0.len()
    }

    /// Whether nothing was appended yet.
    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// The bytes of the encoded events that are held. Does not block.
    pub fn held_bytes(self) -> u64 {
        self.0.held_bytes()
    }
}

/// One run: its log, its token, its end. Shared as `Arc<Run>`; all methods may be called from any thread.
///
/// Whoever holds it speaks for this run and no other, also after another run of the same id was opened: the
/// events of an older generation are refused, since its log has ended.
///
/// A run that was asked to stop ends as `lifecycle.cancelled`, whichever of [`complete`](Self::complete),
/// [`fail`](Self::fail), [`fail_with`](Self::fail_with), [`scope`](Self::scope) and
/// [`finish_cancelled`](Self::finish_cancelled) ends it. A cancel that arrives while it ends may come too late, and
/// the end is what it would have been without.
pub struct Run {
    id: RunId,
    generation: u64,
    /// Greater than that of every run that was opened before it in the same table.
    number: u64,
    opened_at: SystemTime,
    parent: Option<Parent>,
    token: CancelToken,
    log: Arc<EventLog>,
    /// False once the log has its first event: the same for who wants no lock.
    unstarted: AtomicBool,
    acknowledged: OnceLock<SystemTime>,
    /// Under the lock these are copied, or others added, which is work on text; no other lock is taken.
    annotations: Mutex<Annotations>,
    /// When it had been asked to stop, as its end found it. Empty until then.
    asked: OnceLock<Option<SystemTime>>,
    /// Set once a cancel makes producers wait no more.
    hurries: OnceLock<()>,
    home: Weak<dyn Home>,
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
    /// A run that has not started; its log waits for its first event.
    pub(crate) fn new(
        id: RunId,
        (generation, number): (u64, u64),
        parent: Option<Parent>,
        token: CancelToken,
        log: Arc<EventLog>,
        home: Weak<dyn Home>,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            generation,
            number,
            opened_at: SystemTime::now(),
            parent,
            token,
            log,
            unstarted: AtomicBool::new(true),
            acknowledged: OnceLock::new(),
            annotations: Mutex::default(),
            asked: OnceLock::new(),
            hurries: OnceLock::new(),
            home,
        })
    }

    /// Has a run that has not started end as soon as it is cancelled, also by its parent or its deadline.
    pub(crate) fn end_unstarted_on_cancel(self: &Arc<Self>) {
        let run = Arc::downgrade(self);
        self.token.on_cancel(move |why| {
            if let Some(run) = run.upgrade() {
                run.end_unstarted(why);
            }
        });
    }

    /// Lets go of a run that nobody has seen: it says nothing when it is dropped.
    pub(crate) fn discard(&self) {
        self.asked.get_or_init(|| None);
    }

    /// Its place in the order in which the table's runs were opened.
    pub(crate) fn number(&self) -> u64 {
        self.number
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
        self.parent.as_ref().map(|parent| &parent.id)
    }

    /// The number of the live run with whose end this one is cancelled.
    pub(crate) fn ends_with(&self) -> Option<u64> {
        let parent = self.parent.as_ref()?;
        (!parent.is_detached).then_some(parent.number)
    }

    /// When the run was opened, by the system's clock.
    pub fn opened_at(&self) -> SystemTime {
        self.opened_at
    }

    /// The token that is cancelled when the run is to stop: hand out children of it.
    ///
    /// After the end of the run neither its deadline nor a cancel of its parent reaches the token, and its callbacks are
    /// dropped. The tokens below it, and so the [detached](crate::Opening::detached) runs that are part of it, are still
    /// reached by these. A cancel of the token itself still cancels it.
    pub fn token(&self) -> &CancelToken {
        &self.token
    }

    /// What the run's log has told so far.
    pub fn log(&self) -> LogView<'_> {
        LogView(&self.log)
    }

    /// The log itself, for the table.
    pub(crate) fn event_log(&self) -> &Arc<EventLog> {
        &self.log
    }

    /// Where the run is in its life.
    pub fn state(&self) -> RunState {
        match self.log.stage() {
            (_, Some(word)) => match word.action {
                Action::Completed => RunState::Completed,
                Action::Cancelled => RunState::Cancelled,
                _ => RunState::Failed,
            },
            (true, None) => RunState::Pending,
            (false, None) => RunState::Running,
        }
    }

    /// When it was asked to stop, took note, and ended.
    pub fn times(&self) -> Times {
        let finished = self
            .log
            .terminal()
            .map(|frame| UNIX_EPOCH + Duration::from_millis(frame.id().ms));
        let requested = self.asked.get().copied().unwrap_or_else(|| {
            let cancelled = self.token.cancelled();
            cancelled.map(|cancelled| cancelled.requested_at)
        });
        Times {
            // The end is known to the millisecond.
            requested: requested.map(|at| finished.map_or(at, |finished| at.min(finished))),
            acknowledged: self.acknowledged.get().copied(),
            finished,
        }
    }

    /// Starts a run that was opened as pending: appends its `lifecycle.started`. Whether the run has started, now or
    /// before, and has not ended.
    ///
    /// A run that was asked to stop before does not start: it ends as cancelled, which is its only event. Does not
    /// block.
    pub fn start(&self) -> bool {
        // Acquire, as in `emit`: the partner is the Release store below.
        if self.unstarted.load(Ordering::Acquire) {
            match self.token.cancelled() {
                Some(why) => self.end_unstarted(&why),
                None => drop(self.log.open()),
            }
            // Release: who sees it finds the first event in the log.
            self.unstarted.store(false, Ordering::Release);
        }
        self.state() == RunState::Running
    }

    /// Says something in the run's name. A pending run is started by it, if it may still start. A terminal event ends
    /// the run, also one that was asked to stop. See [`EventLog::append`] for when it blocks.
    ///
    /// # Errors
    ///
    /// [`Ended`], if the run has ended: the event is not kept, and counted as [late](crate::RunsStats::late).
    pub fn emit(&self, body: &Body) -> Result<EventId, Ended> {
        if self.unstarted.load(Ordering::Acquire) && body.word() != Word::CANCELLED {
            self.start();
        }
        let appended = if body.word().is_terminal() {
            self.end(body, self.token.cancelled().as_ref())
        } else {
            self.log.append(body)
        };
        if appended.is_err() {
            self.was_late();
        }
        appended
    }

    /// As [`emit`](Self::emit), for a thread that must not wait: `None`, and nothing has happened, if it might have to,
    /// and for a pending run and a terminal event. Whoever gets that calls `emit` where waiting is allowed.
    pub fn try_emit(&self, body: &Body) -> Option<Result<EventId, Ended>> {
        if self.unstarted.load(Ordering::Acquire) || body.word().is_terminal() {
            return None;
        }
        let appended = self.log.try_append(body);
        if appended == Some(Err(Ended)) {
            self.was_late();
        }
        appended
    }

    /// As [`emit`](Self::emit), for a caller that waits in slices of `timeout`, and has since `since`: `None`, and
    /// nothing has happened, if it has to go on waiting for a reader.
    pub fn emit_within(
        &self,
        body: &Body,
        since: Instant,
        timeout: Duration,
    ) -> Option<Result<EventId, Ended>> {
        if self.unstarted.load(Ordering::Acquire) || body.word().is_terminal() {
            // Nothing that waits: a run that begins has no reader that is behind.
            return Some(self.emit(body));
        }
        let appended = self.log.append_within(body, since, timeout);
        if appended == Some(Err(Ended)) {
            self.was_late();
        }
        appended
    }

    /// Follows the run's events.
    ///
    /// With [`Overflow::Block`], producers wait for this reader until the run is asked to stop.
    pub fn subscribe(&self, start: &Start, overflow: Overflow) -> Subscription {
        if let Overflow::Block(_) = overflow {
            self.hurries.get_or_init(|| {
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

    /// Asks the run, and all that is below it, to stop; whether this was the first to ask.
    ///
    /// A run that has not started ends by it. One that has ended is not asked any more, and neither is what is below it.
    pub fn cancel(&self, kind: CancelKind, reason: &str) -> bool {
        let has_ended = self.log.stage().1.is_some();
        !has_ended && self.token.cancel_unless_retired(kind, reason)
    }

    /// Notes that the run's code was told of its cancellation. Only the first time is kept.
    pub fn acknowledge(&self) {
        self.acknowledged.get_or_init(SystemTime::now);
    }

    /// Puts fields into the run's terminal event, however the run ends and whoever ends it: what its code knows before
    /// the end, such as what has been used up. What is no object becomes `{"annotation": …}`.
    ///
    /// Of two fields of one name the later stays, and that which comes with the end in any case. An event that is
    /// [emitted](Self::emit) as terminal is as it is. All annotations of a run together hold at most 64 KiB of JSON.
    /// False, and counted as [late](crate::RunsStats::late), if the run ends or has ended: so it is for callbacks of the
    /// cancel that ends a pending run, and of a shutdown. Does not block.
    ///
    /// # Errors
    ///
    /// What `fields` have against being JSON, or that they do not fit: then none of them is added.
    pub fn annotate(&self, fields: &(impl Serialize + ?Sized)) -> serde_json::Result<bool> {
        let fields = Object::encode(fields, "annotation")?;
        let is_added = self.annotations.lock().add(&fields);
        let is_added = is_added.map_err(serde::ser::Error::custom)?;
        if !is_added {
            self.was_late();
        }
        Ok(is_added)
    }

    /// Ends the run well, with what came out of it; whether this was its end. What is no object becomes
    /// `{"result": …}`.
    ///
    /// If it was asked to stop it ends as cancelled, with the fields of the result beside `kind` and `reason`, which are
    /// those of the cancellation. Cancels the runs that are part of this one, and calls what their tokens'
    /// `on_cancel` has registered, on this thread; otherwise it does not block.
    ///
    /// # Errors
    ///
    /// What `result` has against being JSON; the run goes on.
    pub fn complete(&self, result: &(impl Serialize + ?Sized)) -> serde_json::Result<bool> {
        Ok(self.conclude(Word::COMPLETED, Object::encode(result, "result")?))
    }

    /// Ends the run with an error; whether this was its end. If it was asked to stop it ends as cancelled, and the error
    /// is taken for a consequence. Blocks only as [`complete`](Self::complete) does.
    pub fn fail(&self, error: &str, details: &str) -> bool {
        let fields = [("error", text(error)), ("details", text(details))];
        let fields: &[_] = if self.token.is_cancelled() {
            &[]
        } else {
            &fields
        };
        self.conclude(Word::FAILED, Object::empty().with(fields))
    }

    /// Ends the run with an error that has fields of its own; whether this was its end. What is no object becomes
    /// `{"error": …}`. If it was asked to stop: as [`complete`](Self::complete) then does.
    ///
    /// # Errors
    ///
    /// What `error` has against being JSON; the run goes on.
    pub fn fail_with(&self, error: &(impl Serialize + ?Sized)) -> serde_json::Result<bool> {
        Ok(self.conclude(Word::FAILED, Object::encode(error, "error")?))
    }

    /// Ends the run as cancelled, for the reason that its token has; whether this was its end.
    ///
    /// A run that nobody asked to stop is cancelled by it: the callbacks of its token run after the end.
    pub fn finish_cancelled(&self) -> bool {
        if self.log.stage().1.is_some() {
            return false;
        }
        let marked = self.token.mark(CancelKind::User, "the run gave up".into());
        let is_end = self.conclude(Word::CANCELLED, Object::empty());
        marked.call();
        is_end
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

    /// Ends the run: as cancelled if it was asked to stop, else with `word`. Under no lock: see the type's doc.
    fn conclude(&self, word: Word, data: Object) -> bool {
        let why = self.token.cancelled();
        let body = match &why {
            Some(why) => self.cancelled(why, data),
            None => lifecycle(word, self.parent(), self.annotated(data)),
        };
        self.end(&body, why.as_ref()).is_ok()
    }

    /// Ends the run as its only event, if it has not started.
    fn end_unstarted(&self, why: &Cancelled) {
        // Made only where it is the end: to make it closes the annotations.
        let body = || self.cancelled(why, Object::empty());
        let ended = self.log.append_unopened(body, || self.leave(Some(why)));
        if let Some((_, released)) = ended {
            released.cancel_children(&self.id);
        }
    }

    fn cancelled(&self, why: &Cancelled, data: Object) -> Body {
        let data = self.annotated(data).with(&[
            ("kind", text(why.kind.as_str())),
            ("reason", text(&why.reason)),
        ]);
        lifecycle(Word::CANCELLED, self.parent(), data)
    }

    /// Fields of the terminal event, and the annotations before them.
    fn annotated(&self, data: Object) -> Object {
        let annotations = self.annotations.lock().close();
        match annotations {
            Some(annotations) => annotations.and(&data),
            None => data,
        }
    }

    fn end(&self, body: &Body, why: Option<&Cancelled>) -> Result<EventId, Ended> {
        let (id, released) = self.log.append_with(body, || self.leave(why))?;
        released.cancel_children(&self.id);
        Ok(id)
    }

    /// Leaves the live runs, and what is above its token. Under the log's lock: who sees that the run has ended, in
    /// whichever way, finds it gone from there. Returns the rest of its end, which comes with no lock held.
    fn leave(&self, why: Option<&Cancelled>) -> impl FnOnce() -> Released {
        self.asked.get_or_init(|| why.map(|why| why.requested_at));
        let home = self.home.upgrade();
        let children = home.as_ref().and_then(|home| home.leave(self));
        // After the table knows: what is opened below a live run hangs below its token.
        let retired = self.token.retire();
        move || {
            // Release: who sees it finds the last event in the log.
            self.unstarted.store(false, Ordering::Release);
            *self.annotations.lock() = Annotations::GONE;
            let forgotten = match (&children, home) {
                (Some(_), Some(home)) => home.settle(self),
                _ => Vec::new(),
            };
            Released {
                _retired: retired,
                children: children.unwrap_or_default(),
                _forgotten: forgotten,
            }
        }
    }

    fn was_late(&self) {
        if let Some(home) = self.home.upgrade() {
            home.was_late();
        }
    }
}

impl Drop for Run {
    /// A run that nobody can end any more has failed: its readers wait for a last word.
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

/// What the end of a run has let go of: kept until all are woken and no lock is held, since destructors may do anything.
#[must_use]
struct Released {
    _retired: Retired,
    children: Vec<Arc<Run>>,
    _forgotten: Vec<Arc<Run>>,
}

impl Released {
    /// Cancels the live runs that were part of the run `ended`. Their tokens' callbacks run here.
    fn cancel_children(self, ended: &RunId) {
        for child in &self.children {
            let reason = format!("the parent run {ended} has ended");
            child.cancel(CancelKind::Parent, &reason);
        }
    }
}

/// The live run that another one is a part of.
#[derive(Clone, Debug)]
pub(crate) struct Parent {
    pub(crate) id: RunId,
    pub(crate) number: u64,
    /// Whether the other run goes on after this one's end.
    pub(crate) is_detached: bool,
}

/// The body of a lifecycle event: in a run that is part of another, the data name that one.
pub(crate) fn lifecycle(word: Word, parent: Option<&RunId>, data: Object) -> Body {
    let data = match parent {
        Some(parent) => data.with(&[("parent_run_id", json!(parent).to_string())]),
        None => data,
    };
    Body::from_json(word, b"null", data.as_bytes())
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
            self.0.conclude(Word::COMPLETED, Object::empty());
        }
    }
}
