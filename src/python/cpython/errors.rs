//! The classes of `llm_callback.exceptions`, found at import: at the interpreter's exit, imports fail.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

macro_rules! errors {
    ($($function:ident $class:literal)*) => {
        $(
            #[doc = concat!("`", $class, "`, with this message.")]
            pub(crate) fn $function(py: Python<'_>, message: impl AsRef<str>) -> PyErr {
                static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
                let class = CLASS.import(py, "llm_callback.exceptions", $class);
                let error = class.and_then(|class| class.call1((message.as_ref(),)));
                error.map_or_else(|error| error, PyErr::from_value)
            }
        )*

        /// Finds the classes.
        pub(crate) fn prepare(py: Python<'_>) {
            $(drop($function(py, ""));)*
        }
    };
}

errors! {
    foreign_process "ForeignProcess"
    parent_not_live "ParentNotLive"
    reader_busy "ReaderBusy"
    run_ended "RunEnded"
    run_exists "RunExists"
    shut_down "ShutDown"
    thread_refused "ThreadRefused"
    too_many_runs "TooManyRuns"
}
