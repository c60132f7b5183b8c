//! Events: there and back through frames, JSON and SSE, for any text however the stream is cut.

use llm_callback::sse::Parser;
use llm_callback::{
    Action, Category, EncodedBody, Event, EventId, EventKind, Frame, FrameEncoder, Payload, RunId,
    Source, coalesce, json,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::Arc;

const CASES: u32 = 256;

/// Any text, with more than its share of what JSON, SSE or UTF-8 might trip over.
pub(crate) fn text() -> impl Strategy<Value = String> {
    let odd = prop::sample::select(vec![
        "\r",
        "\n",
        "\r\n",
        "\0",
        "\u{1f}",
        "\u{7f}",
        "\u{85}",
        "\u{2028}",
        "\u{2029}",
        "\u{feff}",
        "\u{fffd}",
        "\"",
        "\\",
        "\\u",
        "\\ud800",
        "\\n",
        ":",
        " ",
        "data: ",
        "id: 1-1",
        "\n\n",
        "{",
        "}",
        "é",
        "😀",
        "\u{10ffff}",
    ]);
    let piece = prop_oneof![odd.prop_map(String::from), any::<String>()];
    prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

fn data() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((text(), inner), 0..6)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

fn word() -> impl Strategy<Value = EventKind> {
    let (category, action) = (Category::ALL.to_vec(), Action::ALL.to_vec());
    (prop::sample::select(category), prop::sample::select(action))
        .prop_map(|(category, action)| EventKind::new(category, action))
}

fn source() -> impl Strategy<Value = Source> {
    (text(), text(), text(), prop::option::of(text())).prop_map(
        |(agent_id, agent_type, agent_name, team_name)| Source {
            agent_id,
            agent_type,
            agent_name,
            team_name,
        },
    )
}

fn run_id() -> impl Strategy<Value = RunId> {
    prop_oneof![
        any::<i64>().prop_map(RunId::from),
        text().prop_map(RunId::from)
    ]
}

fn id() -> impl Strategy<Value = EventId> {
    let ms = prop_oneof![0..260_000_000_000_000_u64, any::<u64>()];
    (ms, any::<u64>()).prop_map(|(ms, sequence)| EventId { ms, sequence })
}

fn event() -> impl Strategy<Value = Event> {
    (id(), run_id(), prop::option::of(source()), word(), data()).prop_map(
        |(id, run_id, source, event, data)| Event {
            id,
            run_id,
            timestamp: id.timestamp(),
            sequence: id.sequence,
            source,
            event,
            data,
        },
    )
}

fn frame_of(encoder: &mut FrameEncoder, event: &Event) -> Frame {
    let body = EncodedBody::new(event.source.as_ref(), event.event.clone(), &event.data)
        .expect("it is JSON");
    encoder.encode(event.id.ms, event.id.sequence, &body)
}

/// Cuts `bytes` at these places, each taken modulo what is left.
pub(crate) fn chunks<'a>(mut bytes: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut chunks = Vec::new();
    for cut in cuts {
        let (chunk, rest) = bytes.split_at(cut.index(bytes.len() + 1));
        chunks.push(chunk);
        bytes = rest;
    }
    chunks.push(bytes);
    chunks
}

fn content(text: &str) -> Payload {
    Payload::Content {
        content: text.into(),
    }
}

fn token(
    encoder: &mut FrameEncoder,
    sequence: u64,
    source: Option<&Source>,
    text: &str,
) -> Arc<Frame> {
    let body = EncodedBody::new(source, EventKind::LLM_STREAM, &content(text)).expect("it is JSON");
    Arc::new(encoder.encode(1000 + sequence, sequence, &body))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(CASES) })]

    /// Frames of any events, read by an SSE parser from a stream cut anywhere, are these events.
    #[test]
    fn events_survive_the_wire(
        events in prop::collection::vec(event(), 1..5),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let mut stream = Vec::new();
        for event in &events {
            stream.extend_from_slice(frame_of(&mut FrameEncoder::new(&event.run_id), event).sse());
        }
        let mut parser = Parser::new();
        let messages: Vec<_> = chunks(&stream, &cuts).into_iter().flat_map(|chunk| parser.push(chunk)).collect();
        prop_assert_eq!(messages.len(), events.len());
        for (message, event) in messages.iter().zip(&events) {
            prop_assert_eq!(&message.event, "message");
            prop_assert_eq!(&message.id, &event.id.to_string());
            prop_assert_eq!(&Event::from_json(message.data.as_bytes()).unwrap(), event);
        }
    }

    /// A frame's JSON is the event's own, key by key in the order of the envelope, and its parts are slices of it.
    #[test]
    fn a_frame_is_the_envelope(event in event()) {
        let frame = frame_of(&mut FrameEncoder::new(&event.run_id), &event);
        prop_assert_eq!(str::from_utf8(frame.json()).unwrap(), serde_json::to_string(&event).unwrap());
        prop_assert_eq!(frame.event().unwrap(), event.clone());
        prop_assert_eq!(frame.source(), serde_json::to_vec(&event.source).unwrap());
        prop_assert_eq!(frame.data(), serde_json::to_vec(&event.data).unwrap());
        prop_assert_eq!((frame.id(), frame.sequence(), frame.kind()), (event.id, event.sequence, &event.event));
        prop_assert_eq!(frame.len(), frame.sse().len());
        let framed = [format!("id: {}\ndata: ", event.id).as_bytes(), frame.json(), b"\n\n"].concat();
        prop_assert_eq!(frame.sse(), framed);
    }

    /// A frame has three line feeds, which are its framing, and no carriage return, also where JSON came with breaks.
    #[test]
    fn only_the_framing_breaks_lines(event in event(), pretty in any::<bool>()) {
        let frame = if pretty {
            let source = serde_json::to_vec_pretty(&event.source).unwrap();
            let data = serde_json::to_string_pretty(&event.data).unwrap().replace('\n', "\r\n");
            let body = EncodedBody::from_json(event.event.clone(), &source, data.as_bytes());
            FrameEncoder::new(&event.run_id).encode(event.id.ms, event.id.sequence, &body)
        } else {
            frame_of(&mut FrameEncoder::new(&event.run_id), &event)
        };
        prop_assert_eq!(frame.sse().split(|byte| *byte == b'\n').count(), 4);
        prop_assert!(!frame.sse().contains(&b'\r'));
        prop_assert_eq!(frame.event().unwrap(), event);
    }

    /// An encoder that has made other frames, of whatever time, makes the same frame as a new one.
    #[test]
    fn an_encoder_keeps_nothing_of_the_frame_before(run_id in run_id(), ids in prop::collection::vec(id(), 1..8)) {
        let body = EncodedBody::new(None, EventKind::STARTED, &()).unwrap();
        let mut used = FrameEncoder::new(&run_id);
        for id in ids {
            let frame = used.encode(id.ms, id.sequence, &body);
            let of_new = FrameEncoder::new(&run_id).encode(id.ms, id.sequence, &body);
            prop_assert_eq!(frame.sse(), of_new.sse());
            prop_assert_eq!(frame.event().unwrap().timestamp, id.timestamp());
        }
    }

    /// Ids are ordered as pairs of numbers, and come back from their text and from their JSON.
    #[test]
    fn ids_are_numbers(one in id(), other in id()) {
        prop_assert_eq!(one.cmp(&other), (one.ms, one.sequence).cmp(&(other.ms, other.sequence)));
        prop_assert_eq!(one.to_string(), format!("{}-{}", one.ms, one.sequence));
        prop_assert_eq!(one.to_string().parse(), Ok(one));
        prop_assert_eq!(serde_json::to_value(one).unwrap(), Value::from(one.to_string()));
        prop_assert_eq!(serde_json::from_value::<EventId>(one.to_string().into()).unwrap(), one);
    }

    /// No text is taken for an id but one that says the same numbers.
    #[test]
    fn what_parses_as_an_id_is_one(text in "[0-9+ -]{0,24}") {
        if let Ok(EventId { ms, sequence }) = text.parse() {
            let (left, right) = text.split_once('-').unwrap();
            prop_assert!(text.bytes().filter(|byte| !byte.is_ascii_digit()).eq(*b"-"));
            prop_assert_eq!((left.parse(), right.parse()), (Ok(ms), Ok(sequence)));
        }
    }

    /// A string is escaped as `serde_json` does it, from UTF-8 and from code points alike.
    #[test]
    fn strings_are_escaped_as_elsewhere(text in text()) {
        let (mut from_str, mut from_code_points) = (b"\"".to_vec(), b"\"".to_vec());
        json::escape_str(&mut from_str, &text);
        json::escape_code_points(&mut from_code_points, text.chars().map(u32::from));
        from_str.push(b'"');
        from_code_points.push(b'"');
        prop_assert_eq!(&from_str, &serde_json::to_vec(&text).unwrap());
        prop_assert_eq!(&from_code_points, &from_str);
    }

    /// Any code points become ASCII-safe JSON; lone surrogates stay in the bytes and are read as U+FFFD.
    #[test]
    fn lone_surrogates_do_not_cost_the_event(
        code_points in prop::collection::vec(prop_oneof![0xd7ff..=0xe000_u32, 0..=0x0011_0000_u32, Just(0x5c), Just(0x22)], 0..12),
    ) {
        let mut data = b"{\"content\":\"".to_vec();
        json::escape_code_points(&mut data, code_points.iter().copied());
        data.extend_from_slice(b"\"}");
        let frame = FrameEncoder::new(&1.into()).encode(1, 1, &EncodedBody::from_json(EventKind::LLM_STREAM, b"null", &data));
        prop_assert_eq!(frame.data(), data);
        // A pair is read as its character and all else by itself: what decoding UTF-16 does.
        let units = code_points.iter().flat_map(|point| u16::try_from(*point).map_or_else(
            |_| {
                let character = char::from_u32(*point).unwrap_or(char::REPLACEMENT_CHARACTER);
                character.encode_utf16(&mut [0; 2]).to_vec()
            },
            |unit| vec![unit],
        ));
        let expected: String = char::decode_utf16(units)
            .map(|character| character.unwrap_or(char::REPLACEMENT_CHARACTER))
            .collect();
        prop_assert_eq!(frame.event().unwrap().payload(), content(&expected));
    }

    /// Coalescing keeps each source's text and every other frame, in order, and never joins over a border.
    #[test]
    fn coalescing_concatenates(pieces in prop::collection::vec((0..4_u8, text()), 0..24)) {
        let (mut encoder, source) = (FrameEncoder::new(&42.into()), Source { agent_id: "a".into(), ..Source::default() });
        let frames: Vec<_> = pieces.iter().zip(1..).map(|((kind, text), sequence)| {
            let (source, word) = match kind {
                0 | 1 => (None, EventKind::LLM_STREAM),
                2 => (Some(&source), EventKind::LLM_STREAM),
                _ => (None, EventKind::new(Category::Llm, Action::Reasoning)),
            };
            let body = EncodedBody::new(source, word, &content(text)).unwrap();
            Arc::new(encoder.encode(1000 * sequence, sequence, &body))
        }).collect();
        // The model: of events, each joined to the one before if it can be.
        let mut expected: Vec<Event> = Vec::new();
        for frame in &frames {
            let mut event = frame.event().unwrap();
            let joins = |last: &mut Event| event.event == EventKind::LLM_STREAM && (&last.event, &last.source) == (&event.event, &event.source);
            if let Some(last) = expected.pop_if(joins) {
                let texts = [&last, &event].map(|event| event.data["content"].as_str().unwrap().to_owned());
                event.data["content"] = texts.concat().into();
            }
            expected.push(event);
        }
        let joined = coalesce(&frames);
        let events: Vec<_> = joined.iter().map(|frame| frame.event().unwrap()).collect();
        prop_assert_eq!(&events, &expected);
        for (frame, event) in joined.iter().zip(&expected) {
            prop_assert_eq!((frame.id(), frame.kind()), (event.id, &event.event));
            let at_once = frame_of(&mut encoder, event);
            prop_assert_eq!(frame.sse(), at_once.sse());
        }
    }

    /// Any bytes given as JSON make a frame, whose event is an error or an event; nothing panics.
    #[test]
    fn what_is_not_json_is_an_error(source in any::<Vec<u8>>(), data in prop::collection::vec(any::<u8>(), 0..40)) {
        let frame = Arc::new(FrameEncoder::new(&1.into()).encode(1, 1, &EncodedBody::from_json(EventKind::LLM_STREAM, &source, &data)));
        let _ = frame.event();
        prop_assert_eq!(coalesce(&[Arc::clone(&frame), frame]).len(), 2);
    }
}

