//! One thread for everything that is due at a time: deadlines, and the ends of keeping times.

use std::sync::Arc;

/// Called by the timer, once, on the timer's thread. It must not block, since everything else that is due waits for it.
pub(crate) trait Due: Send + Sync {
    #[cfg_attr(loom, expect(dead_code, reason = "loom has no clock"))]
    fn due(self: Arc<Self>);
}

#[cfg(loom)]
pub(crate) use modelled::{Alarm, arm, disarm, forget_after_fork};
#[cfg(all(test, not(loom)))]
pub(crate) use real::is_armed;
#[cfg(not(loom))]
pub(crate) use real::{Alarm, arm, disarm, forget_after_fork};

#[cfg(not(loom))]
mod real {
    use super::Due;
    use crate::sync::{AtomicU64, Condvar, Mutex, Ordering};
    use crate::threads::per_process::PerProcess;
    use crate::threads::quiet;
    use std::collections::BTreeMap;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Weak;
    use std::time::{Duration, Instant};

    /// How long the thread stays after the last alarm, so that short runs do not start one each.
    const LINGER: Duration = Duration::from_millis(100);

    static TIMER: PerProcess<Timer> = PerProcess::new(Timer::new());

    /// When something is due; the number tells those of one time apart.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    pub(crate) struct Alarm {
        at: Instant,
        number: u64,
    }

    impl Alarm {
        pub(crate) fn new(at: Instant) -> Self {
            static NEXT: AtomicU64 = AtomicU64::new(0);
            // Relaxed, no partner: only different, in the whole process, also after a fork.
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            Self { at, number }
        }

        pub(crate) fn at(self) -> Instant {
            self.at
        }
    }

    pub(super) struct Timer {
        /// Protects the alarms, and whether there is the thread. Under it: map operations; never what is due, nor the
        /// start of the thread.
        pub(super) alarms: Mutex<Alarms>,
        /// Who waits for the alarms: the thread, if it runs.
        changed: Condvar,
        /// Who waits for another to have started the thread.
        started: Condvar,
    }

    pub(super) struct Alarms {
        set: BTreeMap<Alarm, Weak<dyn Due>>,
        pub(super) thread: Thread,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) enum Thread {
        None,
        /// Somebody is starting it.
        Starting,
        Running,
    }

    /// Has `due` called at the time of the alarm, if it is still there then. False, and it is not, if the thread for
    /// it is needed and the system refuses it.
    pub(crate) fn arm(alarm: Alarm, due: Weak<dyn Due>) -> bool {
        TIMER.get().arm(alarm, due)
    }

    /// Takes back what was armed, if it is still there.
    pub(crate) fn disarm(alarm: Alarm) {
        TIMER.get().disarm(alarm);
    }

    #[cfg(test)]
    pub(crate) fn is_armed(alarm: Alarm) -> bool {
        TIMER.get().alarms.lock().set.contains_key(&alarm)
    }

    /// Starts anew in the child of a fork, where the thread is not and its lock may be held for ever. What was armed
    /// before the fork does not come here: it is the parent's.
    pub(crate) fn forget_after_fork() {
        TIMER.replace(Timer::new());
    }

    impl Timer {
        const fn new() -> Self {
            let alarms = Alarms {
                set: BTreeMap::new(),
                thread: Thread::None,
            };
            Self {
                alarms: Mutex::new(alarms),
                changed: Condvar::new(),
                started: Condvar::new(),
            }
        }

        #[cfg(test)]
        pub(super) fn current() -> &'static Self {
            TIMER.get()
        }

        fn arm(&'static self, alarm: Alarm, due: Weak<dyn Due>) -> bool {
            let mut alarms = self.alarms.lock();
            // Who comes meanwhile does not start another, nor rely on a thread that may be refused.
            while alarms.thread == Thread::Starting {
                self.started.wait(&mut alarms);
            }
            if alarms.thread == Thread::None {
                alarms.thread = Thread::Starting;
                drop(alarms);
                let has_started = quiet::spawn("llm-deadlines", || self.run()).is_ok();
                alarms = self.alarms.lock();
                alarms.thread = if has_started {
                    Thread::Running
                } else {
                    Thread::None
                };
                self.started.notify_all();
                if !has_started {
                    return false;
                }
            }
            alarms.set.insert(alarm, due);
            let earliest = alarms.set.first_key_value();
            let sooner = earliest.is_some_and(|(first, _)| *first == alarm);
            drop(alarms);
            if sooner {
                self.changed.notify_one();
            }
            true
        }

        fn disarm(&self, alarm: Alarm) {
            let mut alarms = self.alarms.lock();
            let was_last = alarms.set.remove(&alarm).is_some() && alarms.set.is_empty();
            drop(alarms);
            if was_last {
                self.changed.notify_one();
            }
        }

        fn run(&self) {
            while let Some(due) = self.next_due() {
                // With what is due may go what it holds, and destructors may panic.
                let _ = catch_unwind(AssertUnwindSafe(|| {
                    if let Some(due) = due.upgrade() {
                        due.due();
                    }
                }));
            }
        }

        /// Waits for the next alarm and takes it; nothing if there is none for a while: the thread has ended.
        fn next_due(&self) -> Option<Weak<dyn Due>> {
            let mut alarms = self.alarms.lock();
            loop {
                if alarms.thread == Thread::Starting {
                    // Whoever starts this thread has not come back to say so.
                    self.started.wait(&mut alarms);
                } else if let Some(first) = alarms.set.first_entry() {
                    let at = first.key().at;
                    if at <= Instant::now() {
                        return Some(first.remove());
                    }
                    self.changed.wait_until(&mut alarms, at);
                } else if self
                    .changed
                    .wait_until(&mut alarms, Instant::now() + LINGER)
                    && alarms.set.is_empty()
                {
                    alarms.thread = Thread::None;
                    return None;
                }
            }
        }
    }
}

