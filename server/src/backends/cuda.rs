//! NVIDIA GPUs, through the crate `ponder-cuda`.

use ponder_cuda::CudaBackend;
use ponder_engine::backend::{Backend, DeviceInfo};
use ponder_engine::{Error, Result};

use super::WithBackend;

/// Most GPUs of one machine.
const MOST: usize = 16;

/// Every GPU that the driver opens, by its number. Where there is no driver, none.
pub fn list() -> Vec<DeviceInfo> {
    (0..MOST).map_while(|ordinal| info(ordinal).ok()).collect()
}

/// Whether a GPU answers.
pub fn is_there() -> bool {
    info(0).is_ok()
}

fn info(ordinal: usize) -> Result<DeviceInfo> {
    Ok(CudaBackend::new(ordinal)?.info().clone())
}

/// Opens the GPU of that number or with that part of a name; the first one if `None`.
pub fn open<V: WithBackend>(wanted: Option<&str>, visitor: V) -> Result<V::Out> {
    let ordinal = match wanted.map(|w| (w, w.parse())) {
        None => 0,
        Some((_, Ok(number))) => number,
        Some((name, Err(_))) => by_name(name)?,
    };
    visitor.with(info(ordinal)?, move || CudaBackend::new(ordinal))
}

fn by_name(name: &str) -> Result<usize> {
    let all = list();
    all.iter().position(|d| d.name.to_lowercase().contains(&name.to_lowercase())).ok_or_else(|| {
        let names: Vec<String> = all.iter().map(|d| d.name.clone()).collect();
        Error::invalid("adapter", format!("{name:?} is none of {names:?}"))
    })
}