/// A typed payload is an object of its own keys, and comes back from it.
#[test]
fn payloads_have_shapes() {
    let id = EventId { ms: 5, sequence: 6 };
    let shapes = [
        (content("a"), json!({"content": "a"})),
        (
            Payload::ToolCall {
                tool_name: "t".into(),
                tool_count: 2,
            },
            json!({"tool_name": "t", "tool_count": 2}),
        ),
        (
            Payload::ToolResult {
                tool_use_id: "u".into(),
                status: "success".into(),
                content: json!([1]),
            },
            json!({"tool_use_id": "u", "status": "success", "content": [1]}),
        ),
        (
            Payload::Message {
                message: "m".into(),
            },
            json!({"message": "m"}),
        ),
        (
            Payload::Output {
                stream: "stdout".into(),
                text: "x".into(),
            },
            json!({"stream": "stdout", "text": "x"}),
        ),
        (
            Payload::Gap {
                requested: "1-1".into(),
                oldest: Some(id),
                lost: 3,
            },
            json!({"requested": "1-1", "oldest": "5-6", "lost": 3}),
        ),
        (
            Payload::Failure {
                error: "e".into(),
                details: None,
            },
            json!({"error": "e", "details": null}),
        ),
        (
            Payload::Cancelled {
                kind: "user".into(),
                reason: "r".into(),
            },
            json!({"kind": "user", "reason": "r"}),
        ),
        (Payload::Other(json!({"content": 1})), json!({"content": 1})),
        (Payload::Other(json!([])), json!([])),
        (Payload::Other(Value::Null), Value::Null),
    ];
    for (payload, data) in shapes {
        assert_eq!(serde_json::to_value(&payload).unwrap(), data);
        assert_eq!(Payload::from(&data), payload);
    }
}

