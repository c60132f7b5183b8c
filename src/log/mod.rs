//! One run's ordered, bounded log, and the subscriptions that read it at their own pace.

mod event_log;
mod subscription;

pub use event_log::{Ended, EventLog, Limits, Wake};
pub(crate) use event_log::{Notify, Outline};
pub(crate) use subscription::Cursor;
pub use subscription::{Closer, Lagged, Overflow, Read, Start, Subscription};
