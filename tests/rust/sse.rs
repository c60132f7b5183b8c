//! Server-sent events: the examples of the WHATWG text in our words, and any stream cut anywhere.

use crate::event::{chunks, text};
use llm_callback::sse::{self, InvalidField, Message, Parser};
use proptest::prelude::*;

const CASES: u32 = 256;

fn parse(stream: impl AsRef<[u8]>) -> Vec<Message> {
    Parser::new().push(stream.as_ref())
}

fn message(event: &str, data: &str, id: &str) -> Message {
    Message {
        event: event.into(),
        data: data.into(),
        id: id.into(),
    }
}

fn unnamed(data: &str) -> Message {
    message("message", data, "")
}

/// Three `data` lines are one message of three lines.
#[test]
fn lines_of_data_are_one_message() {
    let stream = "data: YHOO\ndata: +2\ndata: 10\n\n";
    assert_eq!(parse(stream), [unnamed("YHOO\n+2\n10")]);
}

/// A comment is skipped; an id stays until another comes; an empty one forgets it; only the first space is dropped;
/// an unfinished message never comes.
#[test]
fn ids_stay_until_they_are_forgotten() {
    let stream = ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\n\ndata: third\nid\n\ndata:  fourth event\n";
    let mut parser = Parser::new();
    let expected = [
        message("message", "first event", "1"),
        message("message", "second event", "1"),
        message("message", "third", ""),
    ];
    assert_eq!(parser.push(stream.as_bytes()), expected);
    assert_eq!(parser.push(b"\n"), [unnamed(" fourth event")]);
}

/// `data` without a colon is an empty line of data: one makes an empty message, two make one line break.
#[test]
fn empty_data_is_a_message() {
    let stream = "data\n\ndata\ndata\n\ndata:";
    assert_eq!(parse(stream), [unnamed(""), unnamed("\n")]);
}

/// One space after the colon says nothing.
#[test]
fn one_space_is_skipped() {
    let stream = "data:test\n\ndata: test\n\ndata:  test\n\n";
    assert_eq!(
        parse(stream),
        [unnamed("test"), unnamed("test"), unnamed(" test")]
    );
}

/// A name holds for its message only, and a message without data is none, though its id counts.
#[test]
fn names_hold_for_one_message() {
    let mut parser = Parser::new();
    let messages =
        parser.push(b"event: add\ndata: 1\n\ndata: 2\n\nevent: none\nid: 7\n\ndata: 3\n\n");
    let expected = [
        message("add", "1", ""),
        unnamed("2"),
        message("message", "3", "7"),
    ];
    assert_eq!(messages, expected);
}

/// The id to reconnect with is that of the last finished message, not of one that is still under way.
#[test]
fn an_unfinished_id_does_not_count() {
    let mut parser = Parser::new();
    parser.push(b"id: 1\ndata: x\n\nid: 2\ndata: y\n");
    assert_eq!(parser.last_event_id(), "1");
    parser.push(b"\n");
    assert_eq!(parser.last_event_id(), "2");
    parser.push(b"id: 3\n\n");
    assert_eq!(parser.last_event_id(), "3");
}

/// CR, LF and CRLF each end one line, also where the stream is cut between the two.
#[test]
fn three_ways_to_end_a_line() {
    assert_eq!(
        parse("data: a\rdata: b\r\ndata: c\n\r\n"),
        [unnamed("a\nb\nc")]
    );
    let mut parser = Parser::new();
    assert_eq!(parser.push(b"data: a\r"), []);
    assert_eq!(parser.push(b""), []);
    assert_eq!(parser.push(b"\n"), []);
    assert_eq!(parser.push(b"\r"), [unnamed("a")]);
    assert_eq!(parser.push(b"\ndata: b\n\n"), [unnamed("b")]);
}

/// Nothing else ends a line.
#[test]
fn other_breaks_are_text() {
    let text = "a\u{b}\u{c}\u{1c}\u{85}\u{2028}\u{2029}\0b";
    assert_eq!(parse(format!("data: {text}\n\n")), [unnamed(text)]);
}

/// One byte order mark at the start is skipped, in however many pieces it comes; a second, or a later one, is text.
#[test]
fn one_byte_order_mark_is_skipped() {
    let mut parser = Parser::new();
    let messages: Vec<_> = "\u{feff}data: \u{feff}a\n\n\u{feff}data: b\n\n"
        .as_bytes()
        .chunks(1)
        .flat_map(|byte| parser.push(byte))
        .collect();
    assert_eq!(messages, [unnamed("\u{feff}a")]);
    assert_eq!(parse("\u{feff}\u{feff}data: a\n\n"), []);
}

/// `retry` is digits only; an id with NUL is ignored; unknown fields, other cases and spaces before are ignored.
#[test]
fn fields_are_strict() {
    let mut parser = Parser::new();
    for wrong in ["1.5", "-1", "+1", "1 ", " 1", "x", "", "\u{661}"] {
        parser.push(format!("retry: {wrong}\n").as_bytes());
        assert_eq!(parser.retry(), None, "{wrong}");
    }
    parser.push(b"retry: 007\n");
    assert_eq!(parser.retry(), Some(7));
    parser.push(b"retry:99999999999999999999999\n");
    assert_eq!(parser.retry(), Some(u64::MAX));
    let messages =
        parser.push(b"id: 1\nid: 2\x003\nData: a\n data: b\ndata : c\nfoo: d\ndata: e\n\n");
    assert_eq!(messages, [message("message", "e", "1")]);
}

