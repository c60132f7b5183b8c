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
    /// What SSE sends, in one piece: the line of the id, the line of the JSON, a blank line. A gap has no id line.
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

    /// Its name in the run; of a gap, a place in the run: see [`FrameEncoder::gap`](crate::FrameEncoder::gap).
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

    /// Whether it tells of the run's own life. The first and the last event of a run do, and are never dropped.
    pub fn is_lifecycle(&self) -> bool {
        self.kind.is_lifecycle()
    }

    /// Whether it ends the run.
    pub fn is_terminal(&self) -> bool {
        self.kind.is_terminal()
    }

    /// How many bytes [`sse`](Self::sse) has; never none.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The event read back, as [`Event::from_json`] does: lone surrogates become U+FFFD, here, not in the bytes.
    ///
    /// # Errors
    ///
    /// The JSON is no event: [`EncodedBody::from_json`](crate::EncodedBody::from_json) was given what is not JSON, or data nested too deep to be read.
    pub fn event(&self) -> serde_json::Result<Event> {
        Event::from_json(self.json())
    }

    /// The text in JSON, without its quotes, if this is a token and has nothing but a text.
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

    /// All but the data of this frame, with a token's data in their place.
    pub(super) fn with_token(&self, text: &[u8]) -> Self {
        let head = &self.bytes[..self.data];
        let bytes = [head, br#"{"content":""#, text, br#""}"#, TAIL].concat();
        Self {
            bytes: bytes.into_boxed_slice(),
            ..self.clone()
        }
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame({})", String::from_utf8_lossy(self.json()))
    }
}
