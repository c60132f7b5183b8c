//! What a run says: the envelope, the words and the typed payloads of an event, and their JSON.

use super::json;
use super::timestamp::Timestamp;
use crate::run_id::RunId;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;
use std::str::FromStr;

/// The name of an event within its run, written `<ms>-<sequence>`.
///
/// Ids are ordered as pairs of numbers, not as texts: `999-10` is less than `1000-9`. Within a run both numbers
/// never go back and the sequence always grows.
///
/// ```
/// use llm_callback::EventId;
///
/// let id: EventId = "1764504000123-7".parse()?;
/// assert_eq!(id, EventId { ms: 1_764_504_000_123, sequence: 7 });
/// assert_eq!(id.timestamp(), "2025-11-30T12:00:00.123Z");
/// # Ok::<(), llm_callback::InvalidEventId>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EventId {
    /// When: milliseconds since 1970, UTC.
    pub ms: u64,
    /// Which: the place of the event in its run.
    pub sequence: u64,
}

impl EventId {
    /// `ms` as RFC 3339 text: UTC, milliseconds, `Z`. What lies after the year 9999 is written as its last moment.
    pub fn timestamp(self) -> String {
        Timestamp::new(self.ms).to_string()
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.sequence)
    }
}

impl FromStr for EventId {
    type Err = InvalidEventId;

    /// Digits, one `-`, digits: no sign, no space, nothing that a `u64` cannot hold. Leading zeros mean nothing.
    fn from_str(text: &str) -> Result<Self, InvalidEventId> {
        let number = |digits: &str| {
            // `u64::from_str` takes a sign.
            let only_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
            only_digits.then(|| digits.parse().ok()).flatten()
        };
        text.split_once('-')
            .and_then(|(ms, sequence)| {
                Some(Self {
                    ms: number(ms)?,
                    sequence: number(sequence)?,
                })
            })
            .ok_or_else(|| InvalidEventId(text.into()))
    }
}

impl TryFrom<String> for EventId {
    type Error = InvalidEventId;

    fn try_from(text: String) -> Result<Self, InvalidEventId> {
        text.parse()
    }
}

impl From<EventId> for String {
    fn from(id: EventId) -> Self {
        id.to_string()
    }
}

/// This text, given back, is not an [`EventId`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidEventId(pub String);

impl fmt::Display for InvalidEventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not an event id <ms>-<sequence>: {:?}", self.0)
    }
}

impl std::error::Error for InvalidEventId {}

/// This text, given back, is no [`Category`], or no [`Action`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownWord(pub String);

impl fmt::Display for UnknownWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no word of an event: {:?}", self.0)
    }
}

impl std::error::Error for UnknownWord {}

/// An enum of plain words and both ways between it and its texts.
macro_rules! words {
    (
        $(#[$doc:meta])*
        $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $text)] $variant,)*
        }

        impl $name {
            /// All of them, in the order of their declaration.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The word as it stands in JSON.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownWord;

            fn from_str(text: &str) -> Result<Self, UnknownWord> {
                match text {
                    $($text => Ok(Self::$variant),)*
                    _ => Err(UnknownWord(text.into())),
                }
            }
        }
    };
}

words! {
    /// What an event is about.
    Category {
        /// The life of the run itself.
        Lifecycle = "lifecycle",
        /// What the model says and does.
        Llm = "llm",
        /// Who is sent to work.
        Dispatch = "dispatch",
        /// Warnings, errors and output around the run.
        System = "system",
        /// An agent of the run.
        Agent = "agent",
        /// The stream of events itself: only for [`Word::STREAM_GAP`].
        Stream = "stream",
    }
}

words! {
    /// What happened. Which actions belong to which category is a convention, not enforced.
    Action {
        /// It began.
        Started = "started",
        /// It ended well.
        Completed = "completed",
        /// It ended with an error.
        Failed = "failed",
        /// It was stopped.
        Cancelled = "cancelled",
        /// A piece of text.
        Stream = "stream",
        /// A piece of reasoning.
        Reasoning = "reasoning",
        /// A tool is called.
        ToolCall = "tool_call",
        /// A tool has answered.
        ToolResult = "tool_result",
        /// A team is sent to work.
        Team = "team",
        /// A worker is sent to work.
        Worker = "worker",
        /// Who there is.
        Topology = "topology",
        /// Something to know.
        Warning = "warning",
        /// Something that went wrong.
        Error = "error",
        /// A line written to stdout or stderr.
        Output = "output",
        /// Events that the reader has missed.
        Gap = "gap",
    }
}

/// What kind of event this is: a category and an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Word {
    /// What it is about.
    pub category: Category,
    /// What happened.
    pub action: Action,
}

impl Word {
    /// The run began.
    pub const STARTED: Self = Self::new(Category::Lifecycle, Action::Started);
    /// The run ended well: terminal.
    pub const COMPLETED: Self = Self::new(Category::Lifecycle, Action::Completed);
    /// The run ended with an error: terminal.
    pub const FAILED: Self = Self::new(Category::Lifecycle, Action::Failed);
    /// The run was stopped: terminal.
    pub const CANCELLED: Self = Self::new(Category::Lifecycle, Action::Cancelled);
    /// A token of the model's answer.
    pub const LLM_STREAM: Self = Self::new(Category::Llm, Action::Stream);
    /// Events that this reader has missed.
    pub const STREAM_GAP: Self = Self::new(Category::Stream, Action::Gap);