/// A gap says what was asked and lost, has no id line, and lies between what was seen and what comes.
#[test]
fn a_gap_leaves_the_readers_id_alone() {
    let (mut encoder, oldest) = (
        FrameEncoder::new(&"r".into()),
        EventId {
            ms: 2000,
            sequence: 9,
        },
    );
    let seen = token(&mut encoder, 3, None, "seen");
    let gap = encoder.gap(5000, "1003-3\r\n\"", Some(oldest), 5);
    assert!(gap.sse().starts_with(b"data: {\"id\":\"2000-8\",\"run_id\":\"r\",\"timestamp\":\"1970-01-01T00:00:05.000Z\",\"sequence\":8,"));
    assert_eq!(gap.sse(), [b"data: ", gap.json(), b"\n\n"].concat());
    assert!(seen.id() < gap.id() && gap.id() < oldest);
    assert_eq!(*gap.kind(), EventKind::STREAM_GAP);
    let expected = Payload::Gap {
        requested: "1003-3\r\n\"".into(),
        oldest: Some(oldest),
        lost: 5,
    };
    assert_eq!(gap.event().unwrap().payload(), expected);

    let mut parser = Parser::new();
    let messages = parser.push(&[seen.sse(), gap.sse()].concat());
    assert_eq!((messages.len(), parser.last_event_id()), (2, "1003-3"));

    let nothing_left = encoder.gap(5000, "start", None, 0);
    assert_eq!(
        nothing_left.id(),
        EventId {
            ms: 5000,
            sequence: 0
        }
    );
    assert_eq!(
        nothing_left.data(),
        br#"{"requested":"start","oldest":null,"lost":0}"#
    );
}

