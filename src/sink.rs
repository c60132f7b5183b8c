//! A consumer of every run's events, on a thread of its own behind a bounded channel.

use crate::frame::Frame;
use crate::sync::{AtomicU64, Ordering};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select};
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

/// At most so many events are handed to a sink at once.
const BATCH: usize = 256;

/// Where events go. It is called on one thread, its own: it may block, and holds up nobody but itself. A panic counts as
/// an error; the sink is called again with what comes next.
pub trait Sink: Send + 'static {
    /// Takes events, each run's in its order.
    ///
    /// # Errors
    ///
    /// An error is counted; the events are not offered again.
    fn write(&mut self, frames: &[Arc<Frame>]) -> io::Result<()>;

    /// Makes what was taken lasting. Called after lifecycle events, and at the end.
    ///
    /// # Errors
    ///
    /// An error is counted.
    fn flush(&mut self) -> io::Result<()>;
}

/// What a sink has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SinkStats {
    /// Events that it took.
    pub written: u64,
    /// Events that found its channel full, and were not offered again.
    pub dropped: u64,
    /// Events that it was given and failed to take; some of them it may have taken.
    pub failed: u64,
    /// Times that it failed, also to make lasting what it had taken.
    pub errors: u64,
}

#[derive(Default)]
struct Counts {
    written: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
    errors: AtomicU64,
}

/// Where a log puts its events for one sink. It keeps neither the sink nor its thread: a log may outlive both.
#[derive(Clone)]
pub(crate) struct Feed {
    channel: Sender<Arc<Frame>>,
    counts: Arc<Counts>,
}

