//! Cancellation: a tree of tokens, and why one of them is cancelled.

mod reason;
mod token;

pub use reason::{CancelKind, Cancelled, UnknownCancelKind};
pub use token::{CancelToken, Registration};
pub(crate) use token::{NoTimer, Retired};
