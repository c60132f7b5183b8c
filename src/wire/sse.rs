//! Server-sent events as WHATWG specifies them: comments and messages to write beside [`Frame`](crate::Frame)s, and a
//! parser.
//!
//! <https://html.spec.whatwg.org/multipage/server-sent-events.html>
//!
//! ```
//! use llm_callback::sse::{self, Parser};
//!
//! let mut stream = sse::retry(3000);
//! stream.extend(sse::HEARTBEAT);
//! stream.extend(sse::message(Some("note"), None, "two\nlines")?);
//!
//! let mut parser = Parser::new();
//! let messages = parser.push(&stream);
//! assert_eq!(messages.len(), 1);
//! assert_eq!((messages[0].event.as_str(), messages[0].data.as_str()), ("note", "two\nlines"));
//! assert_eq!(parser.retry(), Some(3000));
//! # Ok::<(), sse::InvalidField>(())
//! ```

use std::fmt;

/// A comment to send while the stream is quiet, so that no proxy closes it.
///
/// One line, without a blank line after it: some readers take a blank line for the end of a message.
pub const HEARTBEAT: &[u8] = b": heartbeat\n";

/// A character that a field of a message must not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidField {
    /// CR or LF in the event's name: it would end the line.
    Event,
    /// CR or LF in the id, or NUL, for which readers ignore the whole id.
    Id,
}

impl fmt::Display for InvalidField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Event => "the name of an SSE event has no CR or LF",
            Self::Id => "the id of an SSE event has no CR, LF or NUL",
        })
    }
}

impl std::error::Error for InvalidField {}

/// A comment, which readers skip, of as many lines as `text` has.
pub fn comment(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    lines(&mut out, ": ", text);
    out
}

/// Tells the reader how many milliseconds to wait before it reconnects.
pub fn retry(ms: u64) -> Vec<u8> {
    format!("retry: {ms}\n").into_bytes()
}

/// A message with this name (`message` if None), this id (the last message's if None) and this data.
///
/// The data is split at CRLF, LF and CR, and nowhere else; readers get LF for each. Empty data is a message too.
///
/// # Errors
///
/// [`InvalidField`] for a name or an id that cannot be sent.
pub fn message(event: Option<&str>, id: Option<&str>, data: &str) -> Result<Vec<u8>, InvalidField> {
    if event.is_some_and(|name| name.contains(['\r', '\n'])) {
        return Err(InvalidField::Event);
    }
    if id.is_some_and(|id| id.contains(['\r', '\n', '\0'])) {
        return Err(InvalidField::Id);
    }
    let mut out = Vec::with_capacity(data.len() + 64);
    for (field, text) in [("event: ", event), ("id: ", id)] {
        if let Some(text) = text {
            lines(&mut out, field, text);
        }
    }
    lines(&mut out, "data: ", data);
    out.push(b'\n');
    Ok(out)
}

/// Appends each line of `text`, which has at least one, after `field`.
fn lines(out: &mut Vec<u8>, field: &str, text: &str) {
    let mut rest = Some(text);
    while let Some(text) = rest {
        let (line, next) = match text.find(['\r', '\n']) {
            Some(end) => {
                let next = &text[end..];
                let length = if next.starts_with("\r\n") { 2 } else { 1 };
                (&text[..end], Some(&next[length..]))
            }
            None => (text, None),
        };
        for part in [field, line, "\n"] {
            out.extend_from_slice(part.as_bytes());
        }
        rest = next;
    }
}

/// A message as a reader gets it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Message {
    /// Its name: `message` if the sender gave none.
    pub event: String,
    /// Its lines, with LF between them. Of a [`Frame`](crate::Frame) it is what
    /// [`Event::from_json`](crate::Event::from_json) reads.
    pub data: String,
    /// The last id that the sender gave, with this message or before; empty if there was none.
    pub id: String,
}

/// Reads a stream of server-sent events piece by piece, however it is cut.
///
/// The parser takes any bytes: bytes that are not UTF-8 become U+FFFD, unknown fields are skipped, and a message that
/// the stream does not finish never comes. It keeps an unfinished message of any length, so use it for trusted senders.
#[derive(Clone, Debug, Default)]
pub struct Parser {
    /// The line so far, and whether a line was finished before it.
    line: Vec<u8>,
    past_first_line: bool,
    /// The byte before was a CR, which ended a line: an LF now belongs to that CR.
    after_cr: bool,
    event: String,
    data: String,
    /// The id of the message that is being read, and that of the last that was finished.
    id: String,
    last_event_id: String,
    retry: Option<u64>,
}

impl Parser {
    /// A parser at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads more bytes. Returns the messages that they finish.
    pub fn push(&mut self, mut bytes: &[u8]) -> Vec<Message> {
        let mut messages = Vec::new();
        if self.after_cr && !bytes.is_empty() {
            self.after_cr = false;
            bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
        }
        while let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
            self.line.extend_from_slice(&bytes[..end]);
            messages.extend(self.end_line());
            let rest = &bytes[end + 1..];
            bytes = match bytes[end] {
                b'\r' if rest.is_empty() => {
                    self.after_cr = true;
                    rest
                }
                b'\r' => rest.strip_prefix(b"\n").unwrap_or(rest),
                _ => rest,
            };
        }
        self.line.extend_from_slice(bytes);
        messages
    }

    /// The id to reconnect with, as `Last-Event-ID`: the last that a finished message had; empty if none.
    pub fn last_event_id(&self) -> &str {
        &self.last_event_id
    }

    /// How many milliseconds the sender wants a reader to wait before it reconnects, if the sender has said so.
    pub fn retry(&self) -> Option<u64> {
        self.retry
    }

    fn end_line(&mut self) -> Option<Message> {
        let mut bytes = std::mem::take(&mut self.line);
        let first = !std::mem::replace(&mut self.past_first_line, true);
        let line = if first {
            bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes)
        } else {
            &bytes
        };
        let message = if line.is_empty() {
            self.dispatch()
        } else {
            // The decoder's errors cannot reach over a line's end: to decode line by line is to decode the stream.
            let line = String::from_utf8_lossy(line);
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            self.field(field, value.strip_prefix(' ').unwrap_or(value));
            None
        };
        bytes.clear();
        self.line = bytes;
        message
    }

    fn field(&mut self, field: &str, value: &str) {
        match field {
            "event" => value.clone_into(&mut self.event),
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            "id" if !value.contains('\0') => value.clone_into(&mut self.id),
            "retry" if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) => {
                self.retry = Some(value.parse().unwrap_or(u64::MAX));
            }
            // A comment, whose field has no name, or an unknown field.
            _ => {}
        }
    }

    fn dispatch(&mut self) -> Option<Message> {
        self.id.clone_into(&mut self.last_event_id);
        let (event, mut data) = (
            std::mem::take(&mut self.event),
            std::mem::take(&mut self.data),
        );
        // Each line of data has left an LF, also an empty one: nothing at all means that there was none.
        data.pop()?;
        Some(Message {
            event: if event.is_empty() {
                "message".into()
            } else {
                event
            },
            data,
            id: self.last_event_id.clone(),
        })
    }
}
