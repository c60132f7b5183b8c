//! Cancellation: a tree of tokens, and why one of them is cancelled.

mod node;
mod reason;
mod token;

pub use reason::{CancelKind, CancelReason, UnknownCancelKind};
pub(crate) use token::NoTimer;
pub use token::{CancelToken, Registration};
