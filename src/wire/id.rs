//! The id of an event.

use super::timestamp::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The id of an event within its run, written `<ms>-<sequence>`.
///
/// Ids are ordered as pairs of numbers, not as texts: `999-10` is less than `1000-9`. Within a run neither number goes
/// back, and the sequence always grows.
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
    /// The time: milliseconds since 1970, UTC.
    pub ms: u64,
    /// The place of the event in its run, from 1.
    pub sequence: u64,
}

impl EventId {
    /// The time as RFC 3339 text: UTC, milliseconds, `Z`. A time after the year 9999 is written as that year's last
    /// moment.
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

    /// Reads digits, one `-`, digits: no sign, no space, no number beyond a `u64`. Leading zeros are allowed.
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

/// A text that is no [`EventId`], given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidEventId(pub String);

impl fmt::Display for InvalidEventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not an event id <ms>-<sequence>: {:?}", self.0)
    }
}

impl std::error::Error for InvalidEventId {}

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
}
