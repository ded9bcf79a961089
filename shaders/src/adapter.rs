//! Which adapters there are, which one to take, and how its device is opened.

use ponder_engine::backend::DeviceKind;
use ponder_engine::error::{DeviceFault, Error, Result};

use crate::fault::{Faults, ready};
use crate::module::SCALED_STORAGE_BUFFERS;
use crate::variants::Profile;

/// How to choose and open an adapter.
#[derive(Clone, Debug)]
pub struct WgpuOptions {
    /// Index in [`adapters`], or a part of the name (case does not matter). `PONDER_WGPU_ADAPTER` by default.
    pub adapter: Option<String>,
    /// Whether an adapter that is the CPU (lavapipe, WARP) may be taken without being named.
    pub allow_software: bool,
    /// Kernels for another kind of device than this one is; for tests.
    pub profile: Option<Profile>,
    /// Cuts tensors as if bindings could be no larger; for tests.
    pub max_binding_bytes: Option<u64>,
    /// Runs fused ops as their parts, so that `fused == lowered` can be tested.
    pub fused: bool,
    /// The longest wait for one launch.
    pub timeout: std::time::Duration,
    /// The driver's validation layers and debug names.
    pub validation: bool,
}

impl Default for WgpuOptions {
    fn default() -> Self {
        Self {
            adapter: std::env::var("PONDER_WGPU_ADAPTER").ok().filter(|v| !v.is_empty()),
            allow_software: true,
            profile: None,
            max_binding_bytes: None,
            fused: true,
            timeout: std::time::Duration::from_secs(120),
            validation: false,
        }
    }
}

/// One adapter, for `ponder devices`.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterSummary {
    /// Its place in the list, which `PONDER_WGPU_ADAPTER` takes.
    pub index: usize,
    /// The adapter's own name.
    pub name: String,
    /// Its kind.
    pub kind: DeviceKind,
    /// `vulkan`, `metal`, `dx12`.
    pub api: String,
    /// Driver name and version.
    pub driver: String,
    /// Kernel profile that it would run.
    pub profile: &'static str,
    /// Whether it has subgroups of at least 8 lanes.
    pub subgroups: bool,
    /// Largest binding in bytes; larger tensors are cut.
    pub max_binding_bytes: u64,
}

/// Every adapter of this machine, the best first.
pub fn adapters() -> Vec<AdapterSummary> {
    list(&instance(false)).iter().enumerate().map(|(index, adapter)| summary(index, adapter)).collect()
}

fn instance(validation: bool) -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    // OpenGL lists software adapters twice, without subgroups; it is no target of ours.
    descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    descriptor.flags = if validation { wgpu::InstanceFlags::debugging() } else { wgpu::InstanceFlags::empty() };
    wgpu::Instance::new(descriptor)
}

/// Adapters, hardware before software and discrete before integrated.
fn list(instance: &wgpu::Instance) -> Vec<wgpu::Adapter> {
    let mut all = ready(instance.enumerate_adapters(wgpu::Backends::all()));
    all.sort_by_key(|a| match kind(&a.get_info()) {
        DeviceKind::DiscreteGpu => 0,
        DeviceKind::IntegratedGpu => 1,
        _ => 2,
    });
    all
}

fn kind(info: &wgpu::AdapterInfo) -> DeviceKind {
    match info.device_type {
        wgpu::DeviceType::Cpu => DeviceKind::SoftwareGpu,
        wgpu::DeviceType::IntegratedGpu => DeviceKind::IntegratedGpu,
        _ => DeviceKind::DiscreteGpu,
    }
}

fn summary(index: usize, adapter: &wgpu::Adapter) -> AdapterSummary {
    let info = adapter.get_info();
    AdapterSummary {
        index,
        kind: kind(&info),
        api: format!("{:?}", info.backend).to_lowercase(),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        profile: profile(adapter).name(),
        subgroups: subgroups(adapter),
        max_binding_bytes: adapter.limits().max_storage_buffer_binding_size,
        name: info.name,
    }
}

/// Kernels with subgroups share eight lanes' values.
fn subgroups(adapter: &wgpu::Adapter) -> bool {
    adapter.features().contains(wgpu::Features::SUBGROUP) && adapter.get_info().subgroup_min_size >= 8
}

/// The profile that suits an adapter.
fn profile(adapter: &wgpu::Adapter) -> Profile {
    let info = adapter.get_info();
    match (info.device_type == wgpu::DeviceType::Cpu, subgroups(adapter)) {
        (true, broadcast) => Profile::Cpu { broadcast },
        (false, true) => Profile::GpuSubgroup,
        (false, false) => Profile::GpuBase,
    }
}

/// An open device.
pub(crate) struct Opened {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub summary: AdapterSummary,
    pub profile: Profile,
    pub limits: wgpu::Limits,
    pub faults: Faults,
}

/// Chooses an adapter and opens it.
pub(crate) fn open(options: &WgpuOptions) -> Result<Opened> {
    let all = list(&instance(options.validation));
    let summaries: Vec<_> = all.iter().enumerate().map(|(i, a)| summary(i, a)).collect();
    let index = choose(options, &summaries)?;
    let (adapter, summary) = (&all[index], summaries[index].clone());
    let rejected = |what: String| Error::Device { device: summary.name.clone(), what: DeviceFault::Unsupported(what) };
    let profile = options.profile.unwrap_or_else(|| profile(adapter));
    let offered = adapter.limits();
    // WebGPU's defaults, which kernels stay inside, but for the size of buffers, and for their number where a
    // cache has scales.
    let limits = wgpu::Limits {
        max_storage_buffers_per_shader_stage: offered.max_storage_buffers_per_shader_stage.min(SCALED_STORAGE_BUFFERS),
        max_storage_buffer_binding_size: offered.max_storage_buffer_binding_size,
        max_buffer_size: offered.max_buffer_size,
        ..wgpu::Limits::default()
    };
    let features = if profile.subgroups() { wgpu::Features::SUBGROUP } else { wgpu::Features::empty() };
    let request = adapter.request_device(&wgpu::DeviceDescriptor {
        label: Some("ponder"),
        required_features: features,
        required_limits: limits.clone(),
        memory_hints: wgpu::MemoryHints::Performance,
        ..Default::default()
    });
    let (device, queue) = ready(request).map_err(|e| rejected(format!("the device does not open: {e}")))?;
    let faults = Faults::watch(&device);
    Ok(Opened { device, queue, summary, profile, limits, faults })
}

fn choose(options: &WgpuOptions, all: &[AdapterSummary]) -> Result<usize> {
    let names = || all.iter().map(|a| format!("{} {:?}", a.index, a.name)).collect::<Vec<_>>().join(", ");
    if all.is_empty() {
        let what = "no Vulkan, Metal or DX12 adapter; on Debian, mesa-vulkan-drivers brings a software one";
        return Err(Error::invalid("wgpu", what));
    }
    let Some(wanted) = &options.adapter else {
        let hardware = |a: &&AdapterSummary| options.allow_software || a.kind != DeviceKind::SoftwareGpu;
        return all.iter().find(hardware).map(|a| a.index).ok_or_else(|| {
            Error::invalid("wgpu", format!("only software adapters ({}), which were not asked for", names()))
        });
    };
    let by_name = || all.iter().find(|a| a.name.to_lowercase().contains(&wanted.to_lowercase())).map(|a| a.index);
    let by_index = wanted.parse().ok().filter(|i| *i < all.len());
    by_index
        .or_else(by_name)
        .ok_or_else(|| Error::invalid("PONDER_WGPU_ADAPTER", format!("{wanted:?} is none of {}", names())))
}
