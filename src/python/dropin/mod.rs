//! What the original module had: the handler, the functions of the registry, the current run.

pub(crate) mod context;
pub(crate) mod current;
pub(crate) mod dispatch;
pub(crate) mod handler;
pub(crate) mod registry;
pub(crate) mod route;
pub(crate) mod slot;
