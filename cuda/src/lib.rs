//! Ponder on NVIDIA GPUs: hand-written kernels in `kernels/*.cu`, compiled at run time, launched as
//! captured graphs. Building this crate needs no CUDA on the machine.
//!
//! The crate has two devices under one backend. [`Cuda<D>`] turns programs into dispatch lists
//! ([`record`]) and knows nothing of a driver; a [`Device`] allocates, copies and launches. One device is
//! the driver; the other, [`emulated`], compiles the same kernel sources with g++ and runs them on the CPU,
//! so that the numbers of every kernel are tested where there is no GPU.
//!
//! What is absent, and why: no CUDA header (kernels name only `kernels/ponder.cuh`), no nvcc, no
//! library linked at build time, no atomic addition of floats, no sum whose order depends on the batch.

pub mod backend;
pub mod bench;
pub mod compile;
pub mod device;
pub mod driver;
pub mod emulated;
pub mod images;
mod many;
pub mod models;
pub mod nvrtc;
pub mod record;
pub mod source;
pub mod weight;

pub use backend::Cuda;
pub use device::{Device, Dispatch, Module};
pub use driver::CudaBackend;
pub use emulated::EmulatedCuda;
