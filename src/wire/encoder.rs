//! Makes the frames of one run.

use super::body::EncodedBody;
use super::frame::Frame;
use super::id::EventId;
use super::json;
use super::kind::EventKind;
use super::timestamp::{Second, Timestamp};
use crate::run_id::RunId;
use std::fmt;
use std::io::Write;

/// Makes the frames of one run: what they have in common is encoded once, and the time once per second.
///
/// ```
/// use llm_callback::{EncodedBody, EventKind, FrameEncoder, Payload};
///
/// let mut encoder = FrameEncoder::new(&42.into());
/// let body = EncodedBody::new(None, EventKind::LLM_STREAM, &Payload::Content { content: "Hello".into() })?;
/// let frame = encoder.encode(1_764_504_000_123, 7, &body);
/// assert_eq!(
///     str::from_utf8(frame.sse())?,
///     "id: 1764504000123-7\n\
///      data: {\"id\":\"1764504000123-7\",\"run_id\":42,\"timestamp\":\"2025-11-30T12:00:00.123Z\",\"sequence\":7,\
///      \"source\":null,\"event\":{\"category\":\"llm\",\"action\":\"stream\"},\"data\":{\"content\":\"Hello\"}}\n\n",
/// );
/// assert_eq!(frame.event()?.run_id, 42.into());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct FrameEncoder {
    /// `id: <ms>-`
    id_line: Vec<u8>,
    /// A line break, and `data: {"id":"<ms>-`
    id: Vec<u8>,
    /// `","run_id":…,"timestamp":"2026-11-30T12:00:00.123Z","sequence":`
    rest: Vec<u8>,
    /// Where the time begins in `rest`.
    time: usize,
    /// The milliseconds of the id and of the time that are written: the same for many events, if they come fast.
    written: Option<(u64, u64)>,
    /// The second that is written.
    second: Option<Second>,
}

impl FrameEncoder {
    /// An encoder for the frames of this run.
    pub fn new(run_id: &RunId) -> Self {
        let mut rest = br#"","run_id":"#.to_vec();
        match run_id {
            RunId::Int(id) => rest.extend_from_slice(itoa::Buffer::new().format(*id).as_bytes()),
            RunId::Str(id) => {
                rest.push(b'"');
                json::escape_str(&mut rest, id);
                rest.push(b'"');
            }
        }
        rest.extend_from_slice(br#","timestamp":""#);
        Self {
            id_line: Vec::new(),
            id: Vec::new(),
            time: rest.len(),
            rest,
            written: None,
            second: None,
        }
    }

    /// Makes the frame of one event, with one allocation: this is called under the log's lock.
    ///
    /// The caller sees to it that neither number goes back within the run.
    pub fn encode(&mut self, ms: u64, sequence: u64, body: &EncodedBody) -> Frame {
        self.assemble(true, EventId { ms, sequence }, ms, body)
    }

    /// Makes the gap event for one reader, which asked for `requested` at `ms`: it has missed `lost` events before
    /// `oldest`.
    ///
    /// The frame has no `id` line, so that a reader that reconnects right after it asks again for what it asked. The id
    /// in its JSON is the place right before `oldest`, which is greater than what the reader has seen and less than
    /// what it will see; `<ms>-0` if there is no `oldest`.
    pub fn gap(&mut self, ms: u64, requested: &str, oldest: Option<EventId>, lost: u64) -> Frame {
        let mut data = br#"{"requested":""#.to_vec();
        json::escape_str(&mut data, requested);
        data.extend_from_slice(br#"","oldest":"#);
        match oldest {
            Some(id) => data.extend_from_slice(format!("\"{id}\"").as_bytes()),
            None => data.extend_from_slice(b"null"),
        }
        data.extend_from_slice(format!(r#","lost":{lost}}}"#).as_bytes());
        let body = EncodedBody::from_json(EventKind::STREAM_GAP, b"null", &data);
        let before = oldest.map_or(EventId { ms, sequence: 0 }, |id| EventId {
            ms: id.ms,
            sequence: id.sequence.saturating_sub(1),
        });
        self.assemble(false, before, ms, &body)
    }

    /// The length in bytes that the frame of this body has at most.
    pub(crate) fn max_frame_len(&self, body: &EncodedBody) -> usize {
        // Two ids and a sequence number of 20 digits each, the time, and what is around them.
        self.time + body.bytes.len() + 5 * 20 + 24 + 34
    }

    fn assemble(&mut self, has_id_line: bool, id: EventId, ms: u64, body: &EncodedBody) -> Frame {
        if self.written != Some((id.ms, ms)) {
            self.write_times(id.ms, ms);
        }
        let mut sequence = itoa::Buffer::new();
        let sequence = sequence.format(id.sequence).as_bytes();
        // Without an id line there is no line break before the data.
        let (id_line, first, begin) = if has_id_line {
            (&*self.id_line, sequence, &*self.id)
        } else {
            (&[][..], &[][..], &self.id[1..])
        };
        // Of the right size at once, so that turning it into a box costs nothing: the one allocation.
        let id_break = usize::from(has_id_line);
        let json = id_line.len() + first.len() + id_break + b"data: ".len();
        let length = id_line.len()
            + first.len()
            + begin.len()
            + self.rest.len()
            + 2 * sequence.len()
            + body.bytes.len();
        let mut bytes = Vec::with_capacity(length);
        bytes.extend_from_slice(id_line);
        bytes.extend_from_slice(first);
        bytes.extend_from_slice(begin);
        bytes.extend_from_slice(sequence);
        bytes.extend_from_slice(&self.rest);
        bytes.extend_from_slice(sequence);
        bytes.extend_from_slice(&body.bytes);
        debug_assert_eq!(bytes.len(), length);
        let bytes = bytes.into_boxed_slice();
        let start = bytes.len() - body.bytes.len();
        Frame {
            id,
            kind: body.kind.clone(),
            bytes,
            json,
            source: start + body.source.start..start + body.source.end,
            data: start + body.data,
        }
    }

    fn write_times(&mut self, id_ms: u64, ms: u64) {
        let mut digits = itoa::Buffer::new();
        let digits = digits.format(id_ms).as_bytes();
        for (piece, before) in [
            (&mut self.id_line, &b"id: "[..]),
            (&mut self.id, &b"\ndata: {\"id\":\""[..]),
        ] {
            piece.clear();
            piece.extend_from_slice(before);
            piece.extend_from_slice(digits);
            piece.push(b'-');
        }
        let time = Timestamp::new(ms);
        let second = self.time + "2026-11-30T12:00:00.".len();
        if self.second == Some(time.second()) {
            self.rest.truncate(second);
        } else {
            self.second = Some(time.second());
            self.rest.truncate(self.time);
            write!(self.rest, "{}.", time.second()).expect("a Vec takes every byte");
        }
        // The last three of four digits.
        let mut millis = itoa::Buffer::new();
        let millis = millis.format(1000 + time.millis()).as_bytes();
        self.rest.extend_from_slice(&millis[1..]);
        self.rest.extend_from_slice(br#"Z","sequence":"#);
        self.written = Some((id_ms, ms));
    }
}

impl fmt::Debug for FrameEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FrameEncoder({})", String::from_utf8_lossy(&self.rest))
    }
}
