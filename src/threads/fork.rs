//! The fork of a process, of which the child tells this crate.

use super::{background, timer};

/// Makes deadlines work in the child of a fork. Call it there before anything else of this crate, while the child has one
/// thread, such as in a handler of `pthread_atfork`. In Python the package does so by itself.
///
/// The thread that watches deadlines, and the threads that call callbacks after them, stay with the parent; the child has
/// only a copy of their lists, whose locks may be held for ever. This function puts empty lists in their place. Without
/// it, no deadline passes in the child, and making a token with a deadline may block for ever.
///
/// It does nothing for what was made before the fork: tokens, runs, logs, subscriptions and tables are the parent's.
/// Their locks may be held for ever too, and the threads of their sinks are not there. The child makes its own, and gives
/// those of its parent to [`std::mem::forget`]; the deadlines of its parent's tokens do not pass in the child.
pub fn after_fork_in_child() {
    timer::forget_after_fork();
    background::forget_after_fork();
}
