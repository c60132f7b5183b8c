//! What a run is to Python: opening, emitting, reading, cancelling and ending it.

pub(crate) mod append;
pub(crate) mod emit;
pub(crate) mod ending;
pub(crate) mod kind;
pub(crate) mod log_file;
pub(crate) mod module;
pub(crate) mod read_options;
pub(crate) mod run;
pub(crate) mod run_callback;
pub(crate) mod run_handler;
pub(crate) mod shutdown;
pub(crate) mod sink;
pub(crate) mod sse_stream;
pub(crate) mod subscription;
pub(crate) mod token;
