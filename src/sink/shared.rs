//! What a sink's handle, its follower and the logs share.

use super::Followed;
use super::backlog::{Backlog, Hold, Released};
use super::channel::Channel;
use super::follow::Follow;
use super::stats::SinkStats;
use crate::log::{EventLog, Outline};
use crate::run_id::RunId;
use crate::sync::{Condvar, Mutex, MutexGuard, Ordering};
use crate::threads::timer::{self, Alarm, Due};
use rustc_hash::FxHashMap;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Instant;

/// What a sink's follower shares with the logs and with the sink's handle.
pub(crate) struct Shared {
    pub(super) name: String,
    pub(super) channel: Arc<Channel>,
    /// Protects when the sink is to end at the latest.
    pub(super) ends_at: Mutex<Option<Instant>>,
    /// Protects the text of the latest error.
    pub(super) last_error: Mutex<Option<String>>,
    /// Protects which runs the sink follows, by their numbers: those that are live, and those that it has still to
    /// take. Under it: map operations. The queue has the numbers only, so that a sink that hangs keeps no run in the
    /// queue.
    follows: Mutex<FxHashMap<u64, Arc<Follow>>>,
    /// Protects the ended runs that are held for the sink, and the alarm at which the oldest is released. Under it:
    /// operations on these, with a run's progress and its log's lock below it; no call of the sink, no drop of a log.
    backlog: Mutex<(Backlog, Option<Alarm>)>,
    /// Protects the outcome of the follower's thread: None until the thread is done, then whether the sink has taken
    /// everything.
    pub(super) done: Mutex<Option<bool>>,
    pub(super) is_done: Condvar,
    this: Weak<Self>,
}

