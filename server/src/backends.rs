//! Which devices there are, and how one is opened.
//!
//! A backend is a type of its own, so there is no value "a backend": [`open`] picks one and calls back
//! with a recipe that makes it, on whatever thread it shall live.

use ponder_engine::backend::reference::ReferenceBackend;
use ponder_engine::backend::{Backend, DeviceInfo, DeviceKind};
use ponder_engine::{DeviceFault, Error, Result};

use crate::memory::free_main_memory;
use crate::options::{BackendChoice, EngineOptions};

/// What to do with the backend that was picked.
pub trait WithBackend {
    /// What it gives.
    type Out;
    /// `make` opens the device; it may be called again, on another thread, when the first one is lost.
    fn with<B: Backend>(self, info: DeviceInfo, make: impl Fn() -> Result<B> + Send + 'static) -> Result<Self::Out>;
}

/// Opens the device that `options` ask for.
///
/// # Errors
/// If there is none such, or this build lacks its backend.
pub fn open<V: WithBackend>(options: &EngineOptions, visitor: V) -> Result<V::Out> {
    let choice = match options.backend {
        BackendChoice::Auto => auto(),
        chosen => chosen,
    };
    match choice {
        BackendChoice::Reference => visitor.with(reference_info(), || Ok(ReferenceBackend::default())),
        BackendChoice::Auto | BackendChoice::Cpu => cpu::open(options.threads(), visitor),
        BackendChoice::Wgpu => wgpu::open(options, visitor),
        BackendChoice::Cuda => cuda::open(visitor),
    }
}

/// Every device that could run a model here, the one that [`BackendChoice::Auto`] takes first.
pub fn list() -> Vec<DeviceInfo> {
    let (cuda, (hardware, software)) = (cuda::list(), wgpu::list().into_iter().partition::<Vec<_>, _>(is_hardware));
    [cuda, hardware, vec![cpu::info(EngineOptions::new("").threads())], software].concat()
}

fn is_hardware(device: &DeviceInfo) -> bool {
    matches!(device.kind, DeviceKind::DiscreteGpu | DeviceKind::IntegratedGpu)
}

/// CUDA if a device answers, else a hardware GPU through wgpu, else the CPU.
fn auto() -> BackendChoice {
    match list().first().map(|d| d.backend) {
        Some("cuda") => BackendChoice::Cuda,
        Some("wgpu") => BackendChoice::Wgpu,
        _ => BackendChoice::Cpu,
    }
}

fn reference_info() -> DeviceInfo {
    ReferenceBackend::default().info().clone()
}
