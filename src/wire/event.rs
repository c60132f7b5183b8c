//! An event in its typed form: the envelope, the source and the data.

use super::id::EventId;
use super::json;
use super::kind::EventKind;
use crate::run_id::RunId;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The agent that an event comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Source {
    /// The agent's id.
    pub agent_id: String,
    /// Its place in the hierarchy: `global_supervisor`, `team_supervisor`, `worker`.
    pub agent_type: String,
    /// Its name for people.
    pub agent_name: String,
    /// The team that it belongs to.
    pub team_name: Option<String>,
}

/// The data of an event by its shape: an object of exactly these keys, or anything else.
///
/// `Option`s may be absent or `null`; they are written as `null`.
///
/// ```
/// use llm_callback::Payload;
/// use serde_json::json;
///
/// let content = Payload::Content { content: "Hello".into() };
/// assert_eq!(Payload::from(&json!({"content": "Hello"})), content);
/// let more = json!({"content": "Hello", "more": 1});
/// assert_eq!(Payload::from(&more), Payload::Other(more));
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Payload {
    /// Of `llm.stream` and `llm.reasoning`.
    Content {
        /// The piece of text.
        content: String,
    },
    /// Of `llm.tool_call`.
    ToolCall {
        /// Which tool.
        tool_name: String,
        /// The number of this call among its handler's, from 1.
        tool_count: u64,
    },
    /// Of `llm.tool_result`.
    ToolResult {
        /// Which call this answers.
        tool_use_id: String,
        /// `success` or `error`.
        status: String,
        /// What the tool gave back.
        content: Value,
    },
    /// Of `llm.completed`, `system.warning`, `system.error`.
    Message {
        /// The message.
        message: String,
    },
    /// Of `system.output`: a line.
    Output {
        /// `stdout` or `stderr`.
        stream: String,
        /// The line.
        text: String,
    },
    /// Of `stream.gap`.
    Gap {
        /// The start that the reader asked for, as it gave it.
        requested: String,
        /// The oldest event that is held.
        oldest: Option<EventId>,
        /// How many events the reader has missed.
        lost: u64,
    },
    /// Of `lifecycle.failed`.
    Failure {
        /// What went wrong.
        error: String,
        /// Details of it.
        details: Option<String>,
    },
    /// Of `lifecycle.cancelled`.
    Cancelled {
        /// Who asked: `user`, `deadline`, `parent`, `shutdown`, `disconnect`.
        kind: String,
        /// The message of the cancel.
        reason: String,
    },
    /// Any other JSON.
    Other(Value),
}

impl From<&Value> for Payload {
    fn from(data: &Value) -> Self {
        Self::deserialize(data).unwrap_or_else(|_| Self::Other(data.clone()))
    }
}

/// An event with its envelope. The order of the fields is that of the keys in JSON.
///
/// ```
/// use llm_callback::{Event, Payload, EventKind};
///
/// let event = Event::from_json(
///     br#"{"id":"1764504000123-7","run_id":42,"timestamp":"2025-11-30T12:00:00.123Z","sequence":7,"source":null,
///          "event":{"category":"llm","action":"stream"},"data":{"content":"Hello"}}"#,
/// )?;
/// assert_eq!((&event.run_id, &event.event), (&42.into(), &EventKind::LLM_STREAM));
/// assert_eq!(event.payload(), Payload::Content { content: "Hello".into() });
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The event's id in its run. A gap's id is a place in the run: see
    /// [`FrameEncoder::gap`](crate::FrameEncoder::gap).
    pub id: EventId,
    /// The id of the run.
    pub run_id: RunId,
    /// The time: UTC, RFC 3339 with milliseconds and `Z`.
    pub timestamp: String,
    /// The sequence of the id.
    pub sequence: u64,
    /// The agent that the event comes from; None for the run itself.
    pub source: Option<Source>,
    /// What kind of event it is.
    pub event: EventKind,
    /// The data; [`payload`](Self::payload) gives them by their shape.
    pub data: Value,
}

impl Event {
    /// Reads the JSON of one event, as [`Frame::json`](crate::Frame::json) and each SSE message's data have it.
    ///
    /// Python's strings may have lone surrogates, and Rust's cannot: each becomes U+FFFD, so that one odd character
    /// does not cost the event. An integer beyond 64 bits becomes the nearest float.
    ///
    /// # Errors
    ///
    /// If the text is not one event, or its data are nested deeper than `serde_json` reads (some 120 levels).
    pub fn from_json(text: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(text).or_else(|error| {
            let mut text = text.to_vec();
            if json::replace_lone_surrogates(&mut text) {
                serde_json::from_slice(&text)
            } else {
                Err(error)
            }
        })
    }

    /// The data by its shape.
    pub fn payload(&self) -> Payload {
        Payload::from(&self.data)
    }
}
