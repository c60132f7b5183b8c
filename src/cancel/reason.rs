//! Why a token is cancelled: who asked, with which message, and when.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::SystemTime;

/// Who or what asked for a cancellation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum CancelKind {
    /// A user, or the host in a user's name.
    User,
    /// The token's deadline passed.
    Deadline,
    /// A token above was cancelled, of whatever kind that was. The message is that cancel's.
    Parent,
    /// The process, or the table of runs, shuts down.
    Shutdown,
    /// The client that the work was for has gone.
    Disconnect,
}

impl CancelKind {
    const ALL: [Self; 5] = [
        Self::User,
        Self::Deadline,
        Self::Parent,
        Self::Shutdown,
        Self::Disconnect,
    ];

    /// The kind as events have it: `user`, `deadline`, `parent`, `shutdown`, `disconnect`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Deadline => "deadline",
            Self::Parent => "parent",
            Self::Shutdown => "shutdown",
            Self::Disconnect => "disconnect",
        }
    }
}

impl fmt::Display for CancelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for CancelKind {
    type Err = UnknownCancelKind;

    fn from_str(text: &str) -> Result<Self, UnknownCancelKind> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| UnknownCancelKind(text.into()))
    }
}

/// A text that names no [`CancelKind`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownCancelKind(pub String);

impl fmt::Display for UnknownCancelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a kind of cancellation", self.0)
    }
}

impl std::error::Error for UnknownCancelKind {}

/// Why a token is cancelled: what the first [`cancel`](crate::CancelToken::cancel) that reached it said.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CancelReason {
    /// Who asked; [`CancelKind::Parent`] if a token above was cancelled.
    pub kind: CancelKind,
    /// The message of the cancel; may be empty.
    pub message: Arc<str>,
    /// The time of the cancel by the system's clock; the same for all tokens that one cancel reached.
    pub requested_at: SystemTime,
}

impl CancelReason {
    pub(crate) fn now(kind: CancelKind, message: Arc<str>) -> Self {
        Self {
            kind,
            message,
            requested_at: SystemTime::now(),
        }
    }

    pub(crate) fn deadline() -> Self {
        Self::now(CancelKind::Deadline, "the deadline passed".into())
    }

    /// The reason that the tokens below get.
    pub(crate) fn for_below(&self) -> Self {
        Self {
            kind: CancelKind::Parent,
            ..self.clone()
        }
    }
}

impl fmt::Display for CancelReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cancelled ({})", self.kind)?;
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for CancelReason {}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Kinds are spelt as events spell them, and read back; nothing else is read.
    #[test]
    fn kinds_have_names() {
        for kind in CancelKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert_eq!(format!("{:>6}", CancelKind::User), "  user");
        let unknown = "User".parse::<CancelKind>().unwrap_err();
        assert_eq!(
            unknown.to_string(),
            "\"User\" is not a kind of cancellation"
        );
    }
}