/// What is not UTF-8 becomes U+FFFD and costs nothing else.
#[test]
fn wrong_bytes_are_replaced() {
    let stream = b"data: a\xffb\xe2\x82\ndata: c\n\n";
    assert_eq!(parse(stream), [unnamed("a\u{fffd}b\u{fffd}\nc")]);
}

/// Comments and heartbeats are no messages, whatever their text is.
#[test]
fn comments_say_nothing() {
    assert_eq!(sse::comment("x"), b": x\n");
    assert_eq!(sse::comment(""), b": \n");
    assert_eq!(
        sse::comment("a\r\ndata: b\rc\n"),
        b": a\n: data: b\n: c\n: \n"
    );
    assert_eq!(
        parse([sse::HEARTBEAT, &sse::comment("\n\ndata: x\n\n")].concat()),
        []
    );
}

/// A message is written as its fields, each line of its data on one of its own.
#[test]
fn messages_are_written() {
    let written = sse::message(Some("e"), Some("1-2"), "a\r\nb\rc\n\nd").unwrap();
    assert_eq!(
        written,
        b"event: e\nid: 1-2\ndata: a\ndata: b\ndata: c\ndata: \ndata: d\n\n"
    );
    assert_eq!(sse::message(None, None, "").unwrap(), b"data: \n\n");
    assert_eq!(sse::retry(3000), b"retry: 3000\n");
}

/// A name or an id that would break its line, or that readers would ignore, is refused.
#[test]
fn fields_that_cannot_be_sent_are_refused() {
    for wrong in ["\n", "a\rb", "a\r\n"] {
        assert_eq!(
            sse::message(Some(wrong), None, ""),
            Err(InvalidField::Event)
        );
        assert_eq!(sse::message(None, Some(wrong), ""), Err(InvalidField::Id));
    }
    assert_eq!(sse::message(None, Some("\0"), ""), Err(InvalidField::Id));
    assert!(sse::message(Some("\0"), Some("\u{2028}"), "").is_ok());
}

/// The WHATWG text's algorithm in its own order: all at once, decode, split, read line by line.
fn read_at_once(stream: &[u8]) -> (Vec<Message>, Option<u64>) {
    let text = String::from_utf8_lossy(stream);
    let text = text
        .strip_prefix('\u{feff}')
        .unwrap_or(&text)
        .replace("\r\n", "\n")
        .replace('\r', "\n");
    let (mut messages, mut retry) = (Vec::new(), None);
    let (mut event, mut data, mut id) = (String::new(), String::new(), String::new());
    let mut lines: Vec<_> = text.split('\n').collect();
    lines.pop();
    for line in lines {
        if line.is_empty() {
            if !data.is_empty() {
                data.truncate(data.len() - 1);
                let name = if event.is_empty() { "message" } else { &event };
                messages.push(message(name, &data, &id));
            }
            event.clear();
            data.clear();
        } else if !line.starts_with(':') {
            let (field, value) = match line.find(':') {
                Some(colon) => (&line[..colon], &line[colon + 1..]),
                None => (line, ""),
            };
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => event = value.into(),
                "data" => data = [&data, value, "\n"].concat(),
                "id" if !value.contains('\0') => id = value.into(),
                "retry"
                    if !value.is_empty() && value.chars().all(|digit| digit.is_ascii_digit()) =>
                {
                    retry = Some(value.parse().unwrap_or(u64::MAX));
                }
                _ => {}
            }
        }
    }
    (messages, retry)
}

/// Bytes that are like a stream, and bytes that are not.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop::sample::select(vec![
        &b"data"[..],
        b"data: ",
        b"event:",
        b"id: ",
        b"retry:",
        b":",
        b" ",
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"\0",
        b"1",
        b"x",
        b"\xef\xbb\xbf",
        b"\xef",
        b"\xbb",
        b"\xe2\x80\xa8",
        b"\xf0\x9f",
        b"\xed\xa0\x80",
        b"\xff",
    ]);
    let piece = prop_oneof![
        9 => piece.prop_map(<[u8]>::to_vec),
        1 => prop::collection::vec(any::<u8>(), 0..5),
    ];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(CASES) })]

    /// Any bytes, cut anywhere, are read as the text's own algorithm reads them at once.
    #[test]
    fn any_bytes_under_any_cut(stream in stream(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20)) {
        let mut parser = Parser::new();
        let messages: Vec<_> = chunks(&stream, &cuts).into_iter().flat_map(|chunk| parser.push(chunk)).collect();
        prop_assert_eq!((messages, parser.retry()), read_at_once(&stream));
    }

    /// A message that is not refused is read as it was written, but for its line ends, which become LF.
    #[test]
    fn messages_come_back(event in prop::option::of(text()), id in prop::option::of(text()), data in text()) {
        let breaks = |text: &Option<String>, wrong: &[char]| text.as_ref().is_some_and(|text| text.contains(wrong));
        match sse::message(event.as_deref(), id.as_deref(), &data) {
            Err(InvalidField::Event) => prop_assert!(breaks(&event, &['\r', '\n'])),
            Err(InvalidField::Id) => prop_assert!(breaks(&id, &['\r', '\n', '\0'])),
            Ok(written) => {
                let name = event.filter(|name| !name.is_empty()).unwrap_or("message".into());
                let data = data.replace("\r\n", "\n").replace('\r', "\n");
                prop_assert_eq!(parse(written), [message(&name, &data, &id.unwrap_or_default())]);
            }
        }
    }
}
