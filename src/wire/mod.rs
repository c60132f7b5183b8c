//! What an event looks like: its id, its kind, its typed form, and the bytes that are sent.

mod event;
mod frame;
pub mod json;
mod object;
pub mod sse;
mod timestamp;

pub use event::{
    Action, Category, Event, EventId, InvalidEventId, Payload, Source, UnknownWord, Word,
};
pub use frame::{Body, Frame, Head, Prelude, coalesce};
pub(crate) use object::Object;