    /// This category with this action.
    pub const fn new(category: Category, action: Action) -> Self {
        Self { category, action }
    }

    /// Whether it tells of the run's own life. The first and the last event of a run do, and are never dropped.
    pub const fn is_lifecycle(self) -> bool {
        matches!(self.category, Category::Lifecycle)
    }

    /// Whether it ends the run: `lifecycle.completed`, `failed` or `cancelled`.
    pub const fn is_terminal(self) -> bool {
        self.is_lifecycle()
            && matches!(
                self.action,
                Action::Completed | Action::Failed | Action::Cancelled
            )
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.category, self.action)
    }
}

/// Who speaks.
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
        /// What the reader asked for, in its own words.
        requested: String,
        /// The oldest event that there is.
        oldest: Option<EventId>,
        /// How many events it has missed.
        lost: u64,
    },
    /// Of `lifecycle.failed`.
    Failure {
        /// What went wrong.
        error: String,
        /// More of it.
        details: Option<String>,
    },
    /// Of `lifecycle.cancelled`.
    Cancelled {
        /// Who wanted it: `user`, `deadline`, `parent`, `shutdown`, `disconnect`.
        kind: String,
        /// Why, in words.
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
/// use llm_callback::{Event, Payload, Word};
///
/// let event = Event::from_json(
///     br#"{"id":"1764504000123-7","run_id":42,"timestamp":"2025-11-30T12:00:00.123Z","sequence":7,"source":null,
///          "event":{"category":"llm","action":"stream"},"data":{"content":"Hello"}}"#,
/// )?;
/// assert_eq!((event.run_id.clone(), event.event), (42.into(), Word::LLM_STREAM));
/// assert_eq!(event.payload(), Payload::Content { content: "Hello".into() });
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Its name in the run; of a gap, a place in the run: see [`Head::gap`](crate::Head::gap).
    pub id: EventId,
    /// Whose event it is.
    pub run_id: RunId,
    /// When: UTC, RFC 3339 with milliseconds and `Z`.
    pub timestamp: String,
    /// The sequence of the id.
    pub sequence: u64,
    /// Who speaks; the run itself, if nobody.
    pub source: Option<Source>,
    /// What kind of event it is.
    pub event: Word,
    /// What it says; [`payload`](Self::payload) reads it by its shape.
    pub data: Value,
}

impl Event {
    /// Reads the JSON of one event, as [`Frame::json`](crate::Frame::json) and each SSE message's data have it.
    ///
    /// Rust's strings cannot hold the lone surrogates that Python's can: each becomes U+FFFD, so that one odd
    /// character does not cost the event. An integer beyond 64 bits becomes the nearest float.
    ///
    /// # Errors
    ///
    /// Anything else than one event, and data nested deeper than `serde_json` reads (some 120 levels).
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// What is not digits, one dash, digits, each within 64 bits, is refused and given back.
    #[test]
    fn only_ids_are_ids() {
        let wrong = [
            "",
            "-",
            "1",
            "1-",
            "-1",
            "+1-1",
            "1-+1",
            "1--1",
            "-1-1",
            " 1-1",
            "1-1 ",
            "1-1\n",
            "1_0-1",
            "1-1-1",
            "0x1-1",
            "\u{661}-1",
            "18446744073709551616-0",
            "0-18446744073709551616",
            "$",
        ];
        for text in wrong {
            assert_eq!(text.parse::<EventId>(), Err(InvalidEventId(text.into())));
        }
        assert_eq!("007-0".parse(), Ok(EventId { ms: 7, sequence: 0 }));
    }

    /// Each word comes back from its text, and from its JSON, which is that text; others are refused.
    #[test]
    fn words_come_back() {
        for word in Category::ALL {
            assert_eq!(word.to_string().parse(), Ok(*word));
            assert_eq!(serde_json::to_value(word).unwrap(), word.as_str());
        }
        for word in Action::ALL {
            assert_eq!(word.to_string().parse(), Ok(*word));
            assert_eq!(serde_json::to_value(word).unwrap(), word.as_str());
        }
        assert_eq!("Llm".parse::<Category>(), Err(UnknownWord("Llm".into())));
        assert_eq!(Action::ALL.len(), 15);
    }

    /// Three words end a run; the same actions of another category do not.
    #[test]
    fn three_words_are_terminal() {
        let all = Category::ALL.iter().flat_map(|category| {
            let of_category = |action: &Action| Word::new(*category, *action);
            Action::ALL.iter().map(of_category)
        });
        let terminal: Vec<_> = all.filter(|word| word.is_terminal()).collect();
        assert_eq!(terminal, [Word::COMPLETED, Word::FAILED, Word::CANCELLED]);
        assert!(Word::STARTED.is_lifecycle() && !Word::LLM_STREAM.is_lifecycle());
        assert_eq!(Word::STREAM_GAP.to_string(), "stream.gap");
    }
}
