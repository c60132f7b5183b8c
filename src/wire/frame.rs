//! An event encoded once: the bytes that SSE sends, with the JSON as a slice of them.

use super::body::TAIL;
use super::event::Event;
use super::id::EventId;
use super::kind::EventKind;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::fmt;
use std::ops::Range;

/// One event, encoded once and never changed; shared by the log and its readers as `Arc<Frame>`.
#[derive(Clone)]
pub struct Frame {
    pub(super) id: EventId,
    pub(super) kind: EventKind,
    pub(super) bytes: Box<[u8]>,
    /// Where the JSON of the event begins.
    pub(super) json: usize,
    pub(super) source: Range<usize>,
    pub(super) data: usize,
}

impl Frame {
    /// The bytes that SSE sends: the line of the id, the line of the JSON, a blank line. A gap has no id line.
    pub fn sse(&self) -> &[u8] {
        &self.bytes
    }

    /// The event as JSON: one line, a slice of [`sse`](Self::sse).
    pub fn json(&self) -> &[u8] {
        &self.bytes[self.json..self.bytes.len() - 2]
    }

    /// The JSON of the source: a slice of [`json`](Self::json).
    pub fn source(&self) -> &[u8] {
        &self.bytes[self.source.clone()]
    }

    /// The JSON of the data: a slice of [`json`](Self::json).
    pub fn data(&self) -> &[u8] {
        &self.bytes[self.data..self.bytes.len() - TAIL.len()]
    }

    /// The event's id in its run. A gap's id is a place in the run: see
    /// [`FrameEncoder::gap`](crate::FrameEncoder::gap).
    pub fn id(&self) -> EventId {
        self.id
    }

    /// The sequence of the id.
    pub fn sequence(&self) -> u64 {
        self.id.sequence
    }

    /// What kind of event it is.
    pub fn kind(&self) -> &EventKind {
        &self.kind
    }

    /// Whether the event tells of the run's own life. The first and the last event of a run do, and are never dropped.
    pub fn is_lifecycle(&self) -> bool {
        self.kind.is_lifecycle()
    }

    /// Whether the event ends the run.
    pub fn is_terminal(&self) -> bool {
        self.kind.is_terminal()
    }

    /// The number of bytes of [`sse`](Self::sse), which is never 0.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The event in its typed form, as [`Event::from_json`] reads it: lone surrogates become U+FFFD, there and not in
    /// the frame.
    ///
    /// # Errors
    ///
    /// If the JSON is no event: [`EncodedBody::from_json`](crate::EncodedBody::from_json) was given invalid JSON, or
    /// data nested too deep to be read.
    pub fn event(&self) -> serde_json::Result<Event> {
        Event::from_json(self.json())
    }

    /// The text as JSON, without its quotes, if this frame is a token.
    pub(super) fn token(&self) -> Option<&[u8]> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Token<'a> {
            #[serde(borrow)]
            content: &'a RawValue,
        }

        if self.kind != EventKind::LLM_STREAM {
            return None;
        }
        let token: Token<'_> = serde_json::from_slice(self.data()).ok()?;
        let text = token.content.get().strip_prefix('"')?.strip_suffix('"')?;
        Some(text.as_bytes())
    }

    /// This frame with other data: a token's.
    pub(super) fn with_token(&self, text: &[u8]) -> Self {
        let head = &self.bytes[..self.data];
        let bytes = [head, br#"{"content":""#, text, br#""}"#, TAIL].concat();
        Self {
            id: self.id,
            kind: self.kind.clone(),
            bytes: bytes.into_boxed_slice(),
            json: self.json,
            source: self.source.clone(),
            data: self.data,
        }
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame({})", String::from_utf8_lossy(self.json()))
    }
}
