//! How a run is opened.

use super::end::lifecycle;
use super::listener::RunListener;
use super::open_error::OpenError;
use super::run::{Identity, Owner, Parent, Run};
use super::runs::Runs;
use crate::cancel::{CancelKind, CancelToken, NoTimer};
use crate::log::EventLog;
use crate::run_id::RunId;
use crate::sink::{Opened, follow};
use crate::wire::{EventKind, Object};
use serde::Serialize;
use std::sync::{Arc, Weak};
use std::time::Instant;

/// A run that is to be opened. Made by [`Runs::builder`].
///
/// ```
/// use llm_callback::Runs;
/// use std::time::{Duration, Instant};
///
/// let runs = Runs::default();
/// let run = runs.open(42)?;
/// let deadline = Instant::now() + Duration::from_secs(60);
/// let part = runs.builder("research").parent(&run).deadline(deadline).data(&"what is asked")?.open()?;
/// assert_eq!(part.parent(), Some(run.id()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct RunBuilder<'a> {
    runs: &'a Runs,
    id: RunId,
    parent: Option<&'a Arc<Run>>,
    is_detached: bool,
    deadline: Option<Instant>,
    data: Object,
    is_pending: bool,
}

impl Runs {
    /// Opens a run of its own that starts at once: the shorthand of [`builder(id).open()`](Self::builder).
    ///
    /// # Errors
    ///
    /// See [`RunBuilder::open`].
    pub fn open(&self, id: impl Into<RunId>) -> Result<Arc<Run>, OpenError> {
        self.builder(id).open()
    }

    /// Describes a run that is to be opened.
    pub fn builder(&self, id: impl Into<RunId>) -> RunBuilder<'_> {
        RunBuilder::new(self, id.into())
    }
}

impl<'a> RunBuilder<'a> {
    /// A run of its own without a deadline, that starts at once.
    fn new(runs: &'a Runs, id: RunId) -> Self {
        Self {
            runs,
            id,
            parent: None,
            is_detached: false,
            deadline: None,
            data: Object::empty(),
            is_pending: false,
        }
    }

    /// Makes the run a part of this live run, and of no later run of the same id. The parent's end cancels it, as
    /// [`CancelKind::Parent`], and so does a cancel of the parent.
    pub fn parent(self, parent: impl Into<Option<&'a Arc<Run>>>) -> Self {
        Self {
            parent: parent.into(),
            ..self
        }
    }

    /// Whether the run goes on after its parent's end. A cancel of the parent reaches it all the same.
    pub fn detached(self, is_detached: bool) -> Self {
        Self {
            is_detached,
            ..self
        }
    }

    /// Cancels the run at this time, as [`CancelKind::Deadline`], unless it has ended.
    pub fn deadline(self, deadline: impl Into<Option<Instant>>) -> Self {
        Self {
            deadline: deadline.into(),
            ..self
        }
    }

    /// Sets the data of the run's `lifecycle.started`, to which `parent_run_id` is added. A value that is no object
    /// becomes `{"data": …}`.
    ///
    /// # Errors
    ///
    /// The error of `data`'s serialisation.
    pub fn data(self, data: &(impl Serialize + ?Sized)) -> serde_json::Result<Self> {
        let data = Object::encode(data, "data")?;
        Ok(Self { data, ..self })
    }

    /// Whether the run waits for [`Run::start`], or its first event, and ends unstarted if it is cancelled before.
    pub fn pending(self, is_pending: bool) -> Self {
        Self { is_pending, ..self }
    }

    /// Opens the run. Its first event, `lifecycle.started`, is in its log before any other.
    ///
    /// The run's token is a child of its parent's. A run that is asked to stop before it has started, also one whose
    /// deadline has passed already, ends at once, with `lifecycle.cancelled` as its only event: see [`Run::state`].
    /// Does not block.
    ///
    /// # Errors
    ///
    /// See [`OpenError`]; then nothing has changed, and no event was emitted.
    pub fn open(self) -> Result<Arc<Run>, OpenError> {
        let table = &self.runs.0.table;
        let reserved = table.reserve(&self.id, self.parent)?;
        let parent = reserved.parent.clone();
        let token = self.token(parent.as_deref())?;
        let generation = reserved
            .before
            .as_ref()
            .map_or(1, |run| run.generation() + 1);
        // A clock that went back must not give out ids of the generation before again.
        let earliest = reserved.before.as_ref().and_then(|run| run.log().last_id());
        let earliest = earliest.map_or(0, |id| id.ms + 1);
        let parent_id = parent.as_ref().map(|parent| parent.id());
        let opening = lifecycle(EventKind::STARTED, parent_id, self.data);
        let identity = Identity {
            id: self.id,
            generation,
            number: reserved.number,
            parent: parent.map(|parent| Parent {
                id: parent.id().clone(),
                number: parent.number(),
                is_detached: self.is_detached,
            }),
        };
        let sinks = Arc::clone(&self.runs.0.sinks.lock().shared);
        let observers = table.observers();
        let log = EventLog::unopened(&identity.id, reserved.limits, opening, earliest, |log| {
            if sinks.is_empty() && observers.is_empty() {
                return None;
            }
            let opened = Opened {
                id: &identity.id,
                generation,
                number: identity.number,
            };
            Some(Box::new(RunListener {
                follows: follow(&sinks, &opened, log),
                observers: observers.clone(),
                id: identity.id.clone(),
            }))
        });
        let owner: Weak<dyn Owner> = Arc::downgrade(table) as _;
        let run = Run::new(identity, token, log, owner);
        if let Err(refused) = reserved.fill(&run) {
            run.discard();
            return Err(refused);
        }
        // Before the start, which ends a run that is cancelled already.
        observers.tell(|observer| observer.opened(&run));
        if self.is_pending {
            run.end_unstarted_on_cancel();
        } else {
            run.start();
        }
        Ok(run)
    }

    /// The token of the run.
    fn token(&self, parent: Option<&Run>) -> Result<CancelToken, OpenError> {
        let above = parent.map(Run::token);
        let token = match (above, self.deadline) {
            (None, None) => Ok(CancelToken::new()),
            (None, Some(deadline)) => CancelToken::try_with_deadline(deadline),
            (Some(above), None) => Ok(above.child()),
            (Some(above), Some(deadline)) => above.try_child_with_deadline(deadline),
        };
        let token = token.map_err(|NoTimer| OpenError::NoTimer)?;
        let is_cancelled_above = token
            .reason()
            .is_some_and(|reason| reason.kind == CancelKind::Parent);
        if let Some(parent) = parent
            && is_cancelled_above
        {
            let id = parent.id().clone();
            return Err(match parent.token().reason() {
                Some(reason) => OpenError::ParentCancelled(id, reason),
                // The parent has ended meanwhile, and its token passes on the cancel of a run above it.
                None => OpenError::NoParent(id),
            });
        }
        Ok(token)
    }
}
