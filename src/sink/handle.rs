//! The handle of a running sink: how it is started, flushed and closed.

use super::Sink;
use super::backlog::Hold;
use super::channel::{Channel, Note};
use super::flush::{AskedToFlush, Flushing};
use super::follower::Follower;
use super::queue::queue;
use super::settled::wait_until_set;
use super::shared::Shared;
use super::stats::SinkStats;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

/// How long a sink may still write after its last handle was dropped.
const PATIENCE: Duration = Duration::from_secs(5);

/// The handle of a running sink. A clone is a handle of the same sink. Dropping the last handle asks the sink to end
/// within five seconds, and does not wait: [`close`](Self::close) waits.
#[derive(Clone)]
pub struct SinkHandle(Arc<Owner>);

/// Asks the sink to end when its last handle is dropped.
struct Owner {
    shared: Arc<Shared>,
    /// The sink's thread, which must not wait for itself.
    thread: ThreadId,
}

impl fmt::Debug for SinkHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SinkHandle")
            .field("name", &self.name())
            .finish_non_exhaustive()
    }
}

/// A handle is equal to its clones only.
impl PartialEq for SinkHandle {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for SinkHandle {}

impl SinkHandle {
    /// Starts the sink's thread. The sink gets the events of the runs that are opened after [`Runs::add_sink`].
    ///
    /// # Errors
    ///
    /// The system's error if it refuses the thread, and [`io::ErrorKind::InvalidInput`] for a name with a NUL in it.
    ///
    /// [`Runs::add_sink`]: crate::Runs::add_sink
    pub fn start<S: Sink>(name: &str, sink: S, hold: Hold) -> io::Result<Self> {
        if name.contains('\0') {
            let what = format!("the name of a sink must not contain NUL: {name:?}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let (pusher, taker) = queue();
        let shared = Shared::new(name, Channel::new(pusher), hold);
        let done = Done {
            shared: Arc::clone(&shared),
            has_all: false,
        };
        let mut work = Some((Follower::new(sink, &shared, taker), done));
        let thread = spawn(&format!("llm-callback {name}"), move || {
            S::run_thread(&mut || {
                if let Some((follower, mut done)) = work.take() {
                    done.has_all = follower.run();
                }
            });
        })?;
        Ok(Self(Arc::new(Owner { shared, thread })))
    }

    /// The name that the sink was started with.
    pub fn name(&self) -> &str {
        &self.0.shared.name
    }

    /// The sink's counters so far, also after its end. Never waits for the sink.
    pub fn stats(&self) -> SinkStats {
        self.0.shared.stats()
    }

    /// The text of the latest error of the sink, if there was one.
    pub fn last_error(&self) -> Option<String> {
        self.0.shared.last_error.lock().clone()
    }

    /// Waits until the sink has taken every event whose emit returned before this call, and has flushed. Returns true
    /// once it has; false on timeout, if the sink is closed, and on the sink's own thread. Blocks, with no lock held.
    pub fn flush(&self, timeout: Duration) -> bool {
        let end = Instant::now().checked_add(timeout);
        self.flushing(end).wait_until(end).unwrap_or(false)
    }

    /// Stops the sink once it has taken every event whose emit returned before this call, at most after `patience`.
    /// Events that it has not taken by then count as dropped. Returns true if the sink has taken everything.
    ///
    /// Blocks. A call of the sink that does not return is left to itself, with the sink's thread. Closing again waits
    /// again, and returns the same. On the sink's own thread `close` does not wait, and returns false.
    pub fn close(&self, patience: Duration) -> bool {
        let end = Instant::now().checked_add(patience);
        let stopping = self.stop(end);
        stopping
            .wait_until(end)
            .unwrap_or_else(|| stopping.give_up())
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.0.shared)
    }

    /// Asks the sink to flush.
    pub(crate) fn flushing(&self, end: Option<Instant>) -> Flushing {
        let shared = &self.0.shared;
        shared.channel.wait_for_announcements(end);
        let flushing = Flushing::default();
        if self.0.is_here() {
            flushing.settle(false);
        } else {
            let asked = AskedToFlush(flushing.clone());
            shared.channel.push(Note::Flush(asked));
        }
        flushing
    }

    /// Asks the sink to end by `end`, once it has taken what was appended before. Of several ends the earliest holds.
    pub(crate) fn stop(&self, end: Option<Instant>) -> Stopping {
        self.0.stop(end)
    }
}

impl Owner {
    /// Whether this is the sink's own thread.
    fn is_here(&self) -> bool {
        self.thread == std::thread::current().id()
    }

    fn stop(&self, end: Option<Instant>) -> Stopping {
        let shared = &self.shared;
        shared.channel.wait_for_announcements(end);
        let mut ends_at = shared.ends_at.lock();
        *ends_at = ends_at.into_iter().chain(end).min();
        drop(ends_at);
        shared.channel.close();
        shared.channel.push(Note::Stop);
        Stopping((!self.is_here()).then(|| Arc::clone(shared)))
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.stop(Instant::now().checked_add(PATIENCE));
    }
}

/// Tells the threads that wait that the follower's thread is done, also if it panics.
struct Done {
    shared: Arc<Shared>,
    has_all: bool,
}

impl Drop for Done {
    fn drop(&mut self) {
        self.shared.close(self.has_all);
        *self.shared.done.lock() = Some(self.has_all);
        self.shared.is_done.notify_all();
    }
}

/// A sink that was asked to end. None on the sink's own thread, which must not wait for itself.
#[must_use]
pub(crate) struct Stopping(Option<Arc<Shared>>);

impl Stopping {
    /// Waits for the end of the sink's thread, at most until `end`. Returns whether the sink has taken everything; None
    /// if its thread is not done.
    pub(crate) fn wait_until(&self, end: Option<Instant>) -> Option<bool> {
        match &self.0 {
            Some(shared) => wait_until_set(&shared.done, &shared.is_done, end),
            None => Some(false),
        }
    }

    /// Waits no longer: events that the sink has not taken count as dropped from now on. Returns false.
    pub(crate) fn give_up(&self) -> bool {
        if let Some(shared) = &self.0 {
            shared.close(false);
        }
        false
    }
}

#[cfg(not(loom))]
fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<ThreadId> {
    Ok(crate::threads::spawn(name, body)?.thread().id())
}

/// No model has a sink that closes itself: any id but its own will do.
#[cfg(loom)]
#[expect(clippy::unnecessary_wraps, reason = "as outside of models")]
fn spawn(_name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<ThreadId> {
    loom::thread::spawn(body);
    let other = std::thread::spawn(|| ());
    Ok(other.thread().id())
}
