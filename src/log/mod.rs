//! One run's ordered, bounded log, and the subscriptions that read it at their own pace.
//!
//! A subscription is a cursor over the one log: any number of readers see everything, replay costs nothing, and memory
//! does not grow with readers. An event is encoded once, when it is appended.

mod cursor;
mod event_log;
mod limits;
mod outline;
mod overflow;
mod read;
mod readers;
mod refusal;
mod state;
mod subscription;
#[cfg(all(test, not(loom)))]
mod tests;
mod waiters;
mod window;

pub(crate) use cursor::Cursor;
pub use cursor::Start;
pub(crate) use event_log::{Entry, Listener, Stage};
pub use event_log::{EventLog, LogSize};
pub use limits::Limits;
pub(crate) use outline::Outline;
pub use overflow::Overflow;
pub use read::{Lagged, Read, TryReadError};
pub use refusal::{Ended, TryAppendError, Wait, WouldBlock};
pub use subscription::{Closer, Subscription};
pub use waiters::Wake;
