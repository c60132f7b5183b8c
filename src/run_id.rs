//! The name of a run: an integer or a string.

use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

/// The name of a run, chosen by the host.
///
/// `RunId::from(1)` and `RunId::from("1")` are two different runs. In JSON the one is a number and the other a string.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RunId {
    /// A number, as a database hands out.
    Int(i64),
    /// A text, such as a UUID.
    Str(Box<str>),
}

impl From<i64> for RunId {
    fn from(id: i64) -> Self {
        Self::Int(id)
    }
}

impl From<i32> for RunId {
    fn from(id: i32) -> Self {
        Self::Int(id.into())
    }
}

impl From<u32> for RunId {
    fn from(id: u32) -> Self {
        Self::Int(id.into())
    }
}

impl From<&str> for RunId {
    fn from(id: &str) -> Self {
        Self::Str(id.into())
    }
}

impl From<String> for RunId {
    fn from(id: String) -> Self {
        Self::Str(id.into())
    }
}

impl From<Box<str>> for RunId {
    fn from(id: Box<str>) -> Self {
        Self::Str(id)
    }
}

impl FromStr for RunId {
    type Err = Infallible;

    /// The run of this text, also where the text is that of a number.
    fn from_str(id: &str) -> Result<Self, Infallible> {
        Ok(id.into())
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(id) => id.fmt(f),
            Self::Str(id) => id.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A number and the text of the same number name two runs, though they print alike.
    #[test]
    fn kinds_are_apart() {
        assert_ne!(RunId::from(1_i64), RunId::from("1"));
        assert_eq!("1".parse(), Ok(RunId::from("1")));
        assert_eq!(RunId::from(1_u32), RunId::from(1_i64));
        assert_eq!(
            RunId::from(1_i32).to_string(),
            RunId::from(String::from("1")).to_string()
        );
    }
}
