//! Which devices there are, and how one is opened.
//!
//! A backend is a type of its own, so there is no value "a backend": [`open`] picks one and calls back
//! with a recipe that makes it, on whatever thread it shall live.

#[cfg(not(all(feature = "cuda", feature = "wgpu")))]
mod absent;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "wgpu")]
mod wgpu;

#[cfg(not(feature = "cuda"))]
use absent as cuda;
#[cfg(not(feature = "wgpu"))]
use absent as wgpu;

use ponder_engine::Result;
use ponder_engine::backend::cpu::CpuBackend;
use ponder_engine::backend::reference::ReferenceBackend;
use ponder_engine::backend::{Backend, DeviceInfo, DeviceKind};

use crate::options::{BackendChoice, EngineOptions};

/// What to do with the backend that was picked.
pub trait WithBackend {
    /// What it gives.
    type Out;
    /// `make` opens the device that `info` describes. It may be called again, on another thread, when a
    /// device is lost.
    ///
    /// # Errors
    /// The visitor's own.
    fn with<B: Backend>(
        self,
        info: DeviceInfo,
        make: impl Fn() -> Result<B> + Send + Sync + 'static,
    ) -> Result<Self::Out>;
}

/// Opens the device that `options` ask for.
///
/// # Errors
/// If there is none such, or this build lacks its backend; and the visitor's.
pub fn open<V: WithBackend>(options: &EngineOptions, visitor: V) -> Result<V::Out> {
    let adapter = options.adapter.as_deref();
    match resolved(options.backend) {
        BackendChoice::Cuda => cuda::open(adapter, visitor),
        BackendChoice::Wgpu => wgpu::open(adapter, visitor),
        BackendChoice::Cpu | BackendChoice::Auto => {
            let threads = options.threads;
            visitor.with(CpuBackend::new(threads)?.info().clone(), move || CpuBackend::new(threads))
        }
        BackendChoice::Reference => {
            visitor.with(ReferenceBackend::default().info().clone(), || Ok(ReferenceBackend::default()))
        }
    }
}

/// What [`BackendChoice::Auto`] means here: CUDA if a device answers, else a hardware GPU through wgpu, else
/// the CPU. Other choices are what they are.
pub fn resolved(choice: BackendChoice) -> BackendChoice {
    match choice {
        BackendChoice::Auto if cuda::is_there() => BackendChoice::Cuda,
        BackendChoice::Auto if wgpu::list().iter().any(is_hardware) => BackendChoice::Wgpu,
        BackendChoice::Auto => BackendChoice::Cpu,
        chosen => chosen,
    }
}

fn is_hardware(device: &DeviceInfo) -> bool {
    matches!(device.kind, DeviceKind::DiscreteGpu | DeviceKind::IntegratedGpu)
}

/// Every device that could run a model here: NVIDIA's, then what wgpu finds, then the CPU.
pub fn list() -> Vec<DeviceInfo> {
    let cpu = CpuBackend::new(0).map(|cpu| cpu.info().clone());
    cuda::list().into_iter().chain(wgpu::list()).chain(cpu).collect()
}

/// Which of [`list`]'s devices [`BackendChoice::Auto`] takes.
pub fn preferred(devices: &[DeviceInfo]) -> Option<&DeviceInfo> {
    let of = |backend: &'static str| devices.iter().filter(move |d| d.backend == backend);
    of("cuda").next().or_else(|| of("wgpu").find(|d| is_hardware(d))).or_else(|| of("cpu").next())
}

/// Bytes per second that the CPU backend's threads read from memory when they do nothing else; `None` where
/// the model runs elsewhere.
///
/// # Errors
/// Those of the device.
pub fn measure_bandwidth(options: &EngineOptions) -> Result<Option<f64>> {
    match resolved(options.backend) {
        BackendChoice::Cpu => CpuBackend::new(options.threads)?.measure_bandwidth().map(Some),
        _ => Ok(None),
    }
}
