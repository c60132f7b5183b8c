//! The Python face: the only folder that names `PyO3`. It converts and delegates; what a run is, the core knows.
//!
//! # Locks and the GIL
//!
//! Everything here runs attached. On a build with a GIL, attached threads exclude each other, and nothing under
//! one of our locks calls Python or detaches: so no lock of ours is ever waited for with the GIL held. On a
//! free-threaded build such a wait is as long as one map operation.

mod arguments;
mod attached;
mod attributes;
mod cancelled;
mod context;
mod dispatch;
mod encode;
mod ending;
mod event;
mod exit;
mod fork;
mod handler;
mod interpreter;
mod loaded;
mod log_file;
mod names;
mod process;
mod registry;
mod route;
mod run;
mod run_callback;
mod run_handler;
mod run_id;
mod run_key;
mod runs;
mod settings;
mod shutdown;
mod sink;
mod slot;
mod stats;
mod subscription;
mod table;
mod token;
mod wait;

use pyo3::prelude::*;

/// The Rust core of `llm_callback`. Import `llm_callback` instead: it has the public names.
#[pymodule(gil_used = false)]
mod _core {
    #[pymodule_export]
    use super::context::{
        check_cancellation, clear_current_run_id, get_current_run_id,
        get_global_cancellation_checker, get_global_event_callback, set_current_run_id,
        set_global_cancellation_checker, set_global_event_callback,
    };
    #[pymodule_export]
    use super::ending::set_flush;
    #[pymodule_export]
    use super::exit::write_unraisable;
    #[pymodule_export]
    use super::handler::{PyHandler, create_callback_handler};
    #[pymodule_export]
    use super::log_file::log_to_file;
    #[pymodule_export]
    use super::registry::{
        callbacks, checkers, get_cancellation_checker, get_event_callback,
        register_cancellation_checker, register_event_callback,
    };
    #[pymodule_export]
    use super::run::PyRun;
    #[pymodule_export]
    use super::run_callback::{PyRunCallback, PyRunChecker};
    #[pymodule_export]
    use super::run_handler::PyRunHandler;
    #[pymodule_export]
    use super::runs::{active_runs, cancel_run, get_run, open_run};
    #[pymodule_export]
    use super::settings::configure;
    #[pymodule_export]
    use super::shutdown::shutdown;
    #[pymodule_export]
    use super::sink::{PySinkHandle, add_sink, flush};
    #[pymodule_export]
    use super::stats::stats;
    #[pymodule_export]
    use super::subscription::{PySse, PySubscription};
    #[pymodule_export]
    use super::token::{PyRegistration, PyToken, set_token_class};

    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        let py = module.py();
        super::interpreter::refuse_all_but_the_main(py)?;
        super::route::read_environment()?;
        // What is needed from Python is made and looked up now: at interpreter exit, imports fail; and the child of a
        // fork would wait for ever for what another thread was making.
        super::names::names(py);
        super::interpreter::find_main_thread(py)?;
        super::context::prepare(py)?;
        super::dispatch::prepare(py)?;
        super::event::prepare(py)?;
        super::handler::prepare(py)?;
        super::registry::prepare(py);
        super::table::prepare();
        super::shutdown::prepare(py)?;
        super::subscription::prepare(py)?;
        super::token::prepare(py);
        super::slot::install(py);
        super::fork::install(py)
    }
}
