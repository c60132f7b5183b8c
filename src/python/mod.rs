//! The Python face: the only folder that uses `PyO3`. It converts values and delegates; the core implements the runs.
//!
//! # Locks and the GIL
//!
//! All code here runs attached. On a build with a GIL, attached threads exclude each other, and a thread that holds one
//! of the locks here neither calls Python nor detaches: so no thread waits for such a lock with the GIL held. On a
//! free-threaded build a thread may wait, for as long as one map operation.

mod cpython;
mod dropin;
mod fork;
mod runs;
mod settings;
mod shared;
mod stats;

use pyo3::prelude::*;

/// The Rust core of `llm_callback`. Import `llm_callback` instead: it has the public names.
#[pymodule(gil_used = false)]
mod _core {
    #[pymodule_export]
    use super::cpython::exit::write_unraisable;
    #[pymodule_export]
    use super::dropin::context::{
        check_cancellation, clear_current_run_id, get_current_run_id,
        get_global_cancellation_checker, get_global_event_callback, set_current_run_id,
        set_global_cancellation_checker, set_global_event_callback,
    };
    #[pymodule_export]
    use super::dropin::handler::create_callback_handler;
    #[pymodule_export]
    use super::dropin::registry::{
        callbacks, checkers, get_cancellation_checker, get_event_callback,
        register_cancellation_checker, register_event_callback,
    };
    #[pymodule_export]
    use super::runs::ending::set_flush;
    #[pymodule_export]
    use super::runs::log_file::log_to_file;
    #[pymodule_export]
    use super::runs::module::{active_runs, cancel_run, get_run, open_run};
    #[pymodule_export]
    use super::runs::run::PyRun;
    #[pymodule_export]
    use super::runs::run_callback::{PyRunCallback, PyRunChecker};
    #[pymodule_export]
    use super::runs::run_handler::PyRunHandler;
    #[pymodule_export]
    use super::runs::shutdown::shutdown;
    #[pymodule_export]
    use super::runs::sink::{PySinkHandle, add_sink, flush};
    #[pymodule_export]
    use super::runs::sse_stream::PySse;
    #[pymodule_export]
    use super::runs::subscription::PySubscription;
    #[pymodule_export]
    use super::runs::token::{PyRegistration, PyToken, set_token_class};
    #[pymodule_export]
    use super::settings::configure;
    #[pymodule_export]
    use super::shared::handler::PyHandler;
    #[pymodule_export]
    use super::stats::stats;

    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        let py = module.py();
        super::cpython::interpreter::refuse_all_but_the_main(py)?;
        super::dropin::route::read_environment()?;
        // The Python objects that are needed later are made and looked up now. At the interpreter's exit, imports fail;
        // and the child of a fork would wait for ever for an object that another thread was making.
        super::cpython::names::names(py);
        super::cpython::errors::prepare(py);
        super::cpython::interpreter::find_main_thread(py)?;
        super::dropin::current::prepare(py)?;
        super::shared::cancelled::run_cancelled(py)?;
        super::shared::print::prepare(py)?;
        super::shared::tool_calls::prepare(py)?;
        super::shared::event::prepare(py)?;
        super::shared::handler::zero(py)?;
        super::shared::registered::prepare(py);
        super::shared::table::prepare();
        super::runs::run_handler::prepare(py);
        super::runs::shutdown::prepare(py)?;
        super::runs::subscription::prepare(py)?;
        super::runs::token::prepare(py);
        super::dropin::slot::install(py);
        super::fork::install(py)
    }
}
