//! What the child of a fork tells this crate.

use super::{background, timer};

/// Makes deadlines work in the child of a fork. Call this function in the child before anything else of this crate,
/// while the child has one thread: for example in a handler of `pthread_atfork`. The Python package calls it by itself.
///
/// The thread that watches deadlines, and the threads that call callbacks after them, stay with the parent. The child
/// has a copy of their lists, whose locks may be held for ever. This function puts empty lists in their place. Without
/// it, no deadline passes in the child, and making a token with a deadline may block for ever.
///
/// The function does nothing for the parent's tokens, runs, logs, subscriptions and tables. Their locks may be held for
/// ever too, and the threads of their sinks do not exist in the child. The child makes its own, and gives the parent's
/// to [`std::mem::forget`]. The deadlines of the parent's tokens do not pass in the child.
pub fn after_fork_in_child() {
    timer::forget_after_fork();
    background::forget_after_fork();
}
