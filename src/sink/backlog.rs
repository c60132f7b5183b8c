//! The ended runs that one sink has still to take: their logs are held for the sink, within bounds.

use super::follow::Follow;
use crate::log::{EventLog, Outline};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long, and in how many bytes, the logs of ended runs are held for a sink that has not taken them.
///
/// Beyond either bound the oldest log is released: the sink still gets the run's lifecycle events, with a gap event
/// between them, and the other events count as [dropped](crate::SinkStats::dropped). The lifecycle events of all such
/// runs together are kept in 16 MiB more, for any time; beyond that they are dropped too, the oldest run's first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The bytes of the encoded events of all ended runs together.
    pub bytes: u64,
    /// The time since the run's end.
    pub time: Duration,
}

impl Default for Hold {
    /// 64 MiB and five minutes.
    fn default() -> Self {
        Self {
            bytes: 64 << 20,
            time: Duration::from_secs(300),
        }
    }
}

/// A run whose log is held.
struct Whole {
    follow: Arc<Follow>,
    log: Arc<EventLog>,
    bytes: u64,
    ended_at: Instant,
}

/// A run of which only the lifecycle events are held.
struct Rest {
    follow: Arc<Follow>,
    outline: Outline,
}

impl Rest {
    fn bytes(&self) -> u64 {
        self.outline.bytes() + RUN_BYTES
    }
}

/// The bytes that the lifecycle events of released runs may take.
const RESTS_BYTES: u64 = 16 << 20;

/// The bytes that a run takes besides its encoded events, roughly.
const RUN_BYTES: u64 = 1_024;

/// The ended runs that a sink has still to take. Guarded by the sink's lock.
pub(super) struct Backlog {
    hold: Hold,
    /// By the order in which the runs were opened. So are the rests.
    whole: BTreeMap<u64, Whole>,
    rests: BTreeMap<u64, Rest>,
    whole_bytes: u64,
    rests_bytes: u64,
    /// The sink takes no more: nothing is held for it.
    is_closed: bool,
}

/// What a backlog has released, to be dropped without its lock: dropping a log takes a while.
#[must_use]
#[derive(Default)]
pub(super) struct Released {
    logs: Vec<Arc<EventLog>>,
    /// The runs of which the sink gets nothing more.
    pub(super) follows: Vec<Arc<Follow>>,
}

impl Drop for Released {
    fn drop(&mut self) {
        self.logs.iter().for_each(|log| log.release());
    }
}

impl Backlog {
    pub(super) fn new(hold: Hold) -> Self {
        Self {
            hold,
            whole: BTreeMap::new(),
            rests: BTreeMap::new(),
            whole_bytes: 0,
            rests_bytes: 0,
            is_closed: false,
        }
    }

    /// How many runs are held, and their bytes.
    pub(super) fn size(&self) -> (usize, u64) {
        let runs = self.whole.len() + self.rests.len();
        (runs, self.whole_bytes + self.rests_bytes)
    }

    /// When the log that ended first has been held for as long as is allowed.
    pub(super) fn expires_at(&self) -> Option<Instant> {
        let ends = self.whole.values().map(|whole| whole.ended_at);
        ends.min()?.checked_add(self.hold.time)
    }

    /// Holds the log of a run that has just ended, unless the sink has taken all of it already.
    pub(super) fn hold(&mut self, follow: &Arc<Follow>, log: &Arc<EventLog>) -> Released {
        let mut released = Released::default();
        // Under the backlog's lock: the follower first notes its progress and then takes this lock, to remove the run.
        if self.is_closed || follow.has_taken(log.last_sequence()) {
            return released;
        }
        log.hold();
        let bytes = log.held_bytes();
        self.whole_bytes += bytes;
        let whole = Whole {
            follow: Arc::clone(follow),
            log: Arc::clone(log),
            bytes,
            ended_at: Instant::now(),
        };
        self.whole.insert(follow.number(), whole);
        while self.whole_bytes > self.hold.bytes
            && let Some((_, whole)) = self.whole.pop_first()
        {
            self.reduce(whole, &mut released);
        }
        while self.rests_bytes > RESTS_BYTES
            && let Some((_, rest)) = self.rests.pop_first()
        {
            self.rests_bytes -= rest.bytes();
            rest.follow.give_up(&rest.outline, false);
            released.follows.push(rest.follow);
        }
        released
    }

    /// Releases the logs that were held for as long as is allowed.
    pub(super) fn expire(&mut self) -> Released {
        let mut released = Released::default();
        let is_late = |whole: &Whole| whole.ended_at.elapsed() >= self.hold.time;
        let late = self.whole.iter().filter(|(_, whole)| is_late(whole));
        for number in late.map(|(number, _)| *number).collect::<Vec<_>>() {
            if let Some(whole) = self.whole.remove(&number) {
                self.reduce(whole, &mut released);
            }
        }
        released
    }

    /// Keeps the lifecycle events of a run in place of its log.
    fn reduce(&mut self, whole: Whole, released: &mut Released) {
        let outline = whole.log.outline();
        whole.follow.give_up(&outline, true);
        self.whole_bytes -= whole.bytes;
        released.logs.push(whole.log);
        let number = whole.follow.number();
        let rest = Rest {
            follow: whole.follow,
            outline,
        };
        self.rests_bytes += rest.bytes();
        self.rests.insert(number, rest);
    }

    /// Releases a run that the sink has taken to its end.
    pub(super) fn remove(&mut self, number: u64) -> Released {
        let mut released = Released::default();
        if let Some(whole) = self.whole.remove(&number) {
            self.whole_bytes -= whole.bytes;
            released.logs.push(whole.log);
            released.follows.push(whole.follow);
        }
        if let Some(rest) = self.rests.remove(&number) {
            self.rests_bytes -= rest.bytes();
            released.follows.push(rest.follow);
        }
        released
    }

    /// The lifecycle events of a run whose log was released.
    pub(super) fn outline(&self, number: u64) -> Option<Outline> {
        self.rests.get(&number).map(|rest| rest.outline.clone())
    }

    /// Holds nothing from now on. Events that the sink has not taken count as dropped.
    pub(super) fn close(&mut self) -> Released {
        self.is_closed = true;
        (self.whole_bytes, self.rests_bytes) = (0, 0);
        let mut released = Released::default();
        for (_, whole) in std::mem::take(&mut self.whole) {
            whole.follow.give_up(&whole.log.outline(), false);
            released.logs.push(whole.log);
            released.follows.push(whole.follow);
        }
        for (_, rest) in std::mem::take(&mut self.rests) {
            rest.follow.give_up(&rest.outline, false);
            released.follows.push(rest.follow);
        }
        released
    }
}
