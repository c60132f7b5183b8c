//! A host that forks: what the child tells the crate, and what works there then.

#![expect(unsafe_code, reason = "fork, and the end of the child")]

use llm_callback::{CancelKind, CancelToken, after_fork_in_child};
use std::panic::catch_unwind;
use std::sync::mpsc;
use std::time::Duration;

const SOON: Duration = Duration::from_millis(20);
const LONG: Duration = Duration::from_secs(30);

/// Waits for a deadline, and for a callback that it calls.
fn deadlines_work() {
    let (sender, calls) = mpsc::channel();
    let token = CancelToken::with_timeout(SOON);
    token.on_cancel(move |why| sender.send(why.kind).expect("the receiver is below"));
    assert!(token.wait(Some(LONG)));
    assert_eq!(calls.recv_timeout(LONG), Ok(CancelKind::Deadline));
}

/// Forks, and has `body` run in the child. Whether it ran to its end there.
fn in_child(body: fn()) -> bool {
    // SAFETY: the child runs `body` and ends. The allocator of the C libraries that we know works there.
    match unsafe { libc::fork() } {
        -1 => panic!("the system refuses a fork"),
        0 => {
            // SAFETY: the first kills the child if it hangs. The second ends it without the parent's exit handlers.
            unsafe {
                libc::alarm(120);
                libc::_exit(i32::from(catch_unwind(body).is_err()));
            }
        }
        child => {
            let mut status = -1;
            // SAFETY: the status is ours for the length of the call.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            status == 0
        }
    }
}

/// Deadlines pass and call back in the child of a fork, and in the child's own child; also while the parent's threads are
/// busy with deadlines.
#[test]
#[ignore = "alone in its process: `deadlines_after_fork` runs it"]
fn deadlines_after_fork_alone() {
    deadlines_work();
    let parents = CancelToken::with_timeout(LONG);
    assert!(in_child(|| {
        after_fork_in_child();
        deadlines_work();
        assert!(in_child(|| {
            after_fork_in_child();
            deadlines_work();
        }));
        deadlines_work();
    }));
    assert!(!parents.is_cancelled());
    deadlines_work();
}

/// In a process of its own: the test harness has threads, which may hold locks of its own when the process forks.
#[test]
fn deadlines_after_fork() {
    let this = std::env::current_exe().unwrap();
    let output = std::process::Command::new(this)
        .args(["--ignored", "--exact", "fork::deadlines_after_fork_alone"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}
