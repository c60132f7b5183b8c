//! Tells the binding which Python it is built for: sets `Py_GIL_DISABLED` where there is no GIL.

fn main() {
    #[cfg(feature = "python")]
    pyo3_build_config::use_pyo3_cfgs();
}
