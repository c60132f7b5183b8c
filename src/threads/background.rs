//! The threads for work that may block: callbacks after a deadline, and destructors of a user's values.
//!
//! One thread is enough as long as no task takes long. It takes the tasks in their order, and ends after a moment
//! without a task. If tasks wait while all threads have been busy with one task each for longer than a second, the
//! timer's thread starts one more thread. So a task that blocks for ever costs a thread and a second, and keeps no
//! later task from running.

/// A piece of work, with the values that it holds.
pub(crate) type Task = Box<dyn FnOnce() + Send>;

#[cfg(loom)]
pub(crate) use modelled::{forget_after_fork, run};
#[cfg(not(loom))]
pub(crate) use real::{forget_after_fork, run};

#[cfg(not(loom))]
mod real {
    use super::Task;
    use crate::sync::{Condvar, Mutex, MutexGuard};
    use crate::threads::per_process::PerProcess;
    use crate::threads::timer::{self, Alarm, Due};
    use std::collections::VecDeque;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;
    use std::thread;
    use std::time::{Duration, Instant};

    /// How long all threads may be busy with one task each before another thread is started for the tasks that wait.
    const PATIENCE: Duration = Duration::from_secs(1);

    /// How long a thread waits for its next task.
    const LINGER: Duration = Duration::from_millis(100);

    static BACKGROUND: PerProcess<Background> =
        PerProcess::new(Background::new(Background::start_thread));

    /// Runs the task on a background thread; on this thread if the system refuses the only one. To be called with no
    /// lock held. A panic of the task ends in the background.
    pub(crate) fn run(task: Task) {
        BACKGROUND.get().run(task);
    }

    /// Starts anew in the child of a fork, which has none of the threads. The tasks that wait are the parent's.
    pub(crate) fn forget_after_fork() {
        BACKGROUND.replace(Background::new(Background::start_thread));
    }

    pub(super) struct Background {
        /// Protects the tasks that wait and the numbers of threads. Under it: queue operations; never a task, a drop of
        /// one, the start of a thread, or the timer's lock.
        pub(super) state: Mutex<State>,
        /// The threads that wait for a task.
        changed: Condvar,
        /// Starts a thread that calls [`work`](Self::work). False if the system refuses it.
        start: fn(&'static Self) -> bool,
    }

    pub(super) struct State {
        waiting: VecDeque<Task>,
        /// How many threads there are, with those that are just being started.
        pub(super) threads: usize,
        /// How many of the threads run a task.
        busy: usize,
        /// When a thread was last started or last took a task. If all threads are busy, they have been busy since then.
        changed_at: Option<Instant>,
        /// The timer's next look at the tasks that wait. There is one whenever more tasks wait than threads are free.
        watch: Option<Arc<Watch>>,
    }

    /// What the timer calls when a task has waited for a while.
    struct Watch(&'static Background);

    impl Due for Watch {
        fn due(self: Arc<Self>) {
            self.0.look_after();
        }
    }

    impl Background {
        pub(super) const fn new(start: fn(&'static Self) -> bool) -> Self {
            let state = State {
                waiting: VecDeque::new(),
                threads: 0,
                busy: 0,
                changed_at: None,
                watch: None,
            };
            Self {
                state: Mutex::new(state),
                changed: Condvar::new(),
                start,
            }
        }

        pub(super) fn start_thread(&'static self) -> bool {
            let thread = thread::Builder::new().name("llm-background".into());
            thread.spawn(|| self.work()).is_ok()
        }

        pub(super) fn run(&'static self, task: Task) {
            let mut state = self.state.lock();
            state.waiting.push_back(task);
            if state.threads == 0 {
                self.start_counted(state);
            } else if state.waiting.len() <= state.threads - state.busy {
                drop(state);
                self.changed.notify_one();
            } else {
                self.watch(state);
            }
        }

        /// Starts a thread. If the system refuses the only one, runs the tasks that wait on this thread.
        fn start_counted(&'static self, mut state: MutexGuard<'_, State>) {
            state.threads += 1;
            state.changed_at = Some(Instant::now());
            drop(state);
            if (self.start)(self) {
                return;
            }
            let mut state = self.state.lock();
            state.threads -= 1;
            if state.threads > 0 {
                return;
            }
            let waiting = std::mem::take(&mut state.waiting);
            drop(state);
            waiting.into_iter().for_each(call);
        }

        /// Runs tasks until there was none for a moment: all that a background thread does.
        fn work(&self) {
            let mut state = self.state.lock();
            loop {
                if let Some(task) = state.waiting.pop_front() {
                    state.busy += 1;
                    state.changed_at = Some(Instant::now());
                    drop(state);
                    call(task);
                    state = self.state.lock();
                    state.busy -= 1;
                } else if self.changed.wait_until(&mut state, Instant::now() + LINGER)
                    && state.waiting.is_empty()
                {
                    state.threads -= 1;
                    return;
                }
            }
        }

        /// Sets the timer's next look at the tasks that wait, unless it is set.
        fn watch(&'static self, mut state: MutexGuard<'_, State>) {
            if state.watch.is_some() {
                return;
            }
            let since = state.changed_at.unwrap_or_else(Instant::now);
            let watch = Arc::new(Watch(self));
            let due = Arc::downgrade(&watch);
            state.watch = Some(watch);
            drop(state);
            if !timer::arm(Alarm::new(since + PATIENCE), due) {
                // The next task that has to wait tries again.
                self.state.lock().watch = None;
            }
        }

        /// Starts another thread if tasks wait and no thread has taken one for a while.
        fn look_after(&'static self) {
            let mut state = self.state.lock();
            state.watch = None;
            if state.waiting.is_empty() {
                return;
            }
            let now = Instant::now();
            let since = state.changed_at.unwrap_or(now);
            if now.duration_since(since) >= PATIENCE {
                // Also if a free thread is only slow to wake: so the next look is later than now.
                state.changed_at = Some(now);
                if state.busy == state.threads {
                    self.start_counted(state);
                    state = self.state.lock();
                }
            }
            if !state.waiting.is_empty() {
                self.watch(state);
            }
        }
    }

    /// Runs a task. A panic in it ends here, also a second panic in the destructor of the first panic's value.
    fn call(task: Task) {
        if let Err(value) = catch_unwind(AssertUnwindSafe(task))
            && let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(value)))
        {
            std::mem::forget(second);
        }
    }
}

/// In a model a task runs at once, on the thread that hands it over: loom has no clock, and a thread that waits for
/// more tasks would never end.
#[cfg(loom)]
mod modelled {
    pub(crate) fn run(task: super::Task) {
        task();
    }

