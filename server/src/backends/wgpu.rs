//! Vulkan, Metal and DX12 adapters, through the crate `ponder-shaders`.

use ponder_engine::Result;
use ponder_engine::backend::{Backend, DeviceInfo};
use ponder_shaders::{AdapterSummary, WgpuBackend, WgpuOptions};

use super::WithBackend;

/// Every adapter, hardware before software.
pub fn list() -> Vec<DeviceInfo> {
    let describe = |a: AdapterSummary| DeviceInfo {
        backend: "wgpu",
        name: a.name,
        kind: a.kind,
        memory: None,
        row_buckets: Vec::new(), // known once it is open
        features: vec![a.api, a.driver, format!("profile {}", a.profile)],
    };
    ponder_shaders::adapters().into_iter().map(describe).collect()
}

/// Opens the adapter of that number or with that part of a name; the best one if `None`.
pub fn open<V: WithBackend>(wanted: Option<&str>, visitor: V) -> Result<V::Out> {
    let mut options = WgpuOptions::default();
    options.adapter = wanted.map(String::from).or(options.adapter);
    let make = move || WgpuBackend::new(options.clone());
    visitor.with(make()?.info().clone(), make)
}
