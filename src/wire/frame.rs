//! An event encoded once: the bytes that SSE sends, with the JSON as a slice of them.

use super::event::{Event, EventId, Source, Word};
use super::json;
use super::timestamp::{Second, Timestamp};
use crate::run_id::RunId;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::convert::Infallible;
use std::fmt;
use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

/// What closes the JSON object and the SSE message.
const TAIL: &[u8] = b"}\n\n";

/// The part of an event that whoever emits it knows: source, word and data, encoded before the log's lock is taken.
#[derive(Clone)]
pub struct Body {
    word: Word,
    /// `,"source":…,"event":{…},"data":…}` and the blank line: the end of a frame.
    bytes: Vec<u8>,
    source: Range<usize>,
    data: usize,
}

impl Body {
    /// Encodes what is said, and by whom.
    ///
    /// # Errors
    ///
    /// What `data` has against being JSON, such as keys that are not strings.
    pub fn new<D: Serialize + ?Sized>(
        source: Option<&Source>,
        word: Word,
        data: &D,
    ) -> serde_json::Result<Self> {
        let source = |bytes: &mut Vec<u8>| serde_json::to_writer(bytes, &source);
        let data = |bytes: &mut Vec<u8>| serde_json::to_writer(bytes, data);
        Self::encode(word, 256, source, data)
    }

    /// Takes what is JSON already, for a caller that encodes by itself; no source is `null`. One allocation.
    ///
    /// It is not checked: each must be one JSON value in UTF-8, or readers of the frame get what is not JSON. Line
    /// breaks, which JSON has only between its tokens, become spaces.
    pub fn from_json(word: Word, source: &[u8], data: &[u8]) -> Self {
        let copy = |text| {
            move |bytes: &mut Vec<u8>| {
                bytes.extend_from_slice(text);
                Ok::<(), Infallible>(())
            }
        };
        let Ok(body) = Self::encode(word, source.len() + data.len(), copy(source), copy(data));
        body
    }

    /// What kind of event it is.
    pub fn word(&self) -> Word {
        self.word
    }

    /// The body that begins with `prelude`; `write_data` appends its data, one JSON value without line breaks.
    ///
    /// `buffer` is emptied and used, so that who says much needs no allocation: see [`into_buffer`](Self::into_buffer).
    ///
    /// # Errors
    ///
    /// What `write_data` returns.
    pub fn after<E>(
        prelude: &Prelude,
        mut buffer: Vec<u8>,
        write_data: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<Self, E> {
        buffer.clear();
        buffer.extend_from_slice(&prelude.bytes);
        write_data(&mut buffer)?;
        buffer.extend_from_slice(TAIL);
        Ok(Self {
            word: prelude.word,
            source: prelude.source.clone(),
            data: prelude.bytes.len(),
            bytes: buffer,
        })
    }

    /// What the body was written to.
    pub fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }

    fn encode<E>(
        word: Word,
        expected: usize,
        encode_source: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
        encode_data: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut buffer = Vec::with_capacity(expected + MOST_AROUND);
        let source = prelude(&mut buffer, word, encode_source)?;
        let data = buffer.len();
        encode_data(&mut buffer)?;
        without_breaks(&mut buffer);
        buffer.extend_from_slice(TAIL);
        Ok(Self {
            word,
            bytes: buffer,
            source,
            data,
        })
    }
}

/// Who speaks and the word: what the bodies of one speaker have in common, encoded once.
#[derive(Clone)]
pub struct Prelude {
    word: Word,
    /// `,"source":…,"event":{…},"data":`
    bytes: Box<[u8]>,
    source: Range<usize>,
}

impl Prelude {
    /// Takes the source as JSON, which is not checked, `null` for none: see [`Body::from_json`].
    pub fn new(word: Word, source: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(source.len() + MOST_AROUND);
        let Ok(source) = prelude(&mut bytes, word, |bytes| {
            bytes.extend_from_slice(source);
            Ok::<(), Infallible>(())
        });
        without_breaks(&mut bytes);
        Self {
            word,
            bytes: bytes.into(),
            source,
        }
    }
}

impl fmt::Debug for Prelude {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Prelude({})", self.word)
    }
}