impl Shared {
    pub(super) fn new(name: &str, channel: Channel, hold: Hold) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            name: name.to_owned(),
            channel: Arc::new(channel),
            ends_at: Mutex::default(),
            last_error: Mutex::default(),
            follows: Mutex::default(),
            backlog: Mutex::new((Backlog::new(hold), None)),
            done: Mutex::default(),
            is_done: Condvar::new(),
            this: this.clone(),
        })
    }

    /// Adds a run that has no event yet.
    pub(super) fn add(&self, follow: &Arc<Follow>) {
        // A sink that was asked to end, but is still in the list of sinks, would keep the run for ever.
        if !self.channel.is_closing() {
            let mut follows = self.follows.lock();
            follows.insert(follow.number(), Arc::clone(follow));
        }
    }

    pub(super) fn find(&self, number: u64) -> Option<Arc<Follow>> {
        self.follows.lock().get(&number).cloned()
    }

    /// All runs that the sink follows, if some of them may have news that the queue does not tell of.
    pub(super) fn flooded(&self) -> Vec<Arc<Follow>> {
        if !self.channel.take_flooded() {
            return Vec::new();
        }
        self.follows.lock().values().cloned().collect()
    }

    /// Forgets the runs of which the sink gets nothing more.
    fn forget(&self, released: &Released) {
        if !released.follows.is_empty() {
            let mut follows = self.follows.lock();
            for follow in &released.follows {
                // Not the last reference: it is among the released ones.
                follows.remove(&follow.number());
            }
        }
    }

    /// Whether the sink is to end, and its time for that is over.
    pub(super) fn is_out_of_time(&self) -> bool {
        self.channel.is_closing() && self.ends_at().is_some_and(|end| Instant::now() >= end)
    }

    /// When the sink is to end at the latest.
    pub(super) fn ends_at(&self) -> Option<Instant> {
        *self.ends_at.lock()
    }

    /// Counts a call of the sink that failed.
    pub(super) fn has_failed(&self, error: &io::Error) {
        self.channel.counts.errors.fetch_add(1, Ordering::Relaxed);
        *self.last_error.lock() = Some(error.to_string());
    }

    /// Holds the log of a run that has ended, until the sink has taken it or a bound releases it.
    pub(super) fn hold(&self, follow: &Arc<Follow>, log: &Arc<EventLog>) {
        let mut backlog = self.backlog.lock();
        let released = backlog.0.hold(follow, log);
        self.unlock(backlog);
        self.forget(&released);
        drop(released);
    }

    /// Sets the timer for the next log that is to be released, if it is not set, and unlocks.
    fn unlock(&self, mut backlog: MutexGuard<'_, (Backlog, Option<Alarm>)>) {
        if backlog.1.is_some() {
            return;
        }
        let Some(at) = backlog.0.expires_at() else {
            return;
        };
        let alarm = Alarm::new(at);
        backlog.1 = Some(alarm);
        drop(backlog);
        if !timer::arm(alarm, self.this.clone() as Weak<dyn Due>) {
            // The system refuses the timer's thread: the next run that ends asks again.
            self.backlog.lock().1 = None;
        }
    }

    /// Releases the log of a run that the sink has taken to its end.
    pub(super) fn release(&self, number: u64) {
        let released = self.backlog.lock().0.remove(number);
        let follow = self.follows.lock().remove(&number);
        drop((released, follow));
    }

    /// The lifecycle events of a run whose log was released.
    pub(super) fn outline(&self, number: u64) -> Option<Outline> {
        self.backlog.lock().0.outline(number)
    }

    /// Ends the holding. `is_done`: the sink has taken everything that was announced, so that no live run has events
    /// left for it.
    pub(super) fn close(&self, is_done: bool) {
        let mut backlog = self.backlog.lock();
        let released = backlog.0.close();
        let alarm = backlog.1.take();
        drop(backlog);
        let follows = std::mem::take(&mut *self.follows.lock());
        if !is_done {
            for follow in follows.values() {
                follow.give_up_live();
            }
        }
        drop((released, follows));
        if let Some(alarm) = alarm {
            timer::disarm(alarm);
        }
    }

    pub(super) fn stats(&self) -> SinkStats {
        let (waiting, waiting_bytes) = self.backlog.lock().0.size();
        let counts = &self.channel.counts;
        SinkStats {
            written: counts.written.load(Ordering::Relaxed),
            dropped: counts.dropped.load(Ordering::Relaxed),
            errors: counts.errors.load(Ordering::Relaxed),
            waiting,
            waiting_bytes,
        }
    }
}

impl Due for Shared {
    fn due(self: Arc<Self>) {
        let mut backlog = self.backlog.lock();
        backlog.1 = None;
        let released = backlog.0.expire();
        self.unlock(backlog);
        drop(released);
    }
}

/// A run that was just opened.
pub(crate) struct Opened<'a> {
    pub(crate) id: &'a RunId,
    pub(crate) generation: u64,
    /// Greater than that of every run that was opened before it in the same table.
    pub(crate) number: u64,
}

/// One run as all its sinks follow it.
pub(crate) struct Follows(Box<[(Arc<Shared>, Arc<Follow>)]>);

impl Follows {
    /// Tells the sinks that the run has news. `is_end`: the last event is its terminal one.
    pub(crate) fn tell(&self, is_end: bool) {
        for (sink, follow) in &self.0 {
            if is_end && let Some(log) = follow.log() {
                // Before the follower hears of it, and while the run still holds its log.
                sink.hold(follow, &log);
            }
            follow.announce();
        }
    }
}

/// Has these sinks follow a run that has no event yet.
pub(crate) fn follow(sinks: &[Arc<Shared>], run: &Opened<'_>, log: &Weak<EventLog>) -> Follows {
    let follow = |sink: &Arc<Shared>| {
        let followed = Followed::new(run.id.clone(), run.generation);
        let follow = Follow::new(followed, run.number, log, &sink.channel);
        sink.add(&follow);
        (Arc::clone(sink), follow)
    };
    Follows(sinks.iter().map(follow).collect())
}
