//! What kind of event it is: a category and an action, such as `llm.stream`.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser::SerializeStruct};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A text that names no built-in [`Category`], or no built-in [`Action`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownWord(pub String);

impl fmt::Display for UnknownWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no built-in word of an event: {:?}", self.0)
    }
}

impl std::error::Error for UnknownWord {}

/// An enum of words, with a conversion from each to its text, and back.
macro_rules! words {
    (
        $(#[$doc:meta])*
        $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[non_exhaustive]
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
    /// What an event of a built-in kind is about.
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
        /// The stream of events itself: only for [`EventKind::STREAM_GAP`].
        Stream = "stream",
    }
}

words! {
    /// What happened. Every built-in action may stand with every built-in category.
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

/// What kind of event it is: a category and an action.
///
/// The kinds of the library are constants. A host's own kind is one dotted text, whose category ends at the first dot.
/// Cloning a kind is cheap. Two kinds are equal if their texts are.
///
/// ```
/// use llm_callback::EventKind;
///
/// let kind: EventKind = "billing.charged".parse()?;
/// assert_eq!((kind.category(), kind.action()), ("billing", "charged"));
/// assert_eq!("llm.stream".parse(), Ok(EventKind::LLM_STREAM));
/// assert!("lifecycle.paused".parse::<EventKind>().is_err());
/// # Ok::<(), llm_callback::InvalidEventKind>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct EventKind(Repr);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Repr {
    BuiltIn(Category, Action),
    /// The dotted text of a kind that is not built in.
    Own(Arc<str>),
}

/// The longest dotted text of a host's own kind, in bytes.
const MAX_LEN: usize = 128;

/// The categories in which only the library has kinds.
const RESERVED: [Category; 2] = [Category::Lifecycle, Category::Stream];

impl EventKind {
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
    /// A piece of the model's reasoning.
    pub const LLM_REASONING: Self = Self::new(Category::Llm, Action::Reasoning);
    /// The model calls a tool.
    pub const LLM_TOOL_CALL: Self = Self::new(Category::Llm, Action::ToolCall);
    /// A tool has answered.
    pub const LLM_TOOL_RESULT: Self = Self::new(Category::Llm, Action::ToolResult);
    /// The model has finished its answer.
    pub const LLM_COMPLETED: Self = Self::new(Category::Llm, Action::Completed);
    /// The reader has missed events.
    pub const STREAM_GAP: Self = Self::new(Category::Stream, Action::Gap);

    /// The built-in kind of this category with this action.
    pub const fn new(category: Category, action: Action) -> Self {
        Self(Repr::BuiltIn(category, action))
    }

    /// The kind of these two texts; the action may have dots.
    ///
    /// # Errors
    ///
    /// [`InvalidEventKind`] if the texts are not the two parts of a kind.
    pub fn from_parts(category: &str, action: &str) -> Result<Self, InvalidEventKind> {
        if let (Ok(category), Ok(action)) = (category.parse(), action.parse()) {
            return Ok(Self::new(category, action));
        }
        let text = || format!("{category}.{action}");
        if category.contains('.') || !is_word(category) || !action.split('.').all(is_word) {
            return Err(InvalidEventKind::Malformed(text()));
        }
        if category.len() + 1 + action.len() > MAX_LEN {
            return Err(InvalidEventKind::TooLong(text()));
        }
        if RESERVED
            .iter()
            .any(|reserved| reserved.as_str() == category)
        {
            return Err(InvalidEventKind::Reserved(text()));
        }
        Ok(Self(Repr::Own(text().into())))
    }

    /// What the event is about: the text before the first dot.
    pub fn category(&self) -> &str {
        match &self.0 {
            Repr::BuiltIn(category, _) => category.as_str(),
            Repr::Own(text) => split(text).0,
        }
    }

    /// What happened: the text behind the first dot.
    pub fn action(&self) -> &str {
        match &self.0 {
            Repr::BuiltIn(_, action) => action.as_str(),
            Repr::Own(text) => split(text).1,
        }
    }

    /// Whether the event tells of the run's own life. The first and the last event of a run do, and are never dropped.
    pub const fn is_lifecycle(&self) -> bool {
        matches!(self.0, Repr::BuiltIn(Category::Lifecycle, _))
    }

    /// Whether the event ends the run: `lifecycle.completed`, `lifecycle.failed` or `lifecycle.cancelled`.
    pub const fn is_terminal(&self) -> bool {
        matches!(
            self.0,
            Repr::BuiltIn(
                Category::Lifecycle,
                Action::Completed | Action::Failed | Action::Cancelled
            )
        )
    }
}

/// Whether the text is a word of a kind: not empty, and of letters, digits, `_` and `-` of ASCII.
fn is_word(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    !text.is_empty() && text.bytes().all(is_allowed)
}

/// The category and the action of a dotted text.
fn split(text: &str) -> (&str, &str) {
    text.split_once('.').unwrap_or((text, ""))
}

impl FromStr for EventKind {
    type Err = InvalidEventKind;

    fn from_str(text: &str) -> Result<Self, InvalidEventKind> {
        let (category, action) = text
            .split_once('.')
            .ok_or_else(|| InvalidEventKind::Malformed(text.into()))?;
        Self::from_parts(category, action)
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.category(), self.action())
    }
}

