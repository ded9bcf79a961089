//! Ponder's engine: plain values and pure functions. No actors, no async runtime, no GPU, no network.
//!
//! Start at [`model`] (what a model is), [`program`] (a forward pass as data) and
//! [`backend`] (who runs it).

pub mod backend;
pub mod checkpoint;
pub mod error;
pub mod format;
pub mod kv;
pub mod model;
pub mod op;
pub mod program;
pub mod reason;
pub mod request;
pub mod schedule;
pub mod sim;
pub mod spec;
pub mod step;
pub mod text;

pub use error::{DeviceFault, Error, Result};