/// Loom has no clock: in a model nothing is ever due.
#[cfg(loom)]
mod modelled {
    use super::Due;
    use std::sync::Weak;
    use std::time::Instant;

    #[derive(Clone, Copy, Debug, PartialEq)]
    pub(crate) struct Alarm(Instant);

    impl Alarm {
        pub(crate) fn new(at: Instant) -> Self {
            Self(at)
        }

        pub(crate) fn at(self) -> Instant {
            self.0
        }
    }

    pub(crate) fn arm(_: Alarm, _: Weak<dyn Due>) -> bool {
        true
    }

    pub(crate) fn disarm(_: Alarm) {}

    pub(crate) fn forget_after_fork() {}
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::real::{Thread, Timer};
    use super::*;
    use crate::cancel::CancelToken;
    use std::time::{Duration, Instant};

    const SOON: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(60);

    /// The timer's thread ends when no deadline is left, starts again for the next, and is replaced after a fork.
    #[test]
    #[ignore = "alone in its process: `timer_thread_comes_and_goes` runs it"]
    fn timer_thread_alone() {
        let running = || Timer::current().alarms.lock().thread != Thread::None;
        let ends = || {
            let end = Instant::now() + LONG;
            while running() {
                assert!(Instant::now() < end, "the timer's thread stays");
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        drop(CancelToken::new());
        assert!(!running());
        let token = CancelToken::with_timeout(LONG);
        assert!(running());
        drop(token);
        ends();
        assert!(CancelToken::with_timeout(SOON).wait(Some(LONG)));
        ends();

        // As in the child of a fork that came while another thread had the lock.
        let old = Timer::current();
        let (before, held) = (CancelToken::with_timeout(LONG), old.alarms.lock());
        forget_after_fork();
        assert!(!running());
        drop(before);
        let after = CancelToken::with_timeout(SOON);
        assert!(running());
        assert!(after.wait(Some(LONG)));
        ends();
        drop(held);
    }

    /// In a process of its own, since others' deadlines keep the thread.
    #[test]
    #[cfg_attr(miri, ignore = "starts a process")]
    fn timer_thread_comes_and_goes() {
        let this = std::env::current_exe().unwrap();
        let output = std::process::Command::new(this)
            .args([
                "--ignored",
                "--exact",
                "threads::timer::tests::timer_thread_alone",
            ])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}"
        );
    }
}
