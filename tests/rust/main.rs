//! What a Rust program sees of the crate: threads, properties.

#![cfg(not(loom))]

mod properties;
mod threads;
