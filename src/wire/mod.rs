//! What an event looks like: its id, its kind, its typed form, and the bytes that are sent.

mod body;
mod coalesce;
mod encoder;
mod event;
mod frame;
mod id;
pub mod json;
mod kind;
mod object;
pub mod sse;
mod timestamp;

pub use body::{BodyTemplate, EncodedBody};
pub use coalesce::coalesce;
pub use encoder::FrameEncoder;
pub use event::{Event, Payload, Source};
pub use frame::Frame;
pub use id::{EventId, InvalidEventId};
pub use kind::{Action, Category, EventKind, InvalidEventKind, UnknownWord};
pub(crate) use object::Object;