/// Only a token that is a text and nothing else is joined; a lone frame is passed on, not copied.
#[test]
fn other_data_is_not_joined() {
    let mut encoder = FrameEncoder::new(&1.into());
    let mut frame = |sequence, data: &[u8]| {
        let body = EncodedBody::from_json(EventKind::LLM_STREAM, b"null", data);
        Arc::new(encoder.encode(0, sequence, &body))
    };
    let frames = [
        frame(1, br#"{"content":"a","more":1}"#),
        frame(2, br#"{"content":"b"}"#),
        frame(3, br#"{"content":1}"#),
        frame(4, br#"{ "content" : "\ud83d" }"#),
        frame(5, br#"{"content":"\ude00"}"#),
        frame(6, b"[]"),
    ];
    let joined = coalesce(&frames);
    let ids: Vec<_> = joined.iter().map(|frame| frame.sequence()).collect();
    assert_eq!(ids, [1, 2, 3, 5, 6]);
    assert!(Arc::ptr_eq(&joined[0], &frames[0]) && Arc::ptr_eq(&joined[4], &frames[5]));
    assert_eq!(joined[3].event().unwrap().payload(), content("😀"));
    assert!(coalesce(&[]).is_empty());
}

/// Ten megabytes in one event come back, and so they do through the wire.
#[test]
fn large_payloads_come_back() {
    let text = "a line, \"quoted\"\r\n\0\u{2028}😀".repeat(10_000_000 / 27);
    let mut encoder = FrameEncoder::new(&1.into());
    let frame = token(&mut encoder, 1, None, &text);
    assert!(frame.len() > 10_000_000);
    let mut parser = Parser::new();
    let messages: Vec<_> = frame
        .sse()
        .chunks(4093)
        .flat_map(|chunk| parser.push(chunk))
        .collect();
    assert_eq!(messages.len(), 1);
    let event = Event::from_json(messages[0].data.as_bytes()).unwrap();
    assert_eq!(event.payload(), content(&text));
}

/// Data nested deeper than JSON readers go is sent whole, and is an error only to who reads it back here.
#[test]
fn deep_data_is_an_error_value() {
    let nested = |depth| ["[".repeat(depth), "]".repeat(depth)].concat();
    let frame_of = |depth| {
        let body = EncodedBody::from_json(EventKind::STARTED, b"null", nested(depth).as_bytes());
        FrameEncoder::new(&1.into()).encode(0, 1, &body)
    };
    assert!(frame_of(120).event().is_ok());
    assert!(frame_of(100_000).event().is_err());
}

/// What cannot be JSON is refused when the body is made.
#[test]
fn data_must_be_json() {
    let keys = std::collections::BTreeMap::from([((1, 2), 3)]);
    assert!(EncodedBody::new(None, EventKind::STARTED, &keys).is_err());
    let nan = EncodedBody::new(None, EventKind::STARTED, &f64::NAN).unwrap();
    assert_eq!(
        FrameEncoder::new(&1.into()).encode(0, 1, &nan).data(),
        b"null"
    );
}
