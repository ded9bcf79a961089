//! Which devices there are, and how one is opened.
//!
//! A backend is a type of its own, so there is no value "a backend": [`open`] picks one and calls back
//! with a recipe that makes it, on whatever thread it shall live.

use ponder_engine::backend::cpu::CpuBackend;
use ponder_engine::backend::reference::ReferenceBackend;
use ponder_engine::backend::{Backend, DeviceInfo, DeviceKind};
use ponder_engine::{DeviceFault, Error, Result};

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
    let choice = match options.backend {
        BackendChoice::Auto => auto(&list()),
        chosen => chosen,
    };
    match choice {
        BackendChoice::Wgpu => open_wgpu(options, visitor),
        BackendChoice::Cuda => Err(unsupported("cuda")),
        BackendChoice::Auto | BackendChoice::Cpu => {
            let threads = options.threads;
            visitor.with(CpuBackend::new(threads)?.info().clone(), move || CpuBackend::new(threads))
        }
        BackendChoice::Reference => {
            visitor.with(ReferenceBackend::default().info().clone(), || Ok(ReferenceBackend::default()))
        }
    }
}

#[cfg(feature = "wgpu")]
fn open_wgpu<V: WithBackend>(options: &EngineOptions, visitor: V) -> Result<V::Out> {
    use ponder_shaders::{WgpuBackend, WgpuOptions};
    let mut wanted = WgpuOptions::default();
    wanted.adapter = options.adapter.clone().or(wanted.adapter);
    let make = move || WgpuBackend::new(wanted.clone());
    visitor.with(make()?.info().clone(), make)
}

#[cfg(not(feature = "wgpu"))]
fn open_wgpu<V: WithBackend>(_: &EngineOptions, _: V) -> Result<V::Out> {
    Err(unsupported("wgpu"))
}

#[cfg(feature = "wgpu")]
fn list_wgpu() -> Vec<DeviceInfo> {
    let describe = |a: ponder_shaders::AdapterSummary| DeviceInfo {
        backend: "wgpu",
        name: a.name,
        kind: a.kind,
        memory_bytes: None,
        row_buckets: Vec::new(), // known once it is open
        features: vec![a.api, a.driver, format!("profile {}", a.profile)],
    };
    ponder_shaders::adapters().into_iter().map(describe).collect()
}

#[cfg(not(feature = "wgpu"))]
fn list_wgpu() -> Vec<DeviceInfo> {
    Vec::new()
}

/// Every device that could run a model here: NVIDIA's, then what wgpu finds, then the CPU.
pub fn list() -> Vec<DeviceInfo> {
    let cpu = CpuBackend::new(0).map(|cpu| cpu.info().clone());
    list_wgpu().into_iter().chain(cpu).collect()
}

/// Which of `devices` [`BackendChoice::Auto`] takes: CUDA if a device answers, else a hardware GPU through
/// wgpu, else the CPU.
pub fn preferred(devices: &[DeviceInfo]) -> Option<&DeviceInfo> {
    let hardware = |d: &&DeviceInfo| matches!(d.kind, DeviceKind::DiscreteGpu | DeviceKind::IntegratedGpu);
    let of = |backend: &'static str| devices.iter().filter(move |d| d.backend == backend);
    of("cuda").next().or_else(|| of("wgpu").find(hardware)).or_else(|| of("cpu").next())
}

/// Bytes per second that the CPU backend's threads read from memory when they do nothing else; `None` where
/// the model runs elsewhere.
///
/// # Errors
/// Those of the device.
pub fn measure_bandwidth(options: &EngineOptions) -> Result<Option<f64>> {
    let choice = match options.backend {
        BackendChoice::Auto => auto(&list()),
        chosen => chosen,
    };
    match choice {
        BackendChoice::Auto | BackendChoice::Cpu => CpuBackend::new(options.threads)?.measure_bandwidth().map(Some),
        BackendChoice::Wgpu | BackendChoice::Cuda | BackendChoice::Reference => Ok(None),
    }
}

fn auto(devices: &[DeviceInfo]) -> BackendChoice {
    match preferred(devices).map(|d| d.backend) {
        Some("cuda") => BackendChoice::Cuda,
        Some("wgpu") => BackendChoice::Wgpu,
        _ => BackendChoice::Cpu,
    }
}

fn unsupported(backend: &str) -> Error {
    let why = format!("this program was built without the backend {backend}");
    Error::Device { device: backend.into(), what: DeviceFault::Unsupported(why) }
}