/// The longest words, `lifecycle` and `tool_result`, and the keys around them take 80 bytes; then there is the tail.
const MOST_AROUND: usize = 96;

/// Writes who speaks and the word; where the source is.
fn prelude<E>(
    bytes: &mut Vec<u8>,
    word: Word,
    encode_source: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
) -> Result<Range<usize>, E> {
    const SOURCE: &[u8] = br#","source":"#;
    bytes.extend_from_slice(SOURCE);
    encode_source(bytes)?;
    let source = SOURCE.len()..bytes.len();
    bytes.extend_from_slice(br#","event":{"category":""#);
    bytes.extend_from_slice(word.category.as_str().as_bytes());
    bytes.extend_from_slice(br#"","action":""#);
    bytes.extend_from_slice(word.action.as_str().as_bytes());
    bytes.extend_from_slice(br#""},"data":"#);
    Ok(source)
}

/// Line breaks, which JSON has only between its tokens, become spaces.
fn without_breaks(json: &mut [u8]) {
    // Each byte is written, changed or not: so the compiler takes many at a time.
    for byte in json {
        let is_break = matches!(*byte, b'\r' | b'\n');
        *byte = if is_break { b' ' } else { *byte };
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let data = &self.bytes[self.data..self.bytes.len() - TAIL.len()];
        write!(f, "Body({} {})", self.word, String::from_utf8_lossy(data))
    }
}

/// What the frames of one run have in common, encoded once per run, and the time once per second.
///
/// ```
/// use llm_callback::{Body, Head, Payload, Word};
///
/// let mut head = Head::new(&42.into());
/// let body = Body::new(None, Word::LLM_STREAM, &Payload::Content { content: "Hello".into() })?;
/// let frame = head.frame(1_764_504_000_123, 7, &body);
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
pub struct Head {
    /// `id: <ms>-`
    id_line: Vec<u8>,
    /// A line break, and `data: {"id":"<ms>-`
    id: Vec<u8>,
    /// `","run_id":…,"timestamp":"2026-11-30T12:00:00.123Z","sequence":`
    rest: Vec<u8>,
    /// Where the time begins in `rest`.
    time: usize,
    /// The milliseconds of the ids and of the time that are there: those of many events, where they come fast.
    written: Option<(u64, u64)>,
    /// The second that is there.
    second: Option<Second>,
}

impl Head {
    /// The head of this run's frames.
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

    /// The frame of one event. Short and with one allocation: it is called under the log's lock.
    ///
    /// That neither number goes back within the run is up to the caller.
    pub fn frame(&mut self, ms: u64, sequence: u64, body: &Body) -> Frame {
        self.assemble(true, EventId { ms, sequence }, ms, body)
    }

    /// Tells one reader, who asked for `requested`, at `ms`, that it has missed `lost` events before `oldest`.
    ///
    /// It has no `id` line, so that a reader that reconnects right after it asks again for what it asked. The id in
    /// its JSON is the place right before `oldest`, which is greater than what the reader has seen and less than what
    /// it will see; `<ms>-0` if there is no `oldest`.
    pub fn gap(&mut self, ms: u64, requested: &str, oldest: Option<EventId>, lost: u64) -> Frame {
        let mut data = br#"{"requested":""#.to_vec();
        json::escape_str(&mut data, requested);
        data.extend_from_slice(br#"","oldest":"#);
        match oldest {
            Some(id) => data.extend_from_slice(format!("\"{id}\"").as_bytes()),
            None => data.extend_from_slice(b"null"),
        }
        data.extend_from_slice(format!(r#","lost":{lost}}}"#).as_bytes());
        let body = Body::from_json(Word::STREAM_GAP, b"null", &data);
        let before = oldest.map_or(EventId { ms, sequence: 0 }, |id| EventId {
            ms: id.ms,
            sequence: id.sequence.saturating_sub(1),
        });
        self.assemble(false, before, ms, &body)
    }

    /// How many bytes the frame of this body has at most.
    pub(crate) fn most(&self, body: &Body) -> usize {
        // Two ids and a sequence number of 20 digits each, the time, and what is around them.
        self.time + body.bytes.len() + 5 * 20 + 24 + 34
    }

    fn assemble(&mut self, has_id_line: bool, id: EventId, ms: u64, body: &Body) -> Frame {
        if self.written != Some((id.ms, ms)) {
            self.write_times(id.ms, ms);
        }
        let mut sequence = itoa::Buffer::new();
        let sequence = sequence.format(id.sequence).as_bytes();
        // Without the line before it, there is none to break.
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
            word: body.word,
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
        // Three digits: those behind the one.
        let mut millis = itoa::Buffer::new();
        let millis = millis.format(1000 + time.millis()).as_bytes();
        self.rest.extend_from_slice(&millis[1..]);
        self.rest.extend_from_slice(br#"Z","sequence":"#);
        self.written = Some((id_ms, ms));
    }
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Head({})", String::from_utf8_lossy(&self.rest))
    }
}

/// One event, encoded once and never changed; shared by the log and its readers as `Arc<Frame>`.
#[derive(Clone)]
pub struct Frame {
    id: EventId,
    word: Word,
    bytes: Box<[u8]>,
    json: usize,
    source: Range<usize>,
    data: usize,
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

    /// Its name in the run; of a gap, a place in the run: see [`Head::gap`].
    pub fn id(&self) -> EventId {
        self.id
    }

    /// The sequence of the id.
    pub fn sequence(&self) -> u64 {
        self.id.sequence
    }

    /// What kind of event it is.
    pub fn word(&self) -> Word {
        self.word
    }

    /// Whether it tells of the run's own life. The first and the last event of a run do, and are never dropped.
    pub fn is_lifecycle(&self) -> bool {
        self.word.is_lifecycle()
    }

    /// Whether it ends the run.
    pub fn is_terminal(&self) -> bool {
        self.word.is_terminal()
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
    /// The JSON is no event: [`Body::from_json`] was given what is not JSON, or data nested too deep to be read.
    pub fn event(&self) -> serde_json::Result<Event> {
        Event::from_json(self.json())
    }

    /// The text in JSON, without its quotes, if this is a token and has nothing but a text.
    fn token(&self) -> Option<&[u8]> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Token<'a> {
            #[serde(borrow)]
            content: &'a RawValue,
        }

        if self.word != Word::LLM_STREAM {
            return None;
        }
        let token: Token<'_> = serde_json::from_slice(self.data()).ok()?;
        let text = token.content.get().strip_prefix('"')?.strip_suffix('"')?;
        Some(text.as_bytes())
    }

    /// All but the data of this frame, with a token's data in their place.
    fn with_token(&self, text: &[u8]) -> Self {
        let head = &self.bytes[..self.data];
        let bytes = [head, br#"{"content":""#, text, br#""}"#, TAIL].concat();
        Self {
            bytes: bytes.into_boxed_slice(),
            source: self.source.clone(),
            ..*self
        }
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame({})", String::from_utf8_lossy(self.json()))
    }
}

/// Joins each row of neighbouring tokens of one source to one frame; other frames stay as they are, in their places.
///
/// A token is an `llm.stream` frame whose data is `{"content": <text>}` and nothing else. The joined frame has the
/// texts of all, in order, and for the rest (id, sequence, timestamp) is the last of them, so that a reader resumes
/// after it. The texts are joined as they are encoded: lone surrogates survive, and two halves of a character that
/// came in two tokens become that character. It reads the JSON of each token: for readers that lag, not for each frame.
pub fn coalesce(frames: &[Arc<Frame>]) -> Vec<Arc<Frame>> {
    let tokens: Vec<_> = frames.iter().map(|frame| (frame, frame.token())).collect();
    let rows = tokens.chunk_by(|(one, text), (next, more)| {
        text.is_some() && more.is_some() && one.source() == next.source()
    });
    rows.map(|row| {
        let (last, _) = row[row.len() - 1];
        if row.len() == 1 {
            return Arc::clone(last);
        }
        let texts: Vec<&[u8]> = row.iter().filter_map(|(_, text)| *text).collect();
        Arc::new(last.with_token(&texts.concat()))
    })
    .collect()
}