impl Feed {
    /// Hands over an event, if there is room for it; else it is counted as dropped. Never blocks.
    pub(crate) fn offer(&self, frame: &Arc<Frame>) {
        if self.channel.try_send(Arc::clone(frame)).is_err() {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A running sink: its thread, and the channel to it. Dropping it waits until all that was offered is written.
pub struct Outlet {
    name: String,
    feed: Feed,
    /// Nothing is ever sent: dropping it asks the thread to end.
    running: Option<Sender<()>>,
    /// Nothing is ever sent: it is closed when the thread is done.
    done: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outlet")
            .field("name", &self.name)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl Outlet {
    /// Starts the sink's thread, with a channel that holds `capacity` events.
    ///
    /// # Errors
    ///
    /// What the system has against another thread, and [`io::ErrorKind::InvalidInput`] for a name with a NUL in it.
    pub fn start(name: &str, sink: impl Sink, capacity: usize) -> io::Result<Self> {
        if name.contains('\0') {
            let what = "the name of a sink must not contain NUL";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let (channel, frames) = bounded(capacity);
        let (running, stop) = bounded(0);
        let (working, done) = bounded(0);
        let counts = Arc::new(Counts::default());
        let thread = {
            let counts = Arc::clone(&counts);
            std::thread::Builder::new()
                .name(format!("llm-callback {name}"))
                .spawn(move || {
                    drain(&frames, &stop, sink, &counts);
                    drop(working);
                })?
        };
        Ok(Self {
            name: name.to_owned(),
            feed: Feed { channel, counts },
            running: Some(running),
            done,
            thread: Some(thread),
        })
    }

    /// Which sink it is.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Hands over an event, if there is room for it; else it is counted as dropped. Never blocks.
    pub fn offer(&self, frame: &Arc<Frame>) {
        self.feed.offer(frame);
    }

    /// What it has done so far. Counts order nothing, so that they are relaxed.
    pub fn stats(&self) -> SinkStats {
        let counts = &self.feed.counts;
        SinkStats {
            written: counts.written.load(Ordering::Relaxed),
            dropped: counts.dropped.load(Ordering::Relaxed),
            failed: counts.failed.load(Ordering::Relaxed),
            errors: counts.errors.load(Ordering::Relaxed),
        }
    }

    /// Takes no more, waits until all that was offered is written, and says what was done.
    pub fn close(mut self) -> SinkStats {
        self.join();
        self.stats()
    }

    pub(crate) fn feed(&self) -> Feed {
        self.feed.clone()
    }

    /// Asks the sink to end once it has written what it was offered, and says what it ends by. Does not block.
    pub(crate) fn stop(&mut self) -> Stopping {
        self.running = None;
        Stopping(self.done.clone())
    }

    /// Nobody waits for the sink any more, also not when this is dropped.
    pub(crate) fn detach(&mut self) {
        self.thread = None;
    }

    fn join(&mut self) {
        self.running = None;
        // A sink that holds the last handle of its own outlet must not wait for itself.
        let this = std::thread::current().id();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != this
            && thread.join().is_err()
        {
            self.feed.counts.errors.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.join();
    }
}

/// The end of a sink that was asked to end.
pub(crate) struct Stopping(Receiver<()>);

impl Stopping {
    /// Waits for it, at most until `end`; whether it is there.
    pub(crate) fn wait_until(&self, end: Option<Instant>) -> bool {
        match end {
            Some(end) => self.0.recv_deadline(end) == Err(RecvTimeoutError::Disconnected),
            None => self.0.recv().is_err(),
        }
    }
}

/// Writes until `stop` is closed, and then what was offered before.
fn drain(frames: &Receiver<Arc<Frame>>, stop: &Receiver<()>, mut sink: impl Sink, counts: &Counts) {
    let mut write = |first, max: usize| {
        let mut batch = vec![first];
        batch.extend(frames.try_iter().take(max.min(BATCH) - 1));
        let count = if attempt(counts, || sink.write(&batch)) {
            &counts.written
        } else {
            &counts.failed
        };
        count.fetch_add(batch.len() as u64, Ordering::Relaxed);
        if batch.iter().any(|frame| frame.is_lifecycle()) {
            attempt(counts, || sink.flush());
        }
        batch.len()
    };
    loop {
        select! {
            recv(frames) -> first => match first {
                Ok(first) => drop(write(first, BATCH)),
                Err(_) => break,
            },
            recv(stop) -> _ => break,
        }
    }
    // Not what still comes: runs that are live may never stop.
    let mut left = frames.len();
    while left > 0
        && let Ok(first) = frames.try_recv()
    {
        left -= write(first, left);
    }
    attempt(counts, || sink.flush());
}

/// Whether it went well; an error, or a panic, is counted.
fn attempt(counts: &Counts, what: impl FnOnce() -> io::Result<()>) -> bool {
    // The panic hook has told of it. What the sink may have left half done is its own.
    let done = catch_unwind(AssertUnwindSafe(what));
    let is_done = matches!(done, Ok(Ok(())));
    if !is_done {
        counts.errors.fetch_add(1, Ordering::Relaxed);
    }
    is_done
}

#[cfg(all(test, not(loom)))]
pub(crate) mod tests {
    use super::*;
    use crate::event::Word;
    use crate::frame::{Body, Head};
    use std::sync::mpsc;

    pub(crate) fn frames(number: u64) -> Vec<Arc<Frame>> {
        let mut head = Head::new(&1.into());
        let body = Body::from_json(Word::LLM_STREAM, b"null", br#"{"content":"x"}"#);
        (1..=number)
            .map(|sequence| Arc::new(head.frame(0, sequence, &body)))
            .collect()
    }

    /// Passes batches on; each takes as long as its receiver lets it.
    struct Slow(mpsc::SyncSender<usize>);

    impl Sink for Slow {
        fn write(&mut self, frames: &[Arc<Frame>]) -> io::Result<()> {
            self.0.send(frames.len()).map_err(io::Error::other)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A sink that is too slow loses events, and says how many; whoever offers them never waits.
    #[test]
    fn a_full_channel_drops_and_counts() {
        let (sender, batches) = mpsc::sync_channel(0);
        let outlet = Outlet::start("slow", Slow(sender), 2).unwrap();
        for frame in &frames(10) {
            outlet.offer(frame);
        }
        let dropped = outlet.stats().dropped;
        // One may be in the sink's hands, two in the channel.
        assert!((7..=8).contains(&dropped), "{dropped}");
        let reading = std::thread::spawn(move || batches.iter().sum::<usize>());
        let stats = outlet.close();
        assert_eq!(stats.written + stats.dropped, 10);
        assert_eq!(reading.join().unwrap() as u64, stats.written);
    }

    /// A sink that fails, or panics, goes on with what comes next; each event is counted once.
    #[test]
    fn failures_are_counted() {
        struct Failing;
        impl Sink for Failing {
            fn write(&mut self, frames: &[Arc<Frame>]) -> io::Result<()> {
                match frames[0].sequence() {
                    1 => panic!("on purpose"),
                    2 => Err(io::Error::other("on purpose")),
                    _ => Ok(()),
                }
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let outlet = Outlet::start("failing", Failing, 10).unwrap();
        for (before, frame) in frames(3).iter().enumerate() {
            outlet.offer(frame);
            while outlet.stats().failed + outlet.stats().written == before as u64 {
                std::thread::yield_now();
            }
        }
        let expected = SinkStats {
            written: 1,
            dropped: 0,
            failed: 2,
            errors: 2,
        };
        assert_eq!(outlet.close(), expected);
    }

    /// A name that no thread can have is an error.
    #[test]
    fn names_without_nul() {
        let (sender, _batches) = mpsc::sync_channel(0);
        let refused = Outlet::start("a\0b", Slow(sender), 1).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    }
}
