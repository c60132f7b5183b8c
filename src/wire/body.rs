//! The part of an event that its emitter knows, encoded before the log's lock is taken.

use super::event::Source;
use super::kind::EventKind;
use serde::Serialize;
use std::convert::Infallible;
use std::fmt;
use std::ops::Range;

/// The end of a frame: it closes the JSON object and the SSE message.
pub(super) const TAIL: &[u8] = b"}\n\n";

/// An event's source, kind and data as JSON: all of a frame but its id, its run and its time.
#[derive(Clone)]
pub struct EncodedBody {
    pub(super) kind: EventKind,
    /// `,"source":…,"event":{…},"data":…}` and a blank line.
    pub(super) bytes: Vec<u8>,
    /// Where the JSON of the source is.
    pub(super) source: Range<usize>,
    /// Where the JSON of the data begins.
    pub(super) data: usize,
}

impl EncodedBody {
    /// Encodes an event of this kind. Without a source it is the run itself that speaks.
    ///
    /// # Errors
    ///
    /// The error of `data`'s serialisation, for example a key that is not a string.
    pub fn new<D: Serialize + ?Sized>(
        source: Option<&Source>,
        kind: EventKind,
        data: &D,
    ) -> serde_json::Result<Self> {
        let source = |bytes: &mut Vec<u8>| serde_json::to_writer(bytes, &source);
        let data = |bytes: &mut Vec<u8>| serde_json::to_writer(bytes, data);
        Self::encode(kind, 256, source, data)
    }

    /// Copies a source and data that are JSON already, with one allocation. The source of no agent is `null`.
    ///
    /// The JSON is not checked: each must be one JSON value in UTF-8, or readers of the frame get invalid JSON. Line
    /// breaks, which JSON has only between its tokens, become spaces.
    pub fn from_json(kind: EventKind, source: &[u8], data: &[u8]) -> Self {
        let copy = |text| {
            move |bytes: &mut Vec<u8>| {
                bytes.extend_from_slice(text);
                Ok::<(), Infallible>(())
            }
        };
        let Ok(body) = Self::encode(kind, source.len() + data.len(), copy(source), copy(data));
        body
    }

    /// What kind of event it is.
    pub fn kind(&self) -> &EventKind {
        &self.kind
    }

    /// The memory of the body, to be used again by [`BodyTemplate::fill`].
    pub fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }

    fn encode<E>(
        kind: EventKind,
        expected: usize,
        encode_source: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
        encode_data: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut bytes = Vec::with_capacity(expected + ENVELOPE);
        let source = encode_up_to_data(&mut bytes, &kind, encode_source)?;
        let data = bytes.len();
        encode_data(&mut bytes)?;
        replace_line_breaks(&mut bytes);
        bytes.extend_from_slice(TAIL);
        Ok(Self {
            kind,
            bytes,
            source,
            data,
        })
    }
}

impl fmt::Debug for EncodedBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let data = &self.bytes[self.data..self.bytes.len() - TAIL.len()];
        let data = String::from_utf8_lossy(data);
        write!(f, "EncodedBody({} {data})", self.kind)
    }
}

/// A source and a kind, encoded once: what many bodies of one agent have in common.
#[derive(Clone)]
pub struct BodyTemplate {
    kind: EventKind,
    /// `,"source":…,"event":{…},"data":`
    bytes: Box<[u8]>,
    source: Range<usize>,
}

impl BodyTemplate {
    /// Copies a source that is JSON already, `null` for none. The JSON is not checked: see [`EncodedBody::from_json`].
    pub fn new(kind: EventKind, source: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(source.len() + ENVELOPE);
        let Ok(source) = encode_up_to_data(&mut bytes, &kind, |bytes| {
            bytes.extend_from_slice(source);
            Ok::<(), Infallible>(())
        });
        replace_line_breaks(&mut bytes);
        Self {
            kind,
            bytes: bytes.into(),
            source,
        }
    }

    /// A body of this source and kind. `write_data` appends the data: one JSON value without line breaks.
    ///
    /// `buffer` is emptied and becomes the body's memory, so that an agent that emits much needs no allocation: see
    /// [`EncodedBody::into_buffer`].
    ///
    /// # Errors
    ///
    /// The error of `write_data`.
    pub fn fill<E>(
        &self,
        mut buffer: Vec<u8>,
        write_data: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<EncodedBody, E> {
        buffer.clear();
        buffer.extend_from_slice(&self.bytes);
        write_data(&mut buffer)?;
        buffer.extend_from_slice(TAIL);
        Ok(EncodedBody {
            kind: self.kind.clone(),
            source: self.source.clone(),
            data: self.bytes.len(),
            bytes: buffer,
        })
    }
}

impl fmt::Debug for BodyTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BodyTemplate({})", self.kind)
    }
}

/// About how many bytes a body has besides its source and its data: 80 for the longest built-in kind and the keys, and
/// the tail. Only a first guess of a buffer's size.
const ENVELOPE: usize = 96;

/// Appends all of a body that comes before its data. Returns where the source is.
fn encode_up_to_data<E>(
    bytes: &mut Vec<u8>,
    kind: &EventKind,
    encode_source: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
) -> Result<Range<usize>, E> {
    const SOURCE: &[u8] = br#","source":"#;
    bytes.extend_from_slice(SOURCE);
    encode_source(bytes)?;
    let source = SOURCE.len()..bytes.len();
    bytes.extend_from_slice(br#","event":{"category":""#);
    // The words of a kind have nothing that JSON escapes.
    bytes.extend_from_slice(kind.category().as_bytes());
    bytes.extend_from_slice(br#"","action":""#);
    bytes.extend_from_slice(kind.action().as_bytes());
    bytes.extend_from_slice(br#""},"data":"#);
    Ok(source)
}

/// Puts spaces in the place of line breaks, which JSON has only between its tokens.
fn replace_line_breaks(json: &mut [u8]) {
    // Each byte is written, changed or not: so the compiler takes many at a time.
    for byte in json {
        let is_break = matches!(*byte, b'\r' | b'\n');
        *byte = if is_break { b' ' } else { *byte };
    }
}