    pub(crate) fn forget_after_fork() {}
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::real::Background;
    use std::collections::HashSet;
    use std::sync::mpsc;
    use std::thread::{self, ThreadId};
    use std::time::{Duration, Instant};

    const LONG: Duration = Duration::from_secs(60);

    fn wait_for_the_end_of_threads(background: &Background) {
        let end = Instant::now() + LONG;
        while background.state.lock().threads > 0 {
            assert!(Instant::now() < end, "a thread stays");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends the id of the thread that runs it.
    fn telling(sender: &mpsc::Sender<ThreadId>) -> super::Task {
        let sender = sender.clone();
        let told = "the test waits for it";
        Box::new(move || sender.send(thread::current().id()).expect(told))
    }

    /// Many short tasks are run by few threads, each task once; a panic, also of a destructor, stops nothing; the
    /// threads end, and another is started for the next task.
    #[test]
    fn threads_come_and_go() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("on purpose");
            }
        }
        // One that no other test uses; so in each test.
        static BACKGROUND: Background = Background::new(Background::start_thread);
        let (background, (sender, ran)) = (&BACKGROUND, mpsc::channel());
        for _ in 0..2 {
            let number = if cfg!(miri) { 10 } else { 1_000 };
            for _ in 0..number {
                background.run(telling(&sender));
            }
            background.run(Box::new(|| drop(Bomb)));
            // The value of the second panic is leaked on purpose, which Miri would report.
            if cfg!(not(miri)) {
                background.run(Box::new(|| std::panic::panic_any(Bomb)));
            }
            background.run(telling(&sender));
            let ids = (0..=number).map(|_| ran.recv_timeout(LONG).unwrap());
            assert!(ids.collect::<HashSet<_>>().len() < 10);
            wait_for_the_end_of_threads(background);
        }
        assert!(ran.try_recv().is_err());
    }

    /// Tasks that block, one after another, keep no later task from running.
    #[test]
    fn blocked_tasks_delay_no_others_for_long() {
        static BACKGROUND: Background = Background::new(Background::start_thread);
        let (background, (sender, ran)) = (&BACKGROUND, mpsc::channel());
        let mut held = Vec::new();
        for _ in 0..2 {
            let (release, released) = mpsc::channel::<()>();
            held.push(release);
            background.run(Box::new(move || released.recv().unwrap_or_default()));
            background.run(telling(&sender));
        }
        for _ in 0..2 {
            ran.recv_timeout(LONG).unwrap();
        }
        drop(held);
        wait_for_the_end_of_threads(background);
    }

    /// Where the system refuses a thread the tasks run where they were handed over.
    #[test]
    fn refused_threads() {
        static BACKGROUND: Background = Background::new(|_| false);
        let (background, (sender, ran)) = (&BACKGROUND, mpsc::channel());
        for _ in 0..3 {
            background.run(telling(&sender));
            assert_eq!(ran.try_recv(), Ok(thread::current().id()));
        }
        assert_eq!(background.state.lock().threads, 0);
    }
}