impl fmt::Debug for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EventKind({self})")
    }
}

impl Serialize for EventKind {
    /// As `{"category": …, "action": …}`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut kind = serializer.serialize_struct("EventKind", 2)?;
        kind.serialize_field("category", self.category())?;
        kind.serialize_field("action", self.action())?;
        kind.end()
    }
}

impl<'de> Deserialize<'de> for EventKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename = "EventKind")]
        struct Parts<'a> {
            #[serde(borrow)]
            category: Cow<'a, str>,
            #[serde(borrow)]
            action: Cow<'a, str>,
        }

        let Parts { category, action } = Parts::deserialize(deserializer)?;
        Self::from_parts(&category, &action).map_err(de::Error::custom)
    }
}

/// A text that is no [`EventKind`], given back.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidEventKind {
    /// The text is not two or more words with dots between them.
    Malformed(String),
    /// The text is longer than 128 bytes.
    TooLong(String),
    /// The text begins with `lifecycle.` or `stream.`, and its action is none of the library's.
    Reserved(String),
}

impl fmt::Display for InvalidEventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(text) => write!(
                f,
                "not an event kind: {text:?}: write words of ASCII letters, digits, \"_\" and \"-\" with dots between them, \
                 such as \"billing.charged\""
            ),
            Self::TooLong(text) => write!(
                f,
                "the event kind has {} bytes, and {MAX_LEN} are allowed: {text:?}",
                text.len()
            ),
            Self::Reserved(text) => write!(
                f,
                "the event kind {text:?} is reserved: \"lifecycle.\" and \"stream.\" are the library's own categories"
            ),
        }
    }
}

impl std::error::Error for InvalidEventKind {}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

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

    /// Three kinds of events end a run; the same actions of another category do not.
    #[test]
    fn three_kinds_are_terminal() {
        let all = Category::ALL.iter().flat_map(|category| {
            let of_category = |action: &Action| EventKind::new(*category, *action);
            Action::ALL.iter().map(of_category)
        });
        let terminal: Vec<_> = all.filter(EventKind::is_terminal).collect();
        assert_eq!(
            terminal,
            [
                EventKind::COMPLETED,
                EventKind::FAILED,
                EventKind::CANCELLED
            ]
        );
        assert!(EventKind::STARTED.is_lifecycle() && !EventKind::LLM_STREAM.is_lifecycle());
        assert_eq!(EventKind::STREAM_GAP.to_string(), "stream.gap");
    }

    /// A host's own kind keeps its text, through JSON too; its category ends at the first dot.
    #[test]
    fn own_kinds_come_back() {
        for (text, category, action) in [
            ("billing.charged", "billing", "charged"),
            ("llm.log-probs", "llm", "log-probs"),
            ("A.b_2.c", "A", "b_2.c"),
            ("lifecycles.started", "lifecycles", "started"),
        ] {
            let kind: EventKind = text.parse().unwrap();
            assert_eq!((kind.category(), kind.action()), (category, action));
            assert_eq!(kind.to_string(), text);
            assert!(!kind.is_lifecycle() && !kind.is_terminal());
            let json = serde_json::to_string(&kind).unwrap();
            assert_eq!(serde_json::from_str::<EventKind>(&json).unwrap(), kind);
        }
        assert_eq!("llm.stream".parse(), Ok(EventKind::LLM_STREAM));
    }

    /// What is no kind, is too long, or is reserved is refused, with its text.
    #[test]
    fn other_texts_are_no_kinds() {
        let malformed = [
            "", "llm", ".", "a.", ".a", "a..b", "a b.c", "a.b\n", "a.\u{e4}", "a.\"b\"",
        ];
        for text in malformed {
            let error = InvalidEventKind::Malformed(text.into());
            assert_eq!(text.parse::<EventKind>(), Err(error));
        }
        assert!(EventKind::from_parts("a.b", "c").is_err());
        for text in ["lifecycle.paused", "stream.reset", "lifecycle.started.late"] {
            let error = InvalidEventKind::Reserved(text.into());
            assert_eq!(text.parse::<EventKind>(), Err(error));
        }
        let longest = format!("a.{}", "b".repeat(MAX_LEN - 2));
        assert!(longest.parse::<EventKind>().is_ok());
        let longer = longest + "b";
        assert_eq!(
            longer.parse::<EventKind>(),
            Err(InvalidEventKind::TooLong(longer.clone()))
        );
    }
}
