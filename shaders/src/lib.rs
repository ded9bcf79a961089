//! WGSL kernels and the wgpu backend: Ponder on any Vulkan, Metal or DX12 adapter, software ones included.
//!
//! `wgsl/` holds one file per op (its stem is the op's in every language) and the pieces they share;
//! [`source`] composes them, [`variants`] lists every combination that exists, [`module`] validates them,
//! and [`WgpuBackend`] turns a program into one list of dispatches that is replayed at every launch.

mod adapter;
mod backend;
mod buffer;
mod fault;
pub mod layout;
pub mod module;
mod plan;
pub mod source;
pub mod variants;

pub use adapter::{AdapterSummary, WgpuOptions, adapters};
pub use backend::{Pending, WgpuBackend};
pub use buffer::Buffer;
pub use plan::Plan;
