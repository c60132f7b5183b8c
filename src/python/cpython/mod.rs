//! What CPython asks of an extension: attachment, exits, forks, signals, and values in and out.

pub(crate) mod arguments;
pub(crate) mod attached;
pub(crate) mod encode;
pub(crate) mod errors;
pub(crate) mod exit;
pub(crate) mod interpreter;
pub(crate) mod loaded;
pub(crate) mod names;
pub(crate) mod process;
pub(crate) mod wait;
